"""`diffkit run` on a disk that is full for a while, for good, read-only, or gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Server, at_once, events, fault, finished, records, run, steps

STEP = "train.engine:Engine.advance"
TRACKER = '''\
"""A tracker whose disk is full."""
from diffkit import Entry, hookimpl


@hookimpl
def diffkit_components():
    yield Entry("tracker", "unlucky", "unlucky:Unlucky", "never writes anything")


def __getattr__(name):
    if name != "Unlucky":
        raise AttributeError(name)
    from diffkit import Tracker

    class Unlucky(Tracker):
        def log(self, step, values):
            raise OSError(28, "No space left on device")

        def on_end(self, result):
            raise OSError(28, "No space left on device")

    globals()[name] = Unlucky
    return Unlucky
'''


def test_a_disk_that_is_full_for_a_while(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    """Reliability 7 and 8: training goes on, the lines that were lost are counted, the next save is in order.

    Full from step 8 on, with room again before step 12: the metrics of steps 9 and 10, the preview and the checkpoint
    of step 10, and the events that tell of them are lost.
    """
    ended = run(diffkit, recipe, faults=[fault(STEP, 8, "limit 0"), fault(STEP, 12, "unlimit")])
    assert ended.code == 0, ended.err
    assert "warning: save-failed (step 10): the checkpoint of step 10 was not saved" in ended.err
    assert "warning: preview-failed (step 10)" in ended.err
    place = recipe.with_name("run")
    left, whole = finished(place), finished(uninterrupted)
    assert left["files"] == whole["files"]
    assert left["metrics"] == [record for record in whole["metrics"] if record["step"] not in (9, 10)]
    assert left["results"] == whole["results"]
    assert steps(place) == [5, 15, 20]
    assert [event["lost_lines"] for event in events(place) if "lost_lines" in event] == [4]


def test_a_disk_that_stays_full(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    """Three saves in a row that fail end the run; with room again it goes on where it was saved last."""
    ended = run(diffkit, recipe, faults=[fault(STEP, 3, "limit 0")])
    assert ended.code == 6
    assert "error[DK410] the checkpoint of step 15 was not saved" in ended.err
    assert run(diffkit, recipe, faults=[fault(STEP, 18, "limit 0")]).code == 6
    place = recipe.with_name("run")
    assert steps(place) == [5, 10, 15]
    assert run(diffkit, recipe).code == 0
    assert finished(place) == finished(uninterrupted)


@pytest.mark.parametrize(
    "at", ["runs.sample_files:_trajectory_arrays", "runs.trained:measure", "runs.reporting:build_report"]
)
def test_a_disk_that_is_full_after_training(diffkit: Server, recipe: Path, uninterrupted: Path, at: str) -> None:
    ended = run(diffkit, recipe, faults=[fault(at, 1, "limit 0")])
    assert ended.code == 6
    assert "error[DK412] cannot write" in ended.err
    assert "free some space" in ended.err
    assert run(diffkit, recipe).code == 0
    assert finished(recipe.with_name("run")) == finished(uninterrupted)


def test_a_disk_that_is_too_small_is_refused_before_training(diffkit: Server, recipe: Path, may_mount: None) -> None:
    place = recipe.with_name("disk")
    place.mkdir()
    recipe.write_text(recipe.read_text().replace("width: 16", "width: 200"))
    ended = run(diffkit, recipe, "disk/run", faults=[at_once(f"small-disk {place}")])
    assert ended.code == 6
    assert "error[DK411] checkpoints need" in ended.err


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_directory(diffkit: Server, recipe: Path, may_mount: None, begun: bool) -> None:
    """Reliability 29: root may write whatever the permissions say, but not to a read-only file system."""
    place = recipe.with_name("disk")
    place.mkdir()
    if begun:
        assert run(diffkit, recipe, "disk/run", faults=[fault(STEP, 8, "term")]).code == 75
    ended = run(diffkit, recipe, "disk/run", faults=[at_once(f"read-only {place}")])
    assert ended.code == 6
    assert "error[DK412] cannot" in ended.err
    assert "Read-only file system" in ended.err
    if begun:
        assert run(diffkit, recipe, "disk/run").code == 0


def vanish(diffkit: Server, recipe: Path, back: int | None) -> Any:
    place = recipe.with_name("run")
    faults = [fault(STEP, 8, f"move {place} {place}.gone")]
    if back is not None:
        faults.append(fault(STEP, back, f"move {place}.gone {place}"))
    return run(diffkit, recipe, faults=faults)


def test_a_directory_that_vanishes_and_comes_back(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    ended = vanish(diffkit, recipe, 13)
    assert ended.code == 0, ended.err
    assert "run does not exist any more" in ended.err
    left, whole = finished(recipe.with_name("run")), finished(uninterrupted)
    assert left["files"] == whole["files"]
    assert left["metrics"] == whole["metrics"]
    assert events(recipe.with_name("run"), "save-failed")[0]["step"] == 10


def test_a_directory_that_vanishes_for_good(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    """One more try, then exit 6; nothing is made anew in its place, and what it held goes on elsewhere."""
    ended = vanish(diffkit, recipe, None)
    assert ended.code == 6
    assert "error[DK412]" in ended.err
    place = recipe.with_name("run")
    assert not place.exists()
    place.with_name("run.gone").rename(place)
    assert [record["step"] for record in records(place / "metrics.jsonl")][-1] == 15
    assert run(diffkit, recipe).code == 0
    assert finished(place)["files"] == finished(uninterrupted)["files"]


def test_a_tracker_that_cannot_write(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    (recipe.parent / "unlucky.py").write_text(TRACKER)
    recipe.write_text(recipe.read_text() + "trackers: [unlucky]\n")
    ended = run(diffkit, recipe, options=("-P", recipe.parent / "unlucky.py"))
    assert ended.code == 0, ended.err
    assert "warning: callback-failed: [Errno 28]" in ended.err
    assert finished(recipe.parent / "run") == finished(uninterrupted)
    assert (
        len(events(recipe.parent / "run", "callback-failed")) == len(records(recipe.parent / "run/metrics.jsonl")) + 1
    )
