"""Several processes of one run: one choice of checkpoint, one error that is shown, and exit codes that are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .conftest import Ended, Server, events, fault, finished, ranks, steps

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
    """The second process has an older directory, so all of them end with one error."""
    assert codes(ranks(diffkit, recipe, 1)) == [0]
    ours, other = recipe.parent / "run", recipe.parent / "other" / "run"
    shutil.copytree(ours, other)
    for folder in (ours, other):
        (folder / "stages.json").unlink()
    shutil.rmtree(other / "checkpoints" / "step-00000020")
    ended = ranks(diffkit, recipe, 2, None, "--set", "train.steps=25", out=(ours, other))
    assert codes(ended) == [8, 8]
    assert shown(ended).startswith("error[DK605] this process cannot load the checkpoint of step 20")
    assert shown(ended).count("error[") == 1
    assert steps(ours)[-1] == 20


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
