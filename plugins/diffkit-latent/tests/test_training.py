"""Recipes of task codec: training, resume, critics, reconstructions, what the run is used for, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffkit import DataError, RecipeError, Run, UsageError, load_recipe, open_run, run
from diffkit.basics.data.digits import Digits
from diffkit.cli.main import main
from diffkit.data import InMemorySplit
from diffkit.runs.dry_run import dry_run

pytestmark = pytest.mark.xdist_group("codec-training")

CODEC = {"name": "kl-vae", "factor": 2, "channels": 2, "width": 8}
ADVERSARIAL = {"name": "adversarial", "layers": 1, "width": 8, "start": 1, "adaptive": True}


def recipe(**changes: Any) -> dict[str, Any]:
    train = {"steps": 4, "batch_size": 8, "accumulate": 2, "ema": [0.5], "optimizer": {"name": "adam", "lr": 0.01}}
    return {
        "name": "vae",
        "task": "codec",
        "data": "digits",
        "codec": CODEC,
        "loss": ["l2", {"name": "kl", "weight": 1e-4}],
        "train": {**train, **changes.pop("train", {})},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    evaluate = {"metrics": ["psnr", "ssim", "frechet"], "count": 200}
    settings = {"steps": 60, "accumulate": 1, "batch_size": 16, "validate_every": 60, "sample_every": 60}
    return run(recipe(evaluate=evaluate, train=settings), tmp_path_factory.mktemp("vae") / "run")


def test_training_improves_on_principal_components(finished: Run, tmp_path: Path) -> None:
    start = run(recipe(train={"steps": 0}, evaluate={"metrics": ["psnr"], "count": 200}), tmp_path / "start")
    before, after = (one.results.metrics["psnr"] for one in (start, finished))
    assert after.value > before.value + 0.3
    assert after.needs == "pairs"
    low, high = after.intervals["psnr"]
    assert low < after.value < high
    assert after.train["psnr"] == pytest.approx(after.value, abs=1.0)
    assert finished.results.metrics["ssim"].value > start.results.metrics["psnr"].value / 100
    assert finished.results.metrics["frechet"].ratio > 1.0
    rows = [json.loads(line) for line in finished.directory.metrics.read_text().splitlines()]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_l2"] + rows[-1]["loss_kl"], rel=1e-5)
    assert {"held_out_loss", "held_out_loss_ema"} <= rows[-1].keys()


def test_psnr_is_that_of_the_decoded_means(finished: Run) -> None:
    parts = finished.trained_parts()
    split = parts.data.split("held-out")
    rows = [index * len(split) // 200 for index in range(200)]
    x = torch.stack([parts.data.to_model_range(split[row][0]) for row in rows])
    with torch.no_grad():
        made = parts.codec.decode(parts.codec.encode(x))
    y, z = ((one.double() + 1).mul(127.5).round().clamp(0, 255) / 255 for one in (x, made))
    each = -10 * (y - z).square().flatten(1).mean(1).log10()
    assert finished.results.metrics["psnr"].value == pytest.approx(float(each.mean()), abs=1e-3)


def test_reconstructions_and_report(finished: Run) -> None:
    stored = np.load(finished.directory.samples / "reconstructions.npz")
    assert stored["x"].shape == stored["view"].shape == (32, 8, 8, 1)
    widths = np.diff(stored["edges"])
    assert (stored["histogram"] * widths).sum(1) == pytest.approx(np.ones(2), abs=0.02)
    assert (stored["kl"] > 0).all()
    assert (finished.directory.samples / "grid.png").is_file()
    page = finished.directory.report.read_text()
    for text in ("Original, reconstruction, difference", "Channels of the codes", "KL is that of a dimension", "psnr"):
        assert text in page
    assert finished.results.verdict is None
    assert "verdict needs" not in page
    assert "Too few samples" not in page
    assert "Not in this report" not in page


@pytest.mark.slow
def test_a_diffusion_uses_the_run(finished: Run, tmp_path: Path) -> None:
    latent = {
        "name": "latent",
        "data": "digits",
        "codec": {"name": "trained", "run": str(finished.directory.path)},
        "schedule": "linear",
        "parameterization": "eps",
        "network": {"name": "unet", "channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "groups": 4},
        "objective": "simple",
        "sample": {"sampler": "ddim", "steps": 2, "count": 2},
        "train": {"steps": 2, "batch_size": 4, "ema": []},
    }
    made = run(latent, tmp_path / "latent")
    own, taken = finished.trained_parts().codec.state_dict(), made.trained().codec.inner.state_dict()
    assert all(torch.equal(own[name], taken[name]) for name in own)
    assert made.sample(2, steps=2).shape == (2, 1, 8, 8)


def test_it_draws_no_samples(finished: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sample", str(finished.directory.path), "--out", str(tmp_path / "x.png")]) == 2
    printed = capsys.readouterr().err
    assert "trains a codec, not a diffusion" in printed
    assert "codec: {name: trained, run: RUN}" in printed
    with pytest.raises(UsageError, match="trains a codec"):
        open_run(finished.directory.path).sample(2)
    with pytest.raises(UsageError, match="metric bits-per-dim measures a diffusion model"):
        finished.evaluate("bits-per-dim")


def tensors(place: Path, step: int) -> dict[str, Any]:
    """Return every tensor of a checkpoint by its file and name."""
    folder = place / "checkpoints" / f"step-{step:08d}"
    return {f"{path.name}/{k}": v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def assert_same(one: Path, two: Path, step: int) -> None:
    found, want = tensors(one, step), tensors(two, step)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": ["l1", ADVERSARIAL]},
        {"loss": ["l1", ADVERSARIAL | {"start": 3}]},
        {"codec": {"name": "vq-vae", "factor": 2, "codes": 16, "width": 8}, "loss": ["l2"]},
    ],
    ids=["kl", "adversarial", "adversarial-later", "vq"],
)
def test_resume_is_equal_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(recipe(**changes), tmp_path / "whole")
    run(recipe(**changes, train={"steps": 2}), tmp_path / "parts")
    run(recipe(**changes), tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts", 4)


@pytest.mark.slow
def test_the_log_has_the_use_of_the_codebook(tmp_path: Path) -> None:
    codec = {"name": "vq-vae", "factor": 2, "codes": 16, "width": 8}
    made = run(recipe(codec=codec, loss=["l2"], train={"steps": 2}, evaluate={}), tmp_path / "run")
    row = [json.loads(line) for line in made.directory.metrics.read_text().splitlines()][-1]
    assert row["loss"] == pytest.approx(row["loss_l2"] + row["loss_commitment"], rel=1e-5)
    quantizer = made.trained_parts("raw").codec.quantizer
    assert row["loss_perplexity"] == pytest.approx(float(quantizer.perplexity()), rel=0.2)
    assert 0.0 < row["loss_usage"] <= 1.0


def test_the_cost_of_a_run_includes_critics_that_begin_later() -> None:
    flops = [
        float(dry_run(load_recipe(recipe(loss=loss)), device="cpu")["FLOPs per image"].split()[0])
        for loss in (["l1"], ["l1", ADVERSARIAL | {"start": 2}])
    ]
    assert flops[1] > 1.5 * flops[0]


def test_the_critic_has_an_optimizer_of_its_own(tmp_path: Path) -> None:
    """Before `start` the codec does not feel the critic, which stays as it is; after it the critic learns."""
    loss, adamw = ["l1", ADVERSARIAL | {"start": 2}], {"name": "adamw", "lr": 0.003, "weight_decay": 0.1}
    run(recipe(loss=loss, train={"steps": 0}, evaluate={}), tmp_path / "untrained")
    run(recipe(loss=loss, train={"steps": 2, "optimizer": adamw}), tmp_path / "before")
    run(recipe(loss=["l1"], train={"steps": 2, "optimizer": adamw}), tmp_path / "plain")
    before, plain = tensors(tmp_path / "before", 2), tensors(tmp_path / "plain", 2)
    assert all(torch.equal(before[name], plain[name]) for name in plain)
    untrained = tensors(tmp_path / "untrained", 0)
    assert all(torch.equal(before[name], one) for name, one in untrained.items() if "critic" in name)
    run(recipe(loss=loss, train={"steps": 5, "optimizer": adamw}), tmp_path / "before")
    after = tensors(tmp_path / "before", 5)
    critic = [name for name in after if name.startswith("components") and "critic" in name]
    assert critic
    assert all(not torch.equal(before[name], after[name]) for name in critic if name.endswith("weight"))
    moments = [name for name in after if name.startswith("critics-optimizer") and name.endswith("exp_avg_sq")]
    assert len(moments) == len(critic)
    assert {float(after[name.replace("exp_avg_sq", "step")]) for name in moments} == {3.0}
    assert not any("critic" in name for name in after if name.startswith("optimizer"))
    row = json.loads((tmp_path / "before" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < row["critic_adversarial"] < 2


@pytest.mark.slow
def test_resume_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "vae.yaml"
    path.write_text(json.dumps(recipe(loss=["l1", ADVERSARIAL], train={"steps": 60, "checkpoint_every": 10})))
    command = [sys.executable, "-m", "diffkit", "run", str(path), "--quiet", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    while not list((tmp_path / "killed" / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "report.html").exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert_same(tmp_path / "whole", tmp_path / "killed", 60)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "adversarial"])
def test_two_processes_train_as_one(tmp_path: Path, loss: str) -> None:
    path = tmp_path / "vae.yaml"
    losses = {"kl": ["l2", "kl"], "adversarial": ["l1", ADVERSARIAL]}
    path.write_text(json.dumps(recipe(loss=losses[loss], train={"accumulate": 1})))
    command = [sys.executable, "-m", "diffkit", "run", str(path), "--quiet", "--device", "cpu", "--out"]
    subprocess.run([*command, str(tmp_path / "one")], check=True)
    subprocess.run([*command, str(tmp_path / "two"), "--nproc", "2"], check=True)
    found, want = tensors(tmp_path / "two", 4), tensors(tmp_path / "one", 4)
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        ({"sample": {"steps": 5}}, "sample: a codec recipe has no sample", "remove it, or set task: diffusion"),
        ({"network": "unet"}, "network: a codec recipe has no network", "remove it, or set task: diffusion"),
        ({"task": "codecs"}, 'task cannot be "codecs"', 'did you mean "codec"'),
        ({"loss": []}, "loss is an empty list", "list a reconstruction-loss"),
        ({"codec": "identity"}, "codec identity is not trained by a recipe", "choose a codec with weights of its own"),
        (
            {"evaluate": ["bits-per-dim"]},
            "bits-per-dim measures a diffusion model",
            "choose a metric of samples or of pairs",
        ),
        ({"codec": CODEC | {"factor": 3}}, "multiples of 3", "crop or resize 8 to 6 or 9"),
    ],
)
def test_bad_recipes_have_one_error(changes: dict[str, Any], message: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.yaml"
    path.write_text(json.dumps(recipe(**changes), indent=1))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert not caught.value.errors or len(caught.value.errors) == 1
    where = caught.value.where or caught.value.errors[0].where
    line = path.read_text().splitlines()[where.line - 1]
    assert next(iter(changes)) in line or "name" in line
    assert fix in caught.value.render()


def test_metrics_need_held_out_examples_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a plugin may hold none out."""
    whole = Digits.split
    monkeypatch.setattr(
        Digits,
        "split",
        lambda data, part: whole(data, part) if part == "train" else InMemorySplit(whole(data, part).x[:0]),
    )
    with pytest.raises(DataError, match="no example is held out"):
        run(recipe(evaluate=["psnr"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pairs_are_for_codecs() -> None:
    text = """
name: ddpm
data: digits
schedule: linear
parameterization: eps
network: unet
objective: simple
sample: {}
evaluate: [psnr]
train: {steps: 1}
"""
    with pytest.raises(RecipeError, match="metric psnr measures pairs of examples and reconstructions"):
        load_recipe(text)
