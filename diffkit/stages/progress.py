"""Progress of whatever is done in batches: a bar on a terminal, a line at the end in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..train.progress import Heard


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
