"""Damaged checkpoints of a run: what `diffkit run` falls back to, and what it says where nothing is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import RECIPE, Server, events, fault, finished, run, steps


def damage(run: Path, step: int) -> None:
    """Turn one bit of the network of a checkpoint."""
    path = run / "checkpoints" / f"step-{step:08d}" / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def killed(diffkit: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Copies of runs that were killed in step 18, or when they would have begun to sample."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "ring.yaml").write_text(RECIPE)
    for name, at, nth in (
        ("training", "train.engine:Engine.advance", 18),
        ("trained", "runs.pipeline:draw_and_save", 1),
    ):
        assert run(diffkit, folder / "ring.yaml", name, [fault(at, nth, "kill")]).code == -9

    def copy(name: str, recipe: Path) -> Path:
        return Path(shutil.copytree(folder / name, recipe.parent / "run"))

    return copy


def test_the_newest_is_damaged(
    diffkit: Server, recipe: Path, uninterrupted: Path, killed: Callable[[str, Path], Path]
) -> None:
    """Reliability 9."""
    place = killed("training", recipe)
    assert steps(place) == [5, 10, 15]
    damage(place, 15)
    ended = run(diffkit, recipe)
    assert ended.code == 0
    assert "warning: damaged-checkpoint (step 15): the content of network.safetensors has changed" in ended.err
    assert events(place, "damaged-checkpoint")[0]["step"] == 15
    assert events(place, "resume")[0]["step"] == 10
    assert finished(place) == finished(uninterrupted)


def test_the_last_is_damaged_when_training_is_done(
    diffkit: Server, recipe: Path, uninterrupted: Path, killed: Callable[[str, Path], Path]
) -> None:
    """Nothing is sampled from older weights in silence: the last steps are trained again."""
    place = killed("trained", recipe)
    damage(place, 20)
    assert run(diffkit, recipe).code == 0
    assert events(place, "resume")[0]["step"] == 15
    assert finished(place) == finished(uninterrupted)


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_all_are_damaged(diffkit: Server, recipe: Path, killed: Callable[[str, Path], Path], mode: str) -> None:
    """Reliability 9 and 10: each candidate is named, and nothing begins anew unless it is told to."""
    place = killed("training", recipe)
    for step in steps(place):
        damage(place, step)
    ended = run(diffkit, recipe, options=("--resume", mode))
    assert ended.code == 8
    assert "error[DK600] none of the 3 checkpoints" in ended.err
    for step in (5, 10, 15):
        assert f"step-{step:08d}: the content of network.safetensors has changed" in ended.err
    assert "fix: start again with --resume never" in ended.err
    assert steps(place) == [5, 10, 15]
    assert run(diffkit, recipe, options=("--resume", "never")).code == 0
    assert steps(place.with_name("run.1")) == [5, 10, 15]


@pytest.mark.parametrize("begun", [False, True])
def test_must_without_any(diffkit: Server, recipe: Path, begun: bool) -> None:
    if begun:
        assert run(diffkit, recipe, faults=[fault("train.engine:Engine.advance", 3, "kill")]).code == -9
    ended = run(diffkit, recipe, options=("--resume", "must"))
    assert ended.code == 8
    assert "holds no checkpoint to resume from" in ended.err


def test_samples_of_older_weights_are_announced(
    diffkit: Server, recipe: Path, killed: Callable[[str, Path], Path]
) -> None:
    place = killed("training", recipe)
    damage(place, 15)
    ended = diffkit("sample", place, "--count", "4", "--format", "npz", "-q", "--device", "cpu")
    assert ended.code == 0
    assert "the checkpoint of step 15 is skipped: the content of network.safetensors" in ended.err


@pytest.mark.parametrize("damaged", [False, True])
def test_checkpoints_are_verified_without_torch(
    recipe: Path, killed: Callable[[str, Path], Path], damaged: bool
) -> None:
    place = killed("training", recipe)
    if damaged:
        damage(place, 10)
    script = "import sys; sys.modules['torch'] = None; from diffkit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "checkpoints", str(place), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (8 if damaged else 0), done.stderr
    assert done.stdout.count("whole") == (2 if damaged else 3)
    assert ("damaged" in done.stdout) == damaged


def test_a_run_that_another_process_took_over_stops_before_it_saves(
    diffkit: Server, recipe: Path, uninterrupted: Path
) -> None:
    """A network file system whose locks mean nothing: the name in LOCK is what is left to see it by."""
    place = recipe.parent / "run"
    (recipe.parent / "other").write_text('{"run_id": "0", "host": "elsewhere", "pid": 7, "since": "today"}')
    taken = fault("train.engine:Engine.advance", 8, f"move {recipe.parent}/other {place}/LOCK")
    ended = run(diffkit, recipe, faults=[taken])
    assert ended.code == 9
    assert "was taken over by process 7 on elsewhere since today" in ended.err
    assert steps(place) == [5]
    assert run(diffkit, recipe).code == 0
    assert finished(place) == finished(uninterrupted)
