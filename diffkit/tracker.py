"""Trackers: where training numbers go besides metrics.jsonl, which is always written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path


class Tracker(ABC):
    """Implement `log`; `open` is called once with the run directory, `close` at the end."""

    def open(self, directory: Path) -> None:  # noqa: B027 - a tracker may need no directory
        """Prepare to log; `directory` is the run directory."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of one optimizer step."""

    def close(self) -> None:  # noqa: B027
        """Flush and release what was opened."""
