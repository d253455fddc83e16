"""Folders of diffusers to runs and back, through the library and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.importing import export_run, import_folder

from diffkit import DataError, RecipeError, UsageError, open_run, run
from diffkit.cli.main import main

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def pipeline(folder: Path, scheduler: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**TINY | changes)
    made = diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler(num_train_timesteps=100))
    made.save_pretrained(folder)
    return made


def test_there_and_back_is_byte_equal(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, variance_type="fixed_large", clip_sample_range=2.0)
    made = pipeline(tmp_path / "theirs", scheduler)
    imported = import_folder(tmp_path / "theirs", tmp_path / "run")
    assert imported.recipe.schedule.options["steps"] == 100
    assert torch.isfinite(imported.sample(2, steps=3)).all()
    place = export_run(tmp_path / "run", tmp_path / "back")
    assert place == tmp_path / "back" / "unet"
    assert (place / WEIGHTS).read_bytes() == (tmp_path / "theirs" / "unet" / WEIGHTS).read_bytes()
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "back")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.unet(x, 5).sample, made.unet.eval()(x, 5).sample, rtol=0, atol=0)
    torch.testing.assert_close(again.scheduler.alphas_cumprod, made.scheduler.alphas_cumprod)
    kept = ("clip_sample", "clip_sample_range", "variance_type", "prediction_type")
    assert [again.scheduler.config[name] for name in kept] == [True, 2.0, "fixed_large", "epsilon"]


def test_a_model_without_a_scheduler(tmp_path: Path) -> None:
    pipeline(tmp_path / "theirs", sample_size=None)
    folder = tmp_path / "theirs" / "unet"
    with pytest.raises(UsageError, match="no sample_size"):
        import_folder(folder, tmp_path / "run")
    found = import_folder(folder, tmp_path / "run", size=(8, 16), overrides=["sample.count=3"])
    assert found.sample(1, steps=1).shape == (1, 1, 8, 16)
    assert (found.recipe.sample.count, found.recipe.schedule.options["steps"]) == (3, 1000)


@pytest.mark.parametrize(
    ("scheduler", "schedule", "prediction", "sampler", "clips"),
    [
        (
            diffusers.DDPMScheduler(
                beta_schedule="scaled_linear", variance_type="fixed_large", prediction_type="sample"
            ),
            ("scaled-linear", 1000),
            "x0",
            {"variance": "large"},
            True,
        ),
        (
            diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False),
            ("linear", 50),
            "eps",
            {"scheduler": "DDIMScheduler"},
            False,
        ),
    ],
)
def test_the_scheduler_becomes_schedule_prediction_and_sampler(
    tmp_path: Path, scheduler: Any, schedule: tuple[str, int], prediction: str, sampler: dict[str, Any], clips: bool
) -> None:
    pipeline(tmp_path / "theirs", scheduler)
    recipe = import_folder(tmp_path / "theirs", tmp_path / "run").recipe
    assert (recipe.schedule.name, recipe.schedule.options["steps"]) == schedule
    assert recipe.parameterization.name == prediction
    assert sampler.items() <= recipe.sample.sampler.options.items()
    assert [one.name for one in recipe.sample.guidance] == (["clip"] if clips else [])


def test_a_learned_variance_keeps_its_head(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", num_train_timesteps=10)
    pipeline(tmp_path / "theirs", scheduler, out_channels=2)
    found = import_folder(tmp_path / "theirs", tmp_path / "run")
    assert found.recipe.parameterization.name == "learned-range"
    assert found.recipe.sample.sampler.options == {"variance": "learned"}
    assert torch.isfinite(found.sample(2, steps=2)).all()
    assert export_run(tmp_path / "run", tmp_path / "back") == tmp_path / "back"  # no pipeline has learned-range


@pytest.mark.parametrize(
    ("config", "message"),
    [({"trained_betas": [0.1, 0.2]}, "trained_betas"), ({"beta_schedule": "sigmoid"}, "beta_schedule")],
)
def test_schedulers_that_no_recipe_can_express_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    pipeline(tmp_path / "theirs", diffusers.DDPMScheduler(num_train_timesteps=2, **config))
    with pytest.raises(UsageError) as caught:
        import_folder(tmp_path / "theirs", tmp_path / "run")
    assert any(message in note for note in caught.value.notes)
    assert not (tmp_path / "run").exists()


def test_labels_are_counted_aloud(tmp_path: Path) -> None:
    """A config does not define whether the last label is the null class."""
    made = pipeline(tmp_path / "theirs", num_class_embeds=4)
    table = made.unet.class_embedding.weight
    for classes in (None, 2, 5):
        with pytest.raises(UsageError, match="4 labels"):
            import_folder(tmp_path / "theirs", tmp_path / "run", classes=classes)
    for classes in (3, 4):
        found = import_folder(tmp_path / "theirs", tmp_path / f"run{classes}", classes=classes)
        ours = found.trained().network.state_dict()["embedding.table.weight"]
        assert torch.equal(ours[:4], table)
        assert len(ours) == classes + 1
    assert not ours[4].any()
    pipeline(tmp_path / "plain")
    with pytest.raises(UsageError, match="no labels"):
        import_folder(tmp_path / "plain", tmp_path / "run", classes=3)


def test_data_can_be_named_and_is_missing_otherwise(tmp_path: Path) -> None:
    pipeline(tmp_path / "theirs")
    named = import_folder(tmp_path / "theirs", tmp_path / "named", data={"name": "digits", "labels": False})
    assert len(named.assembly.data.split("train")) == 1285
    bare = import_folder(tmp_path / "theirs", tmp_path / "bare")
    with pytest.raises(DataError) as caught:
        bare.assembly.data.split("train")
    assert caught.value.code == "DK311"
    assert bare.assembly.data.fingerprint() != named.assembly.data.fingerprint()
    with pytest.raises(RecipeError):
        import_folder(tmp_path / "theirs", tmp_path / "wrong", overrides=["sample.steps=101"])
    with pytest.raises(UsageError, match="does not hold a diffusers model"):
        import_folder(tmp_path, tmp_path / "wrong")


@pytest.mark.slow
def test_trained_runs_of_three_networks_are_exported(tmp_path: Path) -> None:
    """unet, a model of diffusers, and unet from a folder; diffusers answers as the run does."""
    pipeline(tmp_path / "theirs")
    networks = {
        "unet": "{name: unet, channels: 16, multipliers: [1, 2], blocks: 1, attention: [4], groups: 8}",
        "diffusers": f"{{name: diffusers, folder: {tmp_path / 'theirs' / 'unet'}}}",
        "diffusers-unet": f"{{name: diffusers-unet, folder: {tmp_path / 'theirs'}}}",
    }
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 3.0])
    for name, network in networks.items():
        text = f"""
name: tiny
data: {{name: digits, labels: false}}
schedule: {{name: linear, steps: 20}}
parameterization: eps
network: {network}
train: {{steps: 2, batch_size: 8, ema: 0.9}}
sample: {{count: 2}}
"""
        finished = run(text, tmp_path / name, device="cpu")
        place = export_run(tmp_path / name, tmp_path / f"{name}-out", weights="raw")
        theirs = diffusers.UNet2DModel.from_pretrained(place).eval()
        with torch.no_grad():
            want = finished.trained("raw").network(x, t)
            torch.testing.assert_close(theirs(x, 3).sample, want, rtol=1e-4, atol=1e-5)
        with pytest.raises(UsageError, match="not empty"):
            export_run(tmp_path / name, tmp_path / f"{name}-out")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(tmp_path / "theirs", num_class_embeds=3)
    theirs, out = str(tmp_path / "theirs"), str(tmp_path / "run")
    assert main(["import-diffusers", theirs, out, "--size", "nonsense"]) == 2
    assert main(["import-diffusers", theirs, out, "--data", "digits,labels"]) == 2
    assert main(["import-diffusers", theirs, out]) == 2
    data = "shape-only,channels=1,size=[16,16],classes=2"
    arguments = ["--size", "16x16", "--classes", "2", "--data", data, "--set", "sample.steps=2"]
    assert main(["import-diffusers", theirs, out, *arguments]) == 0
    assert main(["sample", out, "--count", "2", "-q"]) == 0
    assert main(["export-diffusers", out, str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "model_index.json").is_file()
    assert open_run(out, device="cpu").assembly.shape.size == (16, 16)
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    assert main(["import-openai", str(tmp_path / "model.pt"), str(tmp_path / "other"), "--size", "8"]) == 2
    assert "DK082" in capsys.readouterr().err
