"""Progress: a bar on a terminal, plain lines in a log, nothing in a library."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO

Record = Mapping[str, float]


class Progress(Protocol):
    """Told where training stands."""

    def start(self, step: int, steps: int) -> None:
        """Training goes on at `step` of `steps`."""

    def advance(self, step: int) -> None:
        """`step` steps are done; called after each, so it must be cheap."""

    def log(self, record: Record) -> None:
        """The numbers of a log point."""

    def close(self) -> None:
        """Training ended, for whatever reason."""


class Silent:
    """Says nothing."""

    def start(self, step: int, steps: int) -> None:
        """Nothing to show."""

    def advance(self, step: int) -> None:
        """Nothing to show."""

    def log(self, record: Record) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to show."""


class Heard(io.StringIO):
    """A stream that is no longer written to once whoever read along has left, as a terminal that hangs up."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream, self.gone = stream, False

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def _try(self, action: Callable[[], object]) -> None:
        if not self.gone:
            try:
                action()
            except (OSError, ValueError):
                self.gone = True


class Lines(Silent):
    """One plain line a log point, at most one in `every` seconds, and the last; a closed stream is no error."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self.stream, self.every = Heard(stream or sys.stderr), every
        self._steps = 0
        self._last = float("-inf")
        self._pending: str | None = None

    def start(self, step: int, steps: int) -> None:
        self._steps = steps

    def log(self, record: Record) -> None:
        self._pending = describe(record, self._steps)
        if time.monotonic() - self._last >= self.every:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._pending is None:
            return
        self._last = time.monotonic()
        text, self._pending = self._pending, None
        print(text, file=self.stream, flush=True)


class Bar(Silent):
    """A bar with the loss, the speed and the time left, drawn a few times a second by rich."""

    def __init__(self, stream: TextIO | None = None, every: float = 0.1) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._bar = Rich(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=Heard(stream or sys.stderr)),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("training", start=False, numbers="")
        self._every, self._next = every, 0.0

    def start(self, step: int, steps: int) -> None:
        self._bar.update(self._task, total=steps, completed=step)
        self._bar.start_task(self._task)
        self._bar.start()

    def advance(self, step: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every
            self._bar.update(self._task, completed=step)

    def log(self, record: Record) -> None:
        self._bar.update(self._task, completed=record["step"], numbers=numbers(record))

    def close(self) -> None:
        self._bar.stop()


def numbers(record: Record) -> str:
    """Loss and speed of a record, in words."""
    text = f"loss {record['loss']:.4g}   {record['images_per_second']:.4g} images/s"
    return text + (f"   held out {record['held_out_loss']:.4g}" if "held_out_loss" in record else "")


def describe(record: Record, steps: int) -> str:
    """A record as one line."""
    return f"step {record['step']:.0f}/{steps}   {numbers(record)}"


def console_progress(stream: TextIO | None = None) -> Progress:
    """A bar where `stream` (standard error) is a terminal, else lines."""
    target = stream or sys.stderr
    return Bar(target) if target.isatty() else Lines(target)


@contextmanager
def batches(what: str, count: int, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function (done, count) that tells how far `what` is; says nothing where `shown` is False."""
    if not shown:
        yield lambda done, total: None
        return
    began = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda done, total: None
        print(f"{what}: {count} in {time.monotonic() - began:.1f} s", file=Heard(sys.stderr), flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=Heard(sys.stderr))) as bar:
        task = bar.add_task(what, total=count)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Clock:
    """Measures laps; what happens in `paused()` is left out."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, pauses left out; more than 0."""
        now = time.monotonic()
        seconds, self._start = max(now - self._start, 1e-9), now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - began
