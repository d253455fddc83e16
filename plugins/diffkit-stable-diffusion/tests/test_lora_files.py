"""Files of LoRA: the options in the header, and files that are damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_stable_diffusion.lora_files import Update, merge
from safetensors.torch import save_file
from torch import Tensor, nn

from diffkit import CheckpointError, UsageError
from diffkit.runs.weights import AdapterFile, _adapter

NAME = "unet.attn.to_q"
DOWN, UP = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), torch.ones(3, 2)
PAIR = {f"{NAME}.lora_A.weight": DOWN, f"{NAME}.lora_B.weight": UP}
KOHYA = {"lora_unet_attn_to_q.lora_down.weight": DOWN, "lora_unet_attn_to_q.lora_up.weight": UP}
R2: dict[str, Any] = {"unet.r": 2, "unet.lora_alpha": 6}


def model() -> nn.Module:
    """A model with the layer attn.to_q of zeros."""
    layer = nn.Linear(5, 3)
    nn.init.zeros_(layer.weight)
    return nn.ModuleDict({"attn": nn.ModuleDict({"to_q": layer})})


def merged(tensors: Mapping[str, Tensor], folder: Path, header: Any = None) -> Tensor:
    """The weight of the layer after the merge of a file."""
    options = header if isinstance(header, str) else json.dumps(header)
    metadata = {"format": "pt"} | ({} if header is None else {"lora_adapter_metadata": options})
    save_file({name: one.contiguous().clone() for name, one in tensors.items()}, folder / "a.safetensors", metadata)
    made = model()
    merge(made, "unet", AdapterFile.read(str(folder / "a.safetensors")), 1.0)
    return dict(made.named_parameters())["attn.to_q.weight"].detach()


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        (None, 1.0),
        ({"text_encoder.r": 7}, 1.0),
        (R2, 3.0),
        (R2 | {"unet.use_rslora": True}, 6 / math.sqrt(2)),
        (R2 | {"unet.alpha_pattern": {"attn.to_k": 1, "to_q": 5, "attn.to_q": 7}}, 2.5),
        (R2 | {"unet.alpha_pattern": {"^attn.to_q": 4}, "unet.r": 8, "unet.rank_pattern": {"to_.*": 2}}, 2.0),
        (R2 | {"unet.use_dora": False, "unet.modules_to_save": None, "unet.init_lora_weights": "gaussian"}, 3.0),
        ({"unet.r": 2}, 4.0),
    ],
)
def test_strength(header: Any, scale: float, tmp_path: Path) -> None:
    torch.testing.assert_close(merged(PAIR, tmp_path, header), scale * (UP @ DOWN))


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{", "is not JSON"),
        ([1], "is not a JSON object"),
        (R2 | {"unet.use_dora": True}, "unet.use_dora is set"),
        (R2 | {"unet.lora_bias": True}, "unet.lora_bias is set"),
        (R2 | {"unet.init_lora_weights": "pissa"}, "unet.init_lora_weights changes"),
        (R2 | {"unet.lora_alpha": "six"}, "unet.lora_alpha"),
        (R2 | {"unet.lora_alpha": float("nan")}, "unet.lora_alpha"),
        (R2 | {"unet.alpha_pattern": {"(a+)+": 1}}, "the pattern"),
        (R2 | {"unet.alpha_pattern": {"*": 1}}, "the pattern"),
        (R2 | {"unet.r": 3}, "attn.to_q has rank 3 in the header, and 2"),
    ],
)
def test_headers_that_are_refused(header: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        merged(PAIR, tmp_path, header)
    assert caught.value.code == "DK603"
    assert match in "\n".join([caught.value.message, *caught.value.notes])


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{NAME}.lora_A.weight": torch.zeros(0, 5), f"{NAME}.lora_B.weight": torch.zeros(3, 0)}, "not an update"),
        ({f"{NAME}.lora_A.weight": torch.ones(()), f"{NAME}.lora_B.weight": UP}, "is not an update of low rank"),
        ({f"{NAME}.lora_A.weight": DOWN, f"{NAME}.lora_B.weight": torch.ones(3)}, "is not an update of low rank"),
        (KOHYA | {"lora_unet_attn_to_q.alpha": torch.ones(2)}, "is not one number"),
        (KOHYA | PAIR, "is a second "),
        (PAIR | {f"{NAME}.lora_down.weight": DOWN}, "is a second down"),
        ({**PAIR, f"{NAME}.lora_B.weight": UP * math.nan}, "infinite or not a number"),
        ({**PAIR, f"{NAME}.lora_A.weight": DOWN.half() * math.inf}, "infinite or not a number"),
        (KOHYA | {"lora_unet_attn_to_q.alpha": torch.tensor(math.inf)}, "infinite or not a number"),
    ],
)
def test_damaged_files(tensors: dict[str, Tensor], match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        merged(tensors, tmp_path)
    assert caught.value.code == "DK603"
    assert match in caught.value.message


def test_alpha_in_tensor_and_header(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="alpha is stated by a tensor and by the header"):
        merged(PAIR | {f"{NAME}.alpha": torch.ones(())}, tmp_path, R2)


def test_weights_of_files() -> None:
    assert _adapter("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert _adapter("C:a.safetensors") == ("C:a.safetensors", 1.0)
    for stated in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises(UsageError, match="the weight of the adapter a") as caught:
            _adapter(f"a.safetensors:{stated}")
        assert caught.value.code == "DK018"


def test_an_update_of_one_half() -> None:
    with pytest.raises(CheckpointError, match="a has no other half"):
        Update(down=DOWN, names=("a",)).delta(torch.Size((3, 5)))
