"""`unet` computes what diffusers' UNet2DModel computes, given its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from diffkit.ddpm.unet import UNet
from diffkit.network import Shape

diffusers = pytest.importorskip("diffusers")

_spec = importlib.util.spec_from_file_location("diffusers_weights", Path(__file__).with_name("diffusers_weights.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
unet_weights = _module.unet_weights

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
TINY = {
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
CASES: dict[str, tuple[Shape, dict[str, Any], dict[str, Any]]] = {
    "cifar10": (Shape(3, 3, (32, 32)), CIFAR10, {}),
    "28x28, heads, openai embedding, symmetric padding": (
        Shape(1, 2, (28, 28)),
        TINY | {"sample_size": 28, "attention_head_dim": 8, "flip_sin_to_cos": True, "freq_shift": 0},
        {"attention": (14,), "head_channels": 8, "embedding": "openai", "downsample": "conv", "norm_eps": 1e-5},
    ),
    "scale-shift, resampling blocks, labels": (
        Shape(1, 2, (12, 8), classes=5),
        TINY
        | {
            "down_block_types": ("AttnDownBlock2D",) * 2,
            "up_block_types": ("AttnUpBlock2D",) * 2,
            "attention_head_dim": 16,
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "num_class_embeds": 6,
            "attn_norm_num_groups": 8,
        },
        {
            "attention": (12, 6),
            "head_channels": 16,
            "time": "scale-shift",
            "embedding": "openai",
            "downsample": "resblock",
            "upsample": "resblock",
            "norm_eps": 1e-5,
        },
    ),
    "no attention in the middle": (
        Shape(1, 2, (8, 8)),
        TINY | {"add_attention": False, "attention_head_dim": 8, "freq_shift": 1, "flip_sin_to_cos": False},
        {"attention": (4,), "heads": 4, "middle_attention": False, "downsample": "conv", "norm_eps": 1e-5},
    ),
}


def _pair(case: str) -> tuple[UNet, Any, Shape]:
    shape, config, options = CASES[case]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # no weight is zero, no norm is the identity
            weight.add_(0.02 * torch.randn_like(weight))
    if case != "cifar10":
        options = options | {"channels": 16, "multipliers": (1, 2), "blocks": 1, "groups": 8}
    ours = UNet(shape, **options).eval()
    ours.load_state_dict(unet_weights(theirs.state_dict()))
    return ours, theirs, shape


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal(case: str, dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the size of the output, as random weights leave it at any size."""
    ours, theirs, shape = _pair(case)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(2, shape.in_channels, *shape.size, dtype=dtype)
    t = torch.tensor([3.0, 870.0])
    label = None if shape.classes is None else torch.tensor([4, 5])
    with torch.no_grad():
        want = theirs(x, t, label).sample
        got = ours(x, t, label)
    assert want.std() > 1e-3
    torch.testing.assert_close(got / want.std(), want / want.std(), rtol=tolerance, atol=tolerance)


def test_gradients_equal() -> None:
    ours, theirs, shape = _pair("28x28, heads, openai embedding, symmetric padding")
    ours, theirs = ours.double(), theirs.double()
    x, t = torch.randn(2, shape.in_channels, *shape.size, dtype=torch.float64), torch.tensor([3.0, 870.0])
    theirs(x, t).sample.square().mean().backward()
    ours(x, t).square().mean().backward()
    want = unet_weights({name: weight.grad for name, weight in theirs.named_parameters()})
    assert want.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, want[name], rtol=1e-8, atol=1e-10)


def test_lsun_has_as_many_parameters() -> None:
    """google/ddpm-church-256, google/ddpm-celebahq-256: 114 M."""
    kinds = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            **CIFAR10
            | {
                "block_out_channels": (128, 128, 256, 256, 512, 512),
                "down_block_types": kinds,
                "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
            }
        )
        ours = UNet(Shape(3, 3, (256, 256)), multipliers=(1, 1, 2, 2, 4, 4))
    assert sum(w.numel() for w in ours.parameters()) == sum(w.numel() for w in theirs.parameters()) == 113_673_219
