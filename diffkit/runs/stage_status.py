"""Which stages of a run are done, so that the same command goes on with the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ..storage.run_directory import RunDirectory

Stage = Literal["train", "sample", "evaluate", "report"]
FILE = "stages.json"


@dataclass(frozen=True)
class StageStatus:
    """The file stages.json of a run: for each finished stage, the training step it belongs to and its seconds."""

    directory: RunDirectory

    def read(self) -> dict[str, Any]:
        """All entries."""
        return self.directory.read_json(FILE)

    def done(self, stage: Stage, step: int) -> bool:
        """Whether the stage was finished for the weights of `step`."""
        entry = self.read().get(stage, {})
        return isinstance(entry, dict) and entry.get("step") == step

    def write(self, stage: Stage, step: int, seconds: float, **more: Any) -> None:
        """Record a finished stage; whatever followed from older weights counts as not done any more."""
        entries = self.read()
        spent = seconds + (entries.get(stage, {}).get("seconds", 0.0) if stage == "train" else 0.0)
        self.directory.write_json(FILE, entries | {stage: {"step": step, "seconds": spent, **more}})

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each finished stage."""
        return {stage: float(entry["seconds"]) for stage, entry in self.read().items() if "seconds" in entry}


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """A list whose one element is, after the block, how many seconds it took."""
    spent = [0.0]
    began = time.monotonic()
    try:
        yield spent
    finally:
        spent[0] = time.monotonic() - began
