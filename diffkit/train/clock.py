"""Time that counts: monotonic, without the pauses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
