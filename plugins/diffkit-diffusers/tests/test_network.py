"""Models of diffusers as networks: arguments from the data and from a folder, and classes that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.network import TINY, Diffusers, DiffusersUNet, ScaledTime

from diffkit import RecipeError, Shape, UsageError, build, conditions_of, load_recipe
from diffkit.ddpm.unet import UNet

PLAIN, LABELLED = Shape(1, 1, (8, 8)), Shape(1, 2, (8, 8), 4)
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2, "norm_num_groups": 1}
TEXT = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 5.5, 900.0])


def saved(folder: Path, **changes: Any) -> Any:
    """A tiny model in a folder, with weights that none shares."""
    torch.manual_seed(1)
    model = diffusers.UNet2DModel(**TINY | {"sample_size": 8, "in_channels": 1, "out_channels": 1} | changes).eval()
    model.save_pretrained(folder)
    return model


def test_a_model_answers_as_diffusers_does(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    ours = Diffusers(PLAIN, folder=str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(X, T), theirs(X, T).sample, rtol=0, atol=0)


def test_unet_from_a_folder_answers_as_diffusers_does(tmp_path: Path) -> None:
    theirs = saved(tmp_path, num_class_embeds=5, out_channels=2)
    ours = DiffusersUNet(LABELLED, str(tmp_path)).eval()
    label = torch.tensor([0, 4, 2])
    with torch.no_grad():
        torch.testing.assert_close(ours(X, T, label), theirs(X, T, label).sample, rtol=1e-5, atol=1e-5)
    assert isinstance(ours.unet, UNet)
    with pytest.raises(UsageError, match=r"\(1, 2, 5\)"):
        DiffusersUNet(PLAIN, str(tmp_path))


@pytest.mark.parametrize(("model", "config"), [("UNet2DModel", TINY), ("DiTTransformer2DModel", DIT)])
def test_shape_and_null_class_follow_from_the_data(model: Any, config: dict[str, Any]) -> None:
    network = Diffusers(LABELLED, model, config).eval()
    with torch.no_grad():
        y = network(X, T, torch.tensor([0, 1, 4]))
        assert y.shape == (3, 2, 8, 8)
        torch.testing.assert_close(network(X, T)[2], y[2])  # without a label it is the null class
        assert Diffusers(PLAIN, model, config).eval()(X, T).shape == (3, 1, 8, 8)


def test_text_reaches_the_model() -> None:
    network = Diffusers(PLAIN, "UNet2DConditionModel", TEXT).eval()
    with torch.no_grad():
        one, two = (network(X, T, encoder_hidden_states=torch.full((3, 5, 12), c)) for c in (0.0, 1.0))
    assert (one - two).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "StableDiffusionPipeline"}, "model"),
        ({"model": "os.system"}, "model"),
        ({"config": {"layers_per_blok": 1}}, "layers_per_blok"),
        ({"config": {"kwargs": 1}}, "kwargs"),
        ({"config": {"in_channels": 3}}, "in_channels"),
        (
            {"config": {"down_block_types": ["Nonsense", "DownBlock2D"], "block_out_channels": [16, 32]}},
            "does not accept",
        ),
        ({"config": TINY, "folder": "x"}, "both given"),
        ({"folder": "absent"}, "does not hold a diffusers model"),
    ],
)
def test_faults_are_reported_and_nothing_is_imported(options: dict[str, Any], message: str) -> None:
    with pytest.raises((RecipeError, UsageError), match=message):
        build("network", "diffusers", shape=PLAIN, **options)


def test_folders_are_data(tmp_path: Path) -> None:
    """Pickled weights, other classes, misfits and damage are refused."""
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(RecipeError, match="in_channels is 1"):
        Diffusers(Shape(3, 3, (8, 8)), folder=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(RecipeError, match="holds a VQModel"):
        Diffusers(PLAIN, folder=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(RecipeError, match="do not fit"):
        Diffusers(PLAIN, folder=str(tmp_path))
    for broken in ("{", "[1]", "[" * 100_000, json.dumps({"a": "x" * (1 << 20)})):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(UsageError) as caught:
            Diffusers(PLAIN, folder=str(tmp_path))
        assert caught.value.code == "DK080"
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read"):
        Diffusers(PLAIN, folder=str(tmp_path))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="holds no diffusion_pytorch_model"):
        Diffusers(PLAIN, folder=str(tmp_path))


def test_scaled_time_passes_another_number() -> None:
    inner = build("network", "mlp", shape=Shape(2, 2), width=16)
    x = torch.randn(3, 2)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.05)
        scaled = ScaledTime(inner, 0.25).eval()
        torch.testing.assert_close(scaled(x, 4.0 * T), inner(x, T), rtol=0, atol=0)
    labelled = build("network", "mlp", shape=Shape(2, 2, (), 3), width=16)
    label = torch.tensor([0, 1, 2])
    torch.testing.assert_close(ScaledTime(labelled, 2.0)(x, T, label), labelled(x, 2.0 * T, label=label))
    shape = Shape(1, 1, (8, 8), conditions={"size": (2,)}, extra_channels=1)
    wide = ScaledTime(build("network", "unet", shape=shape, channels=8, multipliers=(1,), blocks=1, attention=()), 2.0)
    assert conditions_of(wide) == conditions_of(wide.inner)
    y, more = torch.randn(3, 1, 8, 8), {"size": torch.randn(3, 2), "concat": torch.randn(3, 1, 8, 8)}
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(0.05)
        torch.testing.assert_close(wide(y, T, **more), wide.inner(y, 2.0 * T, **more), rtol=0, atol=0)
        assert not torch.equal(wide(y, T, **more), wide(y, T))


def test_the_recipe_is_valid_and_both_worlds_meet_in_one() -> None:
    recipe = load_recipe("digits-diffusers")
    assert (recipe.network.name, recipe.sample.sampler.name) == ("diffusers", "diffusers")
    theirs_in_ours = load_recipe("digits", ["sample.sampler={name: diffusers, scheduler: UniPCMultistepScheduler}"])
    assert theirs_in_ours.network.name == "unet"
