"""The two append-only logs of a run: `metrics.jsonl`, one line a log point, and `events.jsonl`, one line an event.

A full disk never stops training: lines that could not be written are counted, and the next event says how many. A line
is written whole or not at all; what a crash tore is dropped when the run goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from . import atomic

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
_BLOCK = 1 << 16


class EventLog:
    """Appends to the logs in `directory`; raises nothing for a full disk, and OSError only when it is opened.

    `tell(name, fields)` hears of every event too.
    """

    def __init__(self, directory: Path, tell: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self.lost = 0
        self._tell = tell or (lambda name, fields: None)
        self._metrics = _Appender(directory / METRICS)
        self._events = _Appender(directory / EVENTS)

    def metric(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite becomes null, which is JSON."""
        self.lost += not self._metrics.append(record)

    def event(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        """Append one line to events.jsonl: the time, the name, the fields, and the lines lost since the last one."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        record = {"time": time, "event": name, **(fields or {})}
        written = self._events.append(record | {"lost_lines": self.lost} if self.lost else record)
        self.lost = 0 if written else self.lost + 1
        self._tell(name, fields or {})

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, so that a resumed run writes the file that an uninterrupted one would."""
        self._metrics.keep(lambda record: type(record.get("step")) is int and record["step"] <= step)

    def sync(self) -> None:
        """Push the metrics to the disk; called before each checkpoint, so that none of its past can be missing."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log that may be written to meanwhile; lines that are no JSON objects are passed over."""
    if not path.is_file():
        return
    with open(path, "rb") as stream:
        for line in stream:
            record = _decode(line)
            if record is not None:
                yield record


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    """`value` with every float that JSON does not have replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Appender:
    """A file that grows by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = False
        self._open()

    def _open(self) -> None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        self._size = os.fstat(self._handle).st_size
        whole = self._whole()
        if whole != self._size:
            os.ftruncate(self._handle, whole)
            self._size = whole

    def _whole(self) -> int:
        """Where the last line that was written to its end stops."""
        end = self._size
        while end:
            begin = max(0, end - _BLOCK)
            newline = os.pread(self._handle, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write one line; False where the disk took no or only a part of it, which is then removed."""
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        try:
            if self._torn:
                os.ftruncate(self._handle, self._size)
            self._torn = os.write(self._handle, line) != len(line)
        except OSError:
            self._torn = True
        if self._torn:
            with contextlib.suppress(OSError):  # a disk that is gone: what is left goes before the next line is written
                os.ftruncate(self._handle, self._size)
            return False
        self._size += len(line)
        return True

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file with the wanted records only; untouched where all are."""
        with open(self._path, "rb") as stream:
            lines = stream.readlines()
        kept = [line for line in lines if (record := _decode(line)) is not None and wanted(record)]
        if kept != lines:
            self.close()
            atomic.replace(self._path, b"".join(kept))
            self._open()

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
