"""All forms of a model that diffusers loads are loaded, with equal outputs; the fixes of errors work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.folder import STEM, open_folder, write_json, write_model, write_weights
from diffkit_diffusers.importing import import_folder, unet_options
from diffkit_diffusers.unet_config import AVERAGE_OPTIONS, config_of, options_of, read_config
from diffkit_diffusers.weights import diffusers_weights
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

from diffkit import Shape, UsageError, build
from diffkit.ddpm.unet import UNet
from diffkit.errors import ResourceError

TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
X, TIME = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), 7


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**TINY | changes).eval()


def assert_equal_to_diffusers(folder: Path, out: Path, **loaded: Any) -> None:
    theirs = diffusers.UNet2DModel.from_pretrained(folder, **loaded).eval()
    ours = import_folder(folder, out, variant=loaded.get("variant")).trained().network.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(X, torch.full((2,), TIME)), theirs(X, TIME).sample, rtol=1e-6, atol=1e-6)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # how diffusers saves, how it loads
    "half": ({"variant": "fp16"}, {"variant": "fp16"}),
    "shards": ({"max_shard_size": "20KB"}, {}),
    "half-shards": ({"variant": "fp16", "max_shard_size": "10KB"}, {"variant": "fp16"}),
    "pickle": ({"safe_serialization": False}, {}),
    "pickled-shards": ({"safe_serialization": False, "max_shard_size": "90KB"}, {"use_safetensors": False}),
}


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if "pickle" in f else f for f in FORMS])
def test_variants_shards_and_pickles_are_loaded(tmp_path: Path, form: str) -> None:
    saved, loaded = FORMS[form]
    made = model().half() if "half" in form else model()
    made.save_pretrained(tmp_path / "in", **saved)
    assert len(list((tmp_path / "in").glob("*-of-*"))) > 1 or "shards" not in form
    assert_equal_to_diffusers(tmp_path / "in", tmp_path / "run", **loaded)
    assert open_folder(tmp_path / "in").weights().keys() == made.state_dict().keys()  # the only variant is found


def test_a_variant_is_chosen_as_the_error_advises(tmp_path: Path) -> None:
    made = model()
    for variant in ("fp16", "bf16"):
        made.save_pretrained(tmp_path / "in", variant=variant)
    with pytest.raises(UsageError, match=r"--variant bf16 .* or --variant fp16 ") as caught:
        import_folder(tmp_path / "in", tmp_path / "run")
    assert caught.value.code == "DK080"
    assert import_folder(tmp_path / "in", tmp_path / "run", variant="fp16").recipe.network.name == "unet"
    build("network", "diffusers-unet", shape=Shape(1, 1, (8, 8)), folder=str(tmp_path / "in"), variant="bf16")


def test_a_folder_without_weights_is_filled_as_the_error_advises(tmp_path: Path) -> None:
    made = model()
    made.save_config(tmp_path / "in")
    with pytest.raises(UsageError, match="save_pretrained") as caught:
        import_folder(tmp_path / "in", tmp_path / "run")
    assert "safe_serialization" not in str(caught.value.fix)
    made.save_pretrained(tmp_path / "in")
    assert_equal_to_diffusers(tmp_path / "in", tmp_path / "run")


def test_names_of_2022_are_loaded(tmp_path: Path) -> None:
    """Blocks with the prefix UNetRes, attention layers named query, key, value and proj_attn."""
    model().save_pretrained(tmp_path / "in")
    blocks = {side: [f"UNetRes{kind}" for kind in TINY[side]] for side in ("down_block_types", "up_block_types")}
    change_config(tmp_path / "in", **blocks, act_fn="SiLU")
    file = tmp_path / "in" / f"{STEM}.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, file, metadata={"format": "pt"})
    assert_equal_to_diffusers(tmp_path / "in", tmp_path / "run")


def test_averaged_models_are_loaded_and_unknown_options_are_refused(tmp_path: Path) -> None:
    state = EMAModel(nn.Linear(1, 1).parameters()).state_dict()
    assert {*AVERAGE_OPTIONS} == {name for name in state if name != "shadow_params"}
    model().save_pretrained(tmp_path / "in")
    change_config(tmp_path / "in", **dict.fromkeys(AVERAGE_OPTIONS, 1))
    assert_equal_to_diffusers(tmp_path / "in", tmp_path / "run")
    change_config(tmp_path / "in", brand_new=True)
    with pytest.raises(UsageError, match="--ignore") as caught:
        import_folder(tmp_path / "in", tmp_path / "other")
    assert caught.value.notes == ("brand_new: this option is unknown to diffkit",)
    assert import_folder(tmp_path / "in", tmp_path / "other", ignore=["brand_new"]).recipe.network.name == "unet"
    with pytest.raises(UsageError, match="no option typo"):
        import_folder(tmp_path / "in", tmp_path / "third", ignore=["typo"])
    with pytest.raises(UsageError, match="a VQModel"):
        read_config(TINY | {"_class_name": "VQModel"})


@pytest.mark.parametrize(
    "weight_map",
    [None, {"a": 1}, {"a": "../outside.safetensors"}, {"a": "absent.safetensors"}, {"a": f"{STEM}.safetensors"}],
)
def test_a_damaged_index_is_refused(tmp_path: Path, weight_map: Any) -> None:
    model().save_pretrained(tmp_path / "in")
    (tmp_path / "in" / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UsageError) as caught:
        open_folder(tmp_path / "in").weights()
    assert caught.value.code == "DK080"


@pytest.mark.parametrize("attention", [(16, 8), (16,), (8,), ()])
def test_resampling_blocks_are_exported_at_every_level(attention: tuple[int, ...]) -> None:
    """diffusers has other blocks for residual resampling on levels without attention."""
    options = {"channels": 8, "blocks": 1, "multipliers": (1, 2), "attention": attention, "groups": 4}
    options |= {"downsample": "resblock", "upsample": "resblock"}
    ours = UNet(Shape(1, 1, (16, 16)), **options).eval()
    config = config_of(ours, ours.shape, unet_options(ours, options))
    theirs = diffusers.UNet2DModel(**config.model_dump()).eval()
    theirs.load_state_dict(diffusers_weights(ours.state_dict(), config.layout))
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        for weight in (*ours.parameters(), *theirs.parameters()):
            weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape))
    again = options_of(read_config(dict(theirs.config)), (16, 16))
    assert (again["downsample"], again["upsample"]) == ("resblock", "resblock")
    theirs.load_state_dict(diffusers_weights(ours.state_dict(), config.layout))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, torch.full((2,), TIME)), theirs(x, TIME).sample, rtol=1e-5, atol=1e-5)


def test_levels_that_resample_in_different_ways_are_refused_with_the_reason() -> None:
    """diffusers ignores downsample_type in DownBlock2D, so the levels differ."""
    down = TINY | {"down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), "downsample_type": "resnet"}
    down |= {"up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"), "block_out_channels": (8, 8, 8)}
    with pytest.raises(UsageError) as caught:
        read_config(down)
    assert any("downsample_type holds for blocks with attention only" in note for note in caught.value.notes)
    plain = read_config(TINY | {"downsample_type": "resnet", "upsample_type": "conv"})  # only DownBlock2D downsamples
    assert plain.layout.downsample == "conv"


def test_a_flow_matching_pipeline_is_imported_as_the_error_advises(tmp_path: Path) -> None:
    made = diffusers.DDPMPipeline(model(), diffusers.FlowMatchEulerDiscreteScheduler())
    made.save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler") as caught:
        import_folder(tmp_path / "in", tmp_path / "run")
    overrides = re.findall(r"--set (\S+)", str(caught.value.fix))
    assert len(overrides) == 4
    found = import_folder(tmp_path / "in" / "unet", tmp_path / "run", overrides=overrides)
    assert found.recipe.parameterization.name == "flow"
    assert torch.isfinite(found.sample(1, steps=2)).all()


def test_what_cannot_be_written_is_named_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a": torch.ones(2)}
    write_weights(tmp_path / "new" / "a.safetensors", weights)
    assert torch.equal(load_file(tmp_path / "new" / "a.safetensors")["a"], weights["a"])
    file = tmp_path / "file"
    file.touch()
    for write in (
        lambda: write_weights(file / "a.safetensors", weights),
        lambda: write_json(file / "config.json", "UNet2DModel", {}),
        lambda: write_model(file / "deep", "UNet2DModel", {}, weights),
    ):
        with pytest.raises(ResourceError, match="cannot write") as caught:
            write()
        assert caught.value.code == "DK412"
    with pytest.raises(UsageError, match="is not empty, or is a file"):
        write_model(file, "UNet2DModel", {}, weights)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_weights(tmp_path / "full" / "a.safetensors", weights)
    assert not list((tmp_path / "full").iterdir())
