"""Progress of training, sampling and evaluation: a bar on a terminal, lines in a log file, nothing in a library."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

Record = Mapping[str, float]


class Progress:
    """Receives the progress of a task. This base class shows nothing; `console_progress` returns one that does.

    It is a context manager that closes itself.
    """

    _known = -1

    def update(self, done: int, total: int) -> None:
        """Set the numbers of complete units and of all units; the first call begins."""
        if total != self._known:
            self._known = total
            self.start(done, total)
        self.advance(done)

    def start(self, done: int, total: int) -> None:
        """Begin, with `done` of `total` units complete."""

    def advance(self, done: int) -> None:
        """Set the number of complete units. Training calls this after every step, so it must be cheap."""

    def log(self, record: Record) -> None:
        """Set the numbers to show: `loss`, `held_out_loss` and `images_per_second`, if present."""

    def close(self) -> None:
        """End, after success or failure."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProgressLines(Progress):
    """One plain line in `every_seconds`, and a last one at the end."""

    def __init__(self, task: str, stream: TextIO, every_seconds: float = 5.0) -> None:
        self._task, self._every = task, every_seconds
        self._stream = DetachableStream(stream)
        self._next = time.monotonic() + every_seconds
        self._done = self._total = 0
        self._numbers = ""
        self._shown = False

    def start(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def advance(self, done: int) -> None:
        self._done, self._shown = done, False
        if time.monotonic() >= self._next:
            self._show()

    def log(self, record: Record) -> None:
        self._numbers = f"   {format_numbers(record)}"

    def close(self) -> None:
        if not self._shown:
            self._show()

    def _show(self) -> None:
        self._next, self._shown = time.monotonic() + self._every, True
        print(f"{self._task} {self._done}/{self._total}{self._numbers}", file=self._stream, flush=True)


class ProgressBar(Progress):
    """A bar with the remaining time and the numbers of the last record, drawn by rich."""

    def __init__(self, task: str, stream: TextIO, every_seconds: float = 0.1) -> None:
        from rich import console, progress

        self._bar = progress.Progress(
            progress.TextColumn(task),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            console=console.Console(file=DetachableStream(stream)),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task(task, start=False, numbers="")
        self._every, self._next = every_seconds, 0.0
        self._total = 0

    def start(self, done: int, total: int) -> None:
        self._total = total
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start_task(self._task)
        self._bar.start()

    def advance(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == self._total:
            self._next = now + self._every
            self._bar.update(self._task, completed=done)

    def log(self, record: Record) -> None:
        self._bar.update(self._task, numbers=format_numbers(record))

    def close(self) -> None:
        self._bar.stop()


class DetachableStream(io.StringIO):
    """A text stream that ignores output after the first failed write, such as to a terminal that hung up."""

    encoding: str = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._detached = stream, False
        self.encoding = getattr(stream, "encoding", None) or "utf-8"  # rich draws with ASCII if it must

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _try(self, action: Callable[[], object]) -> None:
        if not self._detached:
            try:
                action()
            except (OSError, ValueError):
                self._detached = True


def format_numbers(record: Record) -> str:
    """Format the loss, the held-out loss and the speed of a record; missing ones are left out."""
    formats = {"loss": "loss {:.4g}", "images_per_second": "{:.4g} images/s", "held_out_loss": "held out {:.4g}"}
    return "   ".join(text.format(record[name]) for name, text in formats.items() if name in record)


def console_progress(task: str, show: bool = True, stream: TextIO | None = None) -> Progress:
    """Create a progress display for the command line.

    Args:
        task: the name of the task, such as "training".
        show: False returns a `Progress` that shows nothing. Default: True.
        stream: the stream to print to. Default: standard error.

    Returns:
        A bar if the stream is a terminal, else lines.
    """
    if not show:
        return Progress()
    stream = stream or sys.stderr
    return ProgressBar(task, stream) if stream.isatty() else ProgressLines(task, stream)


class Clock:
    """Measures laps in seconds. Time inside `paused()` does not count."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last lap, without pauses; more than 0."""
        now = time.monotonic()
        seconds, self._start = max(now - self._start, 1e-9), now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this context."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - began
