"""The append-only logs of a run."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from diffkit.errors import CheckpointError, ResourceError
from diffkit.storage import jsonl
from diffkit.storage.jsonl import Event, EventLog, read_events, read_metrics, read_records


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    with EventLog(tmp_path) as journal:
        journal.metric({"step": 1, "loss": 0.5})
        journal.metric({"step": 2, "loss": float("nan"), "parts": [float("inf"), 1]})
        journal.event("start", {"step": 0})
        journal.event("save")
        journal.sync()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "parts": [None, 1]},
    ]
    events = lines(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["start", "save"]
    assert events[0]["step"] == 0
    assert str(events[0]["time"]).endswith("+00:00")


def test_a_torn_last_line_is_dropped_when_the_log_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_records(path)] == [1, 2]
    with EventLog(tmp_path) as journal:
        journal.metric({"step": 3})
    assert [record["step"] for record in lines(path)] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b"x" * 200_000, b""])
def test_a_torn_line_of_any_length_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + torn)
    EventLog(tmp_path).close()
    assert path.read_bytes() == b'{"event": "start"}\n'
    path.write_bytes(torn)
    EventLog(tmp_path).close()
    assert path.read_bytes() == b""


@given(stop=st.integers(1, 8), resumed=st.integers(0, 8), cut=st.integers(0, 30))
def test_resumed_metrics_equal_those_of_an_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, stop: int, resumed: int, cut: int
) -> None:
    """pains 6: a run that died at `stop` and goes on from step `resumed` leaves the same file, byte for byte."""
    whole, torn = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("torn")
    resumed = min(resumed, stop)

    def write(directory: Path, first: int, last: int) -> None:
        with EventLog(directory) as journal:
            journal.rewind(first - 1)
            for step in range(first, last + 1):
                journal.metric({"step": step, "loss": 1 / step})

    write(whole, 1, 9)
    write(torn, 1, stop)
    path = torn / "metrics.jsonl"
    reached = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, resumed + 1)]
    path.write_bytes(path.read_bytes()[: max(len("".join(reached)), path.stat().st_size - cut)])
    write(torn, resumed + 1, 9)
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"step": true}\n{"step": 2}\n{"step": 3}\n')
    assert len(list(read_records(path))) == 4
    with EventLog(tmp_path) as journal:
        journal.rewind(2)
        journal.metric({"step": 3, "again": 1})
    assert lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1}]


@pytest.mark.slow
def test_a_million_lines_are_quick(tmp_path: Path) -> None:
    """To continue a run and to read its numbers, in CPU seconds; 3 and 2 are usual."""
    line = '{"step": %d, "loss": 1.1021746794382732, "lr": 0.0002, "memory": 352870400}\n'
    with open(tmp_path / "metrics.jsonl", "w") as stream:
        stream.writelines(line % step for step in range(1, 1_000_001))
    began = time.process_time()
    with EventLog(tmp_path) as journal:
        journal.rewind(999_990)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert time.process_time() - began < 15
    assert 50_000 <= len(rows) <= 100_000
    assert rows[-1]["step"] > 990_000  # type: ignore[operator]


def test_rewinding_leaves_the_events(tmp_path: Path) -> None:
    with EventLog(tmp_path) as journal:
        journal.event("start")
        journal.metric({"step": 1})
        before = (tmp_path / "metrics.jsonl").stat().st_ino
        journal.rewind(1)
        assert (tmp_path / "metrics.jsonl").stat().st_ino == before
        journal.rewind(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert len(lines(tmp_path / "events.jsonl")) == 1


@pytest.mark.parametrize("written", [None, 5], ids=["nothing", "a part"])
def test_a_full_disk_is_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None) -> None:
    journal = EventLog(tmp_path)
    journal.metric({"step": 1})
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:written])

    monkeypatch.setattr(os, "write", full)
    journal.metric({"step": 2})
    journal.metric({"step": 3})
    journal.event("save")
    assert journal.lost_lines == 3
    monkeypatch.undo()
    journal.metric({"step": 4})
    journal.event("save")
    journal.event("save")
    journal.close()
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == [1, 4]
    assert [event.get("lost_lines") for event in lines(tmp_path / "events.jsonl")] == [3, None]


def test_a_limit_of_the_kernel_tears_no_line(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: the kernel takes a part of the line, then nothing."""
    code = (
        "import resource, sys; from pathlib import Path; from diffkit.storage.jsonl import EventLog;"
        f"journal = EventLog(Path({str(tmp_path)!r}));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY));"
        "[journal.metric({'step': step, 'loss': 0.125}) for step in range(30)];"
        "assert journal.lost_lines == 23, journal.lost_lines;"
        "journal.event('save')"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == list(range(7))
    assert lines(tmp_path / "events.jsonl")[0]["lost_lines"] == 23


def test_a_log_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_text("precious\n")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="symbolic links"):
        EventLog(tmp_path / "run")
    assert (tmp_path / "elsewhere").read_text() == "precious\n"


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.event("start", {"steps": 3})
        log.lost_lines = 2
        log.event("signal", {"name": "SIGTERM"})
    start, signal = read_events(tmp_path / "events.jsonl")
    assert (start.name, start.fields, start.lost_lines) == ("start", {"steps": 3}, 0)
    assert (signal.name, signal.fields, signal.lost_lines) == ("signal", {"name": "SIGTERM"}, 2)
    assert Event.from_record(signal.to_record()) == signal


@pytest.mark.parametrize("record", [{}, {"event": 3, "time": None, "lost_lines": "x"}, {"lost_lines": True}])
def test_a_strange_event_is_no_obstacle(record: dict[str, object]) -> None:
    assert Event.from_record(record) == Event("", {}, "", 0)


def test_no_log_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "metrics.jsonl")) == []


def test_metrics_are_numbers_by_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 0.5, "note": "x", "flag": true, "lost": null}', '{"step": "2", "loss": 1}', "[3]"]
    path.write_text("\n".join([*lines, '{"step": 3, "loss": NaN}', f'{{"step": 4, "loss": 1{"0" * 400}}}', ""]))
    assert read_metrics(path) == [{"step": 1, "loss": 0.5, "lost": None}, {"step": 3}, {"step": 4}]


def test_a_long_log_is_thinned_and_a_long_line_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORDS", 10)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    rows = [f'{{"step": {step}}}\n' for step in range(41)]
    path.write_text("".join([*rows[:20], '{"step": 99, "x": "' + "a" * 5000 + '"}\n', *rows[20:]]))
    assert [row["step"] for row in read_metrics(path)] == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_pipes_and_directories_in_place_of_a_log_are_named(tmp_path: Path, name: str) -> None:
    read = read_metrics if name == "metrics.jsonl" else read_events
    os.mkfifo(tmp_path / name)
    for opened in (lambda: EventLog(tmp_path), lambda: read(tmp_path / name)):
        with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
            opened()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ResourceError, match="Is a directory"):
        EventLog(tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(tmp_path / name)


def test_a_disk_that_is_gone_costs_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither mending a torn line nor syncing is possible; both are caught up with when the disk is back."""
    told: list[str] = []
    journal = EventLog(tmp_path, lambda name, fields: told.append(name))
    journal.metric({"step": 1})
    real = os.write

    def gone(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
    monkeypatch.setattr(os, "ftruncate", gone)
    journal.metric({"step": 2})
    monkeypatch.setattr(os, "write", gone)
    monkeypatch.setattr(os, "fsync", gone)
    journal.sync()
    monkeypatch.undo()
    journal.metric({"step": 3})
    journal.event("save", {"step": 3})
    journal.close()
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == [1, 3]
    assert [(event["event"], event.get("lost_lines")) for event in lines(tmp_path / "events.jsonl")] == [("save", 2)]
    assert told == ["sync-failed", "save"]
