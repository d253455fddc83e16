"""Several processes of one run: one choice of checkpoint, one error that is shown, and exit codes that are kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.storage.checkpoint import read_checkpoint
from diffkit.storage.manifest import candidates

from .conftest import DATA, RECIPE, Ended, Server, at_once, events, fault, finished, ranks, steps

STEP, SAVE = "train.engine:Engine.advance", "storage.checkpoint:_write"
QUICK = ("--set", "train.timeout=4")


def codes(ended: Sequence[Ended]) -> list[int | None]:
    return [one.code for one in ended]


def shown(ended: Sequence[Ended]) -> str:
    """The errors of all processes."""
    return "\n".join(line for one in ended for line in one.err.splitlines() if line.startswith("error["))


def failures(run: Path) -> dict[int, dict[str, Any]]:
    """The failures in a run directory, by process."""
    found = [json.loads(path.read_text("utf-8")) for path in (run / "failures").glob("rank-*.json")]
    return {record["rank"]: record for record in found}


def test_a_data_error_of_one_process_is_the_error_of_all(diffkit: Server, recipe: Path) -> None:
    ended = ranks(diffkit, recipe, 2, {1: [fault(STEP, 4, "error data")]})
    assert codes(ended) == [5, 5]
    assert shown(ended) == "error[DK300] an example cannot be read"
    found = failures(recipe.parent / "run")
    assert (found[1]["code"], found[1]["first"], found[0]["first"]) == ("DK300", True, False)
    assert "bug" not in {event["event"] for event in events(recipe.parent / "run")}
    assert not (recipe.parent / "run" / "crash.txt").exists()


def test_a_killed_process_ends_the_other_and_the_run_goes_on(diffkit: Server, recipe: Path) -> None:
    first, second = ranks(diffkit, recipe, 2, {1: [fault(STEP, 8, "kill")]})
    assert (first.code, second.code) == (11, -9)
    assert "another process ended first" in first.err
    assert codes(ranks(diffkit, recipe)) == [0, 0]
    assert events(recipe.parent / "run", "resume")[-1]["step"] == 5
    finished(recipe.parent / "run")


@pytest.mark.slow
def test_a_stopped_process_is_noticed(diffkit: Server, recipe: Path) -> None:
    first, second = ranks(diffkit, recipe, 2, {1: [fault(STEP, 8, "stop")]}, *QUICK)
    assert (first.code, second.code) == (11, -9)
    assert "process 1 has not answered for 4 s" in shown([first])
    assert (recipe.parent / "run" / "failures" / "rank-0.stacks.txt").stat().st_size > 100


def test_processes_that_see_different_checkpoints_are_refused(diffkit: Server, recipe: Path) -> None:
    """The second process does not see the newest checkpoint, and then has a copy of the run directory: one error."""
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    ours, other = recipe.parent / "run", recipe.parent / "other" / "run"
    (ours / "stages.json").unlink()
    shutil.copytree(ours, other)
    newest = ours / "checkpoints" / "step-00000020"
    gone = fault("storage.checkpoint:CheckpointStore.load_chosen", 1, f"move {newest} {recipe.parent / 'gone'}")
    ended = ranks(diffkit, recipe, 2, {1: [gone]}, "--set", "train.steps=25")
    assert codes(ended) == [8, 8]
    assert shown(ended).startswith("error[DK605] this process cannot load the checkpoint of step 20")
    assert shown(ended).count("error[") == 1
    assert steps(ours)[-1] == 15
    refused(diffkit, recipe, (ours, other))


def refused(diffkit: Server, recipe: Path, out: Sequence[Path], *options: str) -> None:
    """Two processes with two run directories end before they train, with one error that names both."""
    before = [steps(folder) if (folder / "checkpoints").is_dir() else [] for folder in out]
    quick = at_once("set diffkit.runtime.distributed SHARED_SECONDS 0.5")
    ended = ranks(diffkit, recipe, 2, {1: [quick]}, *options, "--set", "train.steps=25", out=out)
    assert codes(ended) == [2, 2]
    assert re.fullmatch(rf"error\[DK615\] {out[1]} of process 1 .* {out[0]} of the first process .*", shown(ended))
    assert [steps(folder) if (folder / "checkpoints").is_dir() else [] for folder in out] == before
    assert not list(out[0].glob(".tmp-*"))


def test_other_weights_in_one_process_are_refused(diffkit: Server, recipe: Path) -> None:
    """A memory fault changes one weight of one process; the next save finds it, and the last checkpoint is kept."""
    ended = ranks(diffkit, recipe, 2, {1: [fault(STEP, 7, "flip")]})
    assert codes(ended) == [8, 8]
    assert shown(ended) == "error[DK606] at step 10 process 1 has other weights than the first process"
    assert steps(recipe.parent / "run") == [5]


def test_a_stop_signal_to_one_process_stops_all(diffkit: Server, recipe: Path) -> None:
    ended = ranks(diffkit, recipe, 2, {1: [fault(STEP, 8, "term")]})
    assert codes(ended) == [75, 75]
    assert [one.err.count("stopped at step 8 of 20") for one in ended] == [1, 0]
    assert steps(recipe.parent / "run") == [5, 8]


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_is_one_error(diffkit: Server, recipe: Path) -> None:
    ended = ranks(diffkit, recipe, 3, None, "--set", "train.batch_size=2", "--set", "train.accumulate=1")
    assert codes(ended) == [2, 2, 2]
    assert shown(ended).count("error[") == 1


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint, whole."""
    found = read_checkpoint(candidates(run / "checkpoints")[0])
    return {f"{group}/{name}": t for group, named in found.tensors.items() for name, t in named.items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    """Equal to within `tolerance` of the largest weight."""
    assert one.keys() == other.keys()
    largest = max(float(t.abs().max()) for name, t in one.items() if name.startswith("network/"))
    for name, tensor in one.items():
        if not name.startswith("optimizer/"):
            assert float((tensor - other[name]).abs().max()) <= tolerance * largest, name


PATHS = [
    (("fsdp", 2), ("ddp", 1)),
    (("fsdp", 2), ("ddp", 1), ("fsdp", 3), ("ddp", 2)),
    (("ddp", 2), ("fsdp", 2), ("fsdp", 1), ("fsdp", 4)),
]


@pytest.mark.parametrize(
    "path",
    [PATHS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in PATHS[1:])],
    ids=lambda path: "-".join(f"{name}{size}" for name, size in path),
)
def test_processes_and_strategy_may_change_at_each_start(
    diffkit: Server, recipe: Path, path: tuple[tuple[str, int], ...]
) -> None:
    """Saved on N processes, resumed on M, with each strategy: the weights of one process, within rounding."""
    text = recipe.read_text().replace("dropout: 0.1", "dropout: 0.0").replace("sample_every: 10", "sample_every: 0")
    recipe.write_text(text)
    for number, (name, size) in enumerate(path):
        steps_now = f"train.steps={5 * (number + 1)}"
        ended = ranks(diffkit, recipe, size, None, "--set", steps_now, "--set", f"train.strategy={name}")
        assert codes(ended) == [0] * size, ended
    ours = recipe.parent / "run"
    assert len(events(ours, "resume")) == len(path) - 1
    alone = recipe.parent / "alone"
    assert codes(ranks(diffkit, recipe, 1, None, "--set", f"train.steps={5 * len(path)}", out=(alone,))) == [0]
    assert_close(weights(alone), weights(ours), 3e-5)


STARTS = [(strategy, size) for strategy in ("ddp", "fsdp") for size in (1, 2, 3, 4)]
"""Of a training: the strategy, and how many processes."""


@pytest.fixture(scope="module")
def saved(diffkit: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 10 steps of each start in the folders STRATEGY-SIZE, and one of 15 steps on one process in `alone`."""
    folder = tmp_path_factory.mktemp("saved")
    recipe = folder / "ring.yaml"
    text = RECIPE.replace("dropout: 0.1", "dropout: 0.0").replace("sample_every: 10", "sample_every: 0")
    recipe.write_text(text.replace("steps: 20", "steps: 10"))
    for strategy, size in STARTS:
        out = [folder / f"{strategy}-{size}"] * size
        assert codes(ranks(diffkit, recipe, size, None, "--set", f"train.strategy={strategy}", out=out)) == [0] * size
    assert codes(ranks(diffkit, recipe, 1, None, "--set", "train.steps=15", out=[folder / "alone"])) == [0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("before", STARTS, ids=str)
@pytest.mark.parametrize("after", STARTS, ids=str)
def test_any_start_continues_any_checkpoint(
    diffkit: Server, saved: Path, before: tuple[str, int], after: tuple[str, int]
) -> None:
    """Saved on N processes and continued on M, with both strategies: the weights of one process, within rounding."""
    run, (strategy, size) = saved / "again", after
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(saved / f"{before[0]}-{before[1]}", run)
    options = ("--set", "train.steps=15", "--set", f"train.strategy={strategy}")
    assert codes(ranks(diffkit, saved / "ring.yaml", size, None, *options, out=[run] * size)) == [0] * size
    assert [event["step"] for event in events(run, "resume")] == [10]
    assert_close(weights(saved / "alone"), weights(run), 3e-5)


@pytest.mark.slow
def test_processes_change_after_each_kill(diffkit: Server, recipe: Path) -> None:
    """A kill ends each start of 2, 1 and 3 processes; two processes then finish with the weights and samples of one."""
    recipe.write_text(recipe.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    run, alone = recipe.parent / "run", recipe.parent / "alone"
    for number, size in enumerate((2, 1, 3), 1):
        killed = ranks(diffkit, recipe, size, {size - 1: [fault(STEP, 8, "kill")]})
        assert codes(killed) == [11] * (size - 1) + [-9]
        assert steps(run)[-1] == 5 * number
    assert codes(ranks(diffkit, recipe, 2)) == [0, 0]
    assert [event["step"] for event in events(run, "resume")] == [5, 10, 15]
    assert codes(ranks(diffkit, recipe, 1, out=[alone])) == [0]
    assert_close(weights(alone), weights(run), 3e-5)
    for folder, size in ((run, 1), (recipe.parent / "copy", 3)):
        command = ("sample", run, "--count", "11", "--out", folder.with_suffix(".npz"))
        assert codes(ranks(diffkit, recipe, size, command=command)) == [0] * size
    assert run.with_suffix(".npz").read_bytes() == (recipe.parent / "copy.npz").read_bytes()


DIFFERENCES = ["older", "none", "damaged", "truncated", "of another run"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_processes_with_other_checkpoints_agree_or_end(
    diffkit: Server, recipe: Path, may_mount: None, strategy: str, rank: int, difference: str
) -> None:
    """One of two processes sees other checkpoints: they agree on one, or end with one error.

    If it has its own run directory, they are refused. If it has only the checkpoints of its own, what they save is of
    one training; where the first process has the older ones, both continue from them.
    """
    recipe.write_text(recipe.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    options = ("--set", f"train.strategy={strategy}")
    ours, other, alone = (recipe.parent / name / "run" for name in ("ours", "other", "alone"))
    assert codes(ranks(diffkit, recipe, 2, None, *options, out=[ours] * 2)) == [0, 0]
    shutil.copytree(ours, other)
    for folder in (ours, other):
        (folder / "stages.json").unlink()
    newest = other / "checkpoints" / "step-00000020"
    if difference == "older":
        shutil.rmtree(newest)
    elif difference == "none":
        shutil.rmtree(newest.parent)
        newest.parent.mkdir()
    elif difference == "of another run":
        seeded = recipe.parent / "seeded"
        assert codes(ranks(diffkit, recipe, 2, None, *options, "--set", "seed=5", out=[seeded] * 2)) == [0, 0]
        shutil.rmtree(newest)
        shutil.copytree(seeded / "checkpoints" / newest.name, newest)
    else:
        (file,) = newest.glob("ema-ema.safetensors") if strategy == "ddp" else newest.glob("ema-ema-00001-*")
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content if difference == "damaged" else content[:-8])
    first, second = (other, ours) if rank == 0 else (ours, other)
    refused(diffkit, recipe, (first, second), *options)
    own = {rank: [at_once(f"bind {other / 'checkpoints'} {ours / 'checkpoints'}")]}
    ended = ranks(diffkit, recipe, 2, own, *options, "--set", "train.steps=25", out=[ours] * 2)
    assert codes(ended) in ([0, 0], [6, 6], [8, 8])
    assert shown(ended).count("error[") == int(codes(ended) != [0, 0])
    if 25 in steps(first):
        assert codes(ranks(diffkit, recipe, 1, None, "--set", "train.steps=25", out=[alone])) == [0]
        assert_close(weights(alone), weights(first), 3e-5)


FSDP = ("--set", "train.strategy=fsdp")


def test_shards_have_the_guarantees_of_checkpoints(diffkit: Server, recipe: Path) -> None:
    """A missing shard is found and the checkpoint before is taken; the shards become one file on request."""
    assert codes(ranks(diffkit, recipe, 2, None, *FSDP)) == [0, 0]
    run = recipe.parent / "run"
    newest = run / "checkpoints" / "step-00000020"
    names = {path.name for path in newest.iterdir()}
    assert {"network-00001-of-00002.safetensors", "network-00002-of-00002.safetensors"} <= names
    sharded = weights(run)
    assert diffkit("checkpoints", run, "--consolidate", "--verify").code == 0
    assert "network.safetensors" in {path.name for path in newest.iterdir()}
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in weights(run).items())

    (run / "checkpoints" / "step-00000015" / "network-00002-of-00002.safetensors").unlink()
    shutil.rmtree(newest)
    (run / "stages.json").unlink()
    assert codes(ranks(diffkit, recipe, 2, None, *FSDP)) == [0, 0]
    assert events(run, "damaged-checkpoint")[-1]["reason"] == "network-00002-of-00002.safetensors is missing"
    assert events(run, "resume")[-1]["step"] == 10
    assert_close(weights(run), sharded, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_is_killed_as_it_saves_shards(diffkit: Server, recipe: Path, rank: int) -> None:
    ended = ranks(diffkit, recipe, 2, {rank: [fault(SAVE, 2, "kill")]}, *FSDP)
    assert sorted(codes(ended), key=str) == [-9, 11]
    assert steps(recipe.parent / "run") == [5]
    assert codes(ranks(diffkit, recipe, 2, None, *FSDP)) == [0, 0]
    assert events(recipe.parent / "run", "resume")[-1]["step"] == 5


@pytest.mark.slow
def test_a_full_disk_of_one_process_fails_the_save_of_all(diffkit: Server, recipe: Path) -> None:
    full = [fault(SAVE, 2, "limit 100"), fault(SAVE, 3, "unlimit")]
    ended = ranks(diffkit, recipe, 2, {1: full}, *FSDP)
    assert codes(ended) == [0, 0]
    assert [event["step"] for event in events(recipe.parent / "run", "save-failed")] == [10]
    assert steps(recipe.parent / "run") == [5, 15, 20]


def test_samples_of_several_processes_are_those_of_one(diffkit: Server, recipe: Path) -> None:
    """The bytes of the samples, and the results of the metrics; samples of an evaluation that was stopped are kept."""
    metrics = "[sliced-wasserstein, frechet, bits-per-dim]"
    recipe.write_text(recipe.read_text().replace("[sliced-wasserstein]", metrics))
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    run, other = recipe.parent / "run", recipe.parent / "other" / "run"
    shutil.copytree(run, other)
    stages = json.loads((other / "stages.json").read_text())
    (other / "stages.json").write_text(json.dumps({"train": stages["train"]}))
    for path in (other / "samples" / "samples.npz", other / "results.json"):
        path.unlink()
    shutil.rmtree(other / "likelihood")
    killed = ranks(diffkit, recipe, 2, {0: [fault("runs.trained:measure", 2, "kill")]}, out=[other] * 2)
    assert codes(killed) == [-9, 11]
    again = fault("runs.sample_files:SharedDraw.write", 1, "exit 3")
    assert codes(ranks(diffkit, recipe, 3, {1: [again], 2: [again]}, out=[other] * 3)) == [0, 0, 0]
    assert finished(other) == finished(run)


@pytest.mark.slow
def test_commands_of_several_processes_do_what_one_does(diffkit: Server, recipe: Path) -> None:
    """`sample` and `evaluate`: the same file, the same numbers, and one error."""
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    run, other = recipe.parent / "run", recipe.parent / "other"
    shutil.copytree(run, other)
    for size, folder, file in ((1, run, "one.npz"), (2, other, "two.npz")):
        command = ("sample", folder, "--count", "11", "--out", folder.parent / file)
        assert codes(ranks(diffkit, recipe, size, command=command)) == [0] * size
        command = ("evaluate", folder, "--metric", "frechet", "--metric", "mmd")
        assert codes(ranks(diffkit, recipe, size, command=command)) == [0] * size
    assert (recipe.parent / "one.npz").read_bytes() == (recipe.parent / "two.npz").read_bytes()
    assert finished(other)["results"] == finished(run)["results"]
    assert not list(recipe.parent.rglob("*.parts*"))
    ended = ranks(diffkit, recipe, 2, command=("evaluate", other, "--metric", "frechet", "--weights", "none"))
    assert codes(ended) == [2, 2]
    assert shown(ended).count("error[") == 1


OTHER_TASKS = {
    "codec": """\
name: other
task: codec
data: digits
codec: {name: kl-vae, factor: 2, channels: 2, width: 8}
loss: [l2]
train: {steps: 4, batch_size: 16}
evaluate: {metrics: [psnr, ssim, frechet, nearest-neighbour], count: 150}
""",
    "classifier": """\
name: other
task: classifier
data: {name: digits, labels: true}
schedule: {name: linear, steps: 100, beta_start: 1.0e-3, beta_end: 0.2}
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: [], time: scale-shift}
train: {steps: 4, batch_size: 16}
evaluate: {metrics: [accuracy], count: 150}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_processes_measure_codecs_and_classifiers_as_one(diffkit: Server, tmp_path: Path, task: str) -> None:
    """`run` on two processes measures on both; `evaluate` of the run of one gives its numbers on three."""
    recipe = tmp_path / "other.yaml"
    recipe.write_text(OTHER_TASKS[task])
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    run, other = tmp_path / "run", tmp_path / "two" / "run"
    shutil.copytree(run, other)
    (other / "results.json").unlink()
    shutil.rmtree(other / "samples")
    stages = json.loads((other / "stages.json").read_text())
    (other / "stages.json").write_text(json.dumps({"train": stages["train"]}))
    assert codes(ranks(diffkit, recipe, 2, out=[other] * 2)) == [0, 0]
    assert finished(other) == finished(run)
    (other / "results.json").unlink()
    assert codes(ranks(diffkit, recipe, 3, command=("evaluate", other))) == [0, 0, 0]
    assert finished(other)["results"] == finished(run)["results"]
    assert not list(tmp_path.rglob("*.f32"))


def write_shards(diffkit: Server, recipe: Path) -> Path:
    """Forty pictures in tar shards, 32 of them to train on, and a recipe that reads them by two workers."""
    pictures, out = recipe.parent / "pictures", recipe.parent / "shards"
    pictures.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    assert diffkit("shards", pictures, out).code == 0
    text = recipe.read_text().replace(DATA, "{name: shards, path: shards, held_out: 8, workers: 2}")
    network = "network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: [], dropout: 0.0}"
    lines = [network if line.startswith("network") else line for line in text.splitlines()]
    recipe.write_text("\n".join(lines).replace("batch_size: 16", "batch_size: 12"))
    return out


@pytest.mark.slow
def test_shards_are_read_on_after_a_kill_within_an_epoch(diffkit: Server, recipe: Path) -> None:
    """Two processes are killed within an epoch, and one continues: the weights and samples of one process."""
    write_shards(diffkit, recipe)
    killed = ranks(diffkit, recipe, 2, {1: [fault(STEP, 8, "kill")]})
    assert codes(killed) == [11, -9]
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    run, alone = recipe.parent / "run", recipe.parent / "alone"
    assert events(run, "resume")[-1]["step"] == 5
    assert codes(ranks(diffkit, recipe, 1, out=[alone])) == [0]
    assert_close(weights(run), weights(alone), 1e-5)


@pytest.mark.slow
def test_a_changed_shard_is_one_error_of_all_processes(diffkit: Server, recipe: Path) -> None:
    (shard,) = write_shards(diffkit, recipe).glob("*.tar")
    content = bytearray(shard.read_bytes())
    for start in range(0, len(content) - 1536, 1024):  # headers and pictures take 512 bytes each
        content[start + 530] ^= 1
    shard.write_bytes(content)
    ended = ranks(diffkit, recipe, 2)
    assert codes(ended) == [5, 5]
    assert shown(ended).count("error[") == 1
    assert "error[DK315]" in shown(ended)


PLACES = {
    "start": "runs.training:make_trainer",
    "step": STEP,
    "save": SAVE,
    "preview": "runs.training:_Preview.__call__",
    "sampling": "runs.sample_files:SharedDraw.write",
    "evaluation": "runs.trained:measure",
}
ENDS = {
    "kill": (-9, 11),
    "stop": (-9, 11),
    "exit 17": (17, 11),
    "error data": (5, 5),
    "error bug": (1, 1),
    "memory": (6, 6),
    "limit 100": (6, 6),
}
"""The codes of the process at fault and of the other one."""
SEVERAL = ("kill", "stop", "error data", "memory")
FAULTS = [
    *((place, do) for place in PLACES for do in SEVERAL),
    *((place, do) for place in ("step", "evaluation") for do in ("exit 17", "error bug")),
    ("sampling", "limit 100"),
]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("place", "do"), FAULTS)
def test_faults_by_place_and_process(diffkit: Server, recipe: Path, place: str, do: str, rank: int) -> None:
    """A fault ends both processes with its code and one error at most, and one process then finishes the run.

    The processes share the weights, so that both of them save and draw previews.
    """
    ended = ranks(diffkit, recipe, 2, {rank: [fault(PLACES[place], 1, do)]}, *FSDP, "--set", "train.timeout=8")
    assert (codes(ended)[rank], codes(ended)[1 - rank]) == ENDS[do], ended
    assert shown(ended).count("error[") <= 1
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    finished(recipe.parent / "run")
