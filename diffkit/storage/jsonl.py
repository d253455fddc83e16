"""The append-only logs of a run: a line of `metrics.jsonl` for each log point, of `events.jsonl` for each event.

A full disk does not stop training: lost lines are counted, and the next event records the count. A line is written
completely or not at all. A partially written last line is discarded when the run resumes.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import atomic

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
MAX_LINE_BYTES, MAX_RECORDS = 1 << 20, 100_000
"""A longer line is skipped; of a log with more records, readers keep every second, fourth, ... one."""
MAX_LOG_BYTES = 128 << 20
"""Memory for the records of a log: of a log that needs more, readers read equal parts of `_PARTS` places."""
_PARTS = 1024
_MAX_NUMBER = 1e300
_BLOCK_BYTES = 1 << 16
Item = TypeVar("Item")
_NUMBER = rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?"
_PLAIN = re.compile(rb'\{"step": (0|[1-9]\d{0,14})(?:, "[\w.]+": (?:' + _NUMBER + rb"|null))*\}\n")
"""The usual line of metrics: three times as quick as to decode it."""


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`. `time` is in UTC; `lost_lines` counts the lines that a full disk lost before it."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    lost_lines: int = 0

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object of the line: `time`, `event`, the fields, and `lost_lines` if it is not 0."""
        lost = {"lost_lines": self.lost_lines} if self.lost_lines else {}
        return {"time": self.time, "event": self.name, **self.fields, **lost}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Event:
        """Convert a JSON object to an event. An invalid time, name or count becomes empty or 0."""
        time, name, lost = record.get("time"), record.get("event"), record.get("lost_lines")
        return cls(
            name if isinstance(name, str) else "",
            {key: value for key, value in record.items() if key not in ("time", "event", "lost_lines")},
            time if isinstance(time, str) else "",
            lost if type(lost) is int else 0,
        )


class EventLog:
    """Appends to both logs in `directory`. Methods raise nothing if the disk is full.

    Args:
        directory: the run directory.
        on_event: called with the name and the fields of each event. Default: no call.

    Raises:
        ResourceError: a log cannot be opened, for example because it is a symbolic link.
        CheckpointError: a log is not a regular file.
    """

    def __init__(self, directory: Path, on_event: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self.lost_lines = 0
        self._on_event = on_event or (lambda name, fields: None)
        self._metrics = _Appender(directory / METRICS)
        self._events = _Appender(directory / EVENTS)

    def metric(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. A number that is not finite becomes null."""
        self.lost_lines += not self._metrics.append(record)

    def event(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        """Append an event to events.jsonl and pass it to `on_event`."""
        written = self._events.append(Event(name, fields or {}, lost_lines=self.lost_lines).to_record())
        self.lost_lines = 0 if written else self.lost_lines + 1
        self._on_event(name, fields or {})

    def rewind(self, step: int) -> None:
        """Remove the metrics after `step`, so that a resumed run writes the same file as an uninterrupted one."""

        def wanted(line: bytes) -> bool:
            if plain := _PLAIN.fullmatch(line):
                return int(plain[1]) <= step
            record = _decode(line)
            return record is not None and type(record.get("step")) is int and record["step"] <= step

        self._metrics.keep(wanted)

    def sync(self) -> None:
        """Sync the metrics to the disk. Called before each checkpoint, so that its metrics survive a power cut."""
        try:
            self._metrics.sync()
        except OSError as error:
            self.event("sync-failed", {"reason": str(error)})

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._events.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, which may be growing. Lines that are not JSON objects are skipped.

    Raises CheckpointError if the file exists and cannot be read.
    """
    if not os.path.lexists(path):
        return
    with atomic.open_regular(path) as stream:
        size, used = atomic.size_of(stream), 0
        for part in range(_PARTS):
            begin, end = part * size // _PARTS, (part + 1) * size // _PARTS
            share = MAX_LOG_BYTES * (part + 1) // _PARTS
            if used < share and stream.tell() < begin:  # the part before used all of its memory
                stream.seek(begin)
                used += _memory(stream.readline(MAX_LINE_BYTES))  # the rest of a line
            while used < share and stream.tell() < end and (line := stream.readline(MAX_LINE_BYTES)):
                used += _memory(line)
                record = _decode(line)
                if record is not None:
                    yield record


def _memory(line: bytes) -> int:
    """Return an upper bound on the memory of the record of a line: up to 4 bytes a character, and 128 a value."""
    return 4 * len(line) + 128 * sum(map(line.count, atomic.STRUCTURE))


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Return the records of a `metrics.jsonl`, evenly spread if there are many.

    A record without a step, and a value that is not a number or null, is left out.
    Raises CheckpointError if the file exists and cannot be read.
    """
    rows = (record for record in read_records(path) if _is_number(record.get("step")))
    return [{k: v for k, v in row.items() if v is None or _is_number(v)} for row in _thinned(rows)]


def read_events(path: Path) -> list[Event]:
    """Return the events of an `events.jsonl`, evenly spread if there are many. Damaged lines are skipped.

    Raises CheckpointError if the file exists and cannot be read.
    """
    return _thinned(map(Event.from_record, read_records(path)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _thinned(records: Iterable[Item]) -> list[Item]:
    """Return all records, or every second, fourth, ... one, so that at most `MAX_RECORDS` are in memory."""
    kept: list[Item] = []
    every = 1
    for number, record in enumerate(records):
        if number % every == 0:
            kept.append(record)
        if len(kept) > MAX_RECORDS:
            kept, every = kept[::2], 2 * every
    return kept


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _finite(value: Any) -> Any:
    """Return `value` with null for every float that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class _Appender:
    """A file that grows by complete lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = False
        self._open()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with atomic.writing(self._path):
            self._handle = os.open(self._path, flags, 0o644)
        atomic.require_regular(self._handle, self._path)
        self._size = os.fstat(self._handle).st_size
        complete = self._end_of_last_line()
        if complete != self._size:
            os.ftruncate(self._handle, complete)
            self._size = complete

    def _end_of_last_line(self) -> int:
        end = self._size
        while end:
            begin = max(0, end - _BLOCK_BYTES)
            newline = os.pread(self._handle, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write one line. Returns False, and removes a partial line, if the disk does not take all of it."""
        line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
        try:
            if self._torn:
                os.ftruncate(self._handle, self._size)
            self._torn = os.write(self._handle, line) != len(line)
        except OSError:
            self._torn = True
        if self._torn:
            with contextlib.suppress(OSError):  # the partial line is then removed before the next one
                os.ftruncate(self._handle, self._size)
            return False
        self._size += len(line)
        return True

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Rewrite the file with the wanted lines only, one at a time. The file is not touched if all are wanted."""
        with open(self._path, "rb") as stream:
            same = sum(map(len, itertools.takewhile(wanted, stream)))
            if same == self._size:
                return
            stream.seek(0)
            with atomic.replacing(self._path) as kept:
                for begin in range(0, same, _BLOCK_BYTES):
                    kept.write(stream.read(min(_BLOCK_BYTES, same - begin)))
                kept.writelines(filter(wanted, stream))
        self.close()
        self._open()

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
