"""SIGTERM and Ctrl-C, to the process or its group, wherever `diffkit run` is: exit 75, nothing lost, and it goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Server, events, fault, finished, run, steps

STEP, SAVE = "train.engine:Engine.advance", "storage.checkpoint:_write"
WHOLE = {"recipe": "uninterrupted", "streamed": "uninterrupted_streamed"}
# Where the signal comes, at which call of that function, and the steps of the checkpoints that are there afterwards.
TRAINING = [
    ("train.engine:Engine.batch_source", 1, [0]),
    (STEP, 1, [1]),
    (STEP, 8, [5, 8]),
    (SAVE, 2, [5, 10]),
    ("storage.checkpoint:CheckpointStore._publish", 1, [5]),
    ("storage.checkpoint:CheckpointStore._rotate", 3, [5, 10, 15]),
    ("runs.training:draw_samples", 1, [5, 10]),
    ("train.engine:Engine.validate", 1, [5, 10]),
]
# One after the other in a single run: before the first step, at steps 2, 5, 10, 15 and 20.
CHAIN = [
    ("train.engine:Engine.batch_source", 1),
    (STEP, 2),
    (SAVE, 1),
    ("train.engine:Engine.validate", 1),
    ("storage.checkpoint:CheckpointStore._publish", 1),
    ("runs.training:draw_samples", 1),
]
LATER = [
    ("runs.pipeline:draw_and_save", 1),
    ("runs.sampling:_Recorder.__call__", 3),
    ("runs.sample_files:_trajectory_arrays", 1),
    ("runs.sample_files:draw_samples", 1),
    ("runs.trained:measure", 1),
    ("runs.reporting:collect", 1),
    ("runs.reporting:build_report", 1),
]


def stop(diffkit: Server, recipe: Path, at: str, nth: int, signal: str, out: str = "run") -> None:
    """Run until the signal, and see that it stopped as it must."""
    ended = run(diffkit, recipe, out, [fault(at, nth, signal)])
    assert ended.code == 75, ended.err
    assert "run the same command again to continue" in ended.err
    place = recipe.with_name(out)
    assert events(place, "signal")[-1]["name"] == ("SIGINT" if signal.startswith("int") else "SIGTERM")
    where = re.search(r"stopped at step (\d+) of 20; a checkpoint is saved", ended.err)
    assert steps(place)[-1] == (int(where[1]) if where else 20)


def goes_on(diffkit: Server, recipe: Path, undisturbed: Path) -> None:
    """The same command finishes the run, as if nothing had happened."""
    ended = run(diffkit, recipe)
    assert ended.code == 0, ended.err
    left, whole = finished(recipe.parent / "run"), finished(undisturbed)
    assert left["samples"].items() <= whole["samples"].items()  # a preview that was given up is not drawn again
    assert left | {"samples": None} == whole | {"samples": None}


@pytest.mark.parametrize(("kind", "signal"), [("streamed", "term group"), ("recipe", "int")])
def test_one_run_that_is_stopped_everywhere(
    diffkit: Server, request: pytest.FixtureRequest, kind: str, signal: str
) -> None:
    """Reliability 4 and 6."""
    recipe = request.getfixturevalue(kind)
    places = CHAIN + LATER
    for at, nth in places if signal != "int" else places[1::5]:
        stop(diffkit, recipe, at, nth, signal)
    goes_on(diffkit, recipe, request.getfixturevalue(WHOLE[kind]))


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["term", "term group", "int group"])
@pytest.mark.parametrize("kind", ["recipe", "streamed"])
@pytest.mark.parametrize(("at", "nth", "saved"), [*TRAINING, *((at, nth, [10, 15, 20]) for at, nth in LATER)])
def test_every_place_and_every_signal(
    diffkit: Server, request: pytest.FixtureRequest, kind: str, at: str, nth: int, saved: list[int], signal: str
) -> None:
    recipe = request.getfixturevalue(kind)
    stop(diffkit, recipe, at, nth, signal)
    assert steps(recipe.with_name("run")) == saved
    goes_on(diffkit, recipe, request.getfixturevalue(WHOLE[kind]))


def test_a_signal_to_the_group_while_workers_start(diffkit: Server, streamed: Path) -> None:
    """They are born deaf: without that, one that has not yet said so dies, and the step that waits for it.

    That is the first step, or the second where the other worker has begun meanwhile.
    """
    waits, first = (streamed.parent / name for name in ("waits", "first"))
    waiting = fault(STEP, 1, f"once {waits}")
    starting = fault(
        "train.data_loading:ignore_stop_signals", 1, f"once {first}", f"await {waits}", "pause 0.1", "term group"
    )
    ended = run(diffkit, streamed, faults=[waiting, starting])
    assert ended.code == 75, ended.err
    assert steps(streamed.parent / "run") in ([1], [2])
    assert run(diffkit, streamed).code == 0


@pytest.mark.parametrize(
    ("at", "nth", "signals", "code"),
    [
        (STEP, 8, ("int", "pause 0.15", "int"), 130),
        (STEP, 8, ("term", "pause 0.15", "term"), 143),
        (SAVE, 2, ("int group", "pause 0.15", "int group"), 130),
        (STEP, 8, ("term", "term"), 75),
    ],
    ids=["Ctrl-C twice", "SIGTERM twice", "Ctrl-C twice in a save", "an echo of the first is no second"],
)
def test_a_second_signal_stops_at_once(
    diffkit: Server, streamed: Path, at: str, nth: int, signals: tuple[str, ...], code: int
) -> None:
    assert run(diffkit, streamed, "run", [fault(at, nth, *signals)]).code == code
    place = streamed.with_name("run")
    assert steps(place) == ([5] if code != 75 else [5, 8])
    assert run(diffkit, streamed).code == 0
    assert not list(place.rglob(".*"))
    assert steps(place) == [10, 15, 20]


def test_a_signal_after_the_last_stage_changes_nothing(diffkit: Server, recipe: Path) -> None:
    """The report is written: there is nothing left to stop, and nothing to run again."""
    ended = run(diffkit, recipe, "run", [fault("cli.running:_print_results", 1, "pause 0")])
    assert ended.code == 0
    assert (recipe.with_name("run") / "report.html").is_file()
