"""The content of stages.json: which stages of a run are finished, so that the same command continues with the next."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, NonNegativeInt, RootModel, model_validator

from ..recipe.effective import effective
from ..recipe.spec import Recipe
from ..storage.run_directory import RunDirectory

Stage = Literal["train", "sample", "reconstruct", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FILE = "stages.json"


class LossByLevel(BaseModel):
    """Mean held-out loss in equal bins of time: the middles of the bins, `level`, and the means, `loss`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    level: tuple[float, ...]
    loss: tuple[float, ...]

    @model_validator(mode="after")
    def _require_pairs(self) -> LossByLevel:
        if len(self.level) != len(self.loss):
            raise ValueError("level and loss must be of equal length")
        return self


class StageRecord(BaseModel):
    """A finished stage: the training step of the weights that it used, its seconds, and the held-out losses of the
    training stage.

    `held_out_loss` is the loss on held-out examples at the last step. `inputs` is the digest of the sections of the
    recipe that the stage depends on, empty in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: NonNegativeInt
    seconds: float = 0.0
    held_out_loss: float | None = None
    loss_by_level: LossByLevel | None = None
    inputs: str = ""


class _Records(RootModel[dict[Stage, StageRecord]]):
    """The records of the finished stages."""


@dataclass(frozen=True)
class StageStatus:
    """The file stages.json of a run."""

    directory: RunDirectory

    def read(self) -> dict[Stage, StageRecord]:
        """Return the finished stages, in the order of a run. Raises CheckpointError if the file is damaged."""
        fix = "delete this file; the next run repeats the stages after training"
        records = self.directory.read_record(FILE, _Records, fix).root
        return {stage: records[stage] for stage in STAGES if stage in records}

    def done(self, stage: Stage, step: int, inputs: str | None = None) -> bool:
        """Return whether a stage is finished.

        Args:
            stage: The stage.
            step: Training step of the weights that it must have used.
            inputs: Digest of the sections that it must have used, see `stage_inputs`; default: any.

        Returns:
            Whether its record has this step and these inputs.
        """
        record = self.read().get(stage)
        return record is not None and record.step == step and (inputs is None or record.inputs in ("", inputs))

    def write(self, stage: Stage, record: StageRecord) -> None:
        """Record a finished stage. Seconds of training are added to those of earlier calls."""
        records = self.read()
        if stage == "train" and stage in records:
            record = record.model_copy(update={"seconds": record.seconds + records[stage].seconds})
        entries = records | {stage: record}
        self.directory.write_json(FILE, {name: one.model_dump(exclude_none=True) for name, one in entries.items()})

    def seconds(self) -> dict[Stage, float]:
        """Return the seconds of each finished stage, in the order of a run."""
        return {stage: record.seconds for stage, record in self.read().items()}


def stage_inputs(recipe: Recipe) -> dict[Stage, str]:
    """Return a digest for each stage after training of the sections of a recipe that it depends on besides weights."""
    values = effective(recipe)
    sections = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    needed: dict[Stage, Iterable[str]] = {
        "sample": ["sample"],
        "reconstruct": ["codec"],
        "evaluate": ["sample", "evaluate"],
        "report": sections,
    }
    return {
        stage: hashlib.sha256("\n".join(sections.get(name, "") for name in names).encode()).hexdigest()[:16]
        for stage, names in needed.items()
    }


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list whose one element is the number of seconds that the block took, once it has ended."""
    spent = [0.0]
    began = time.monotonic()
    try:
        yield spent
    finally:
        spent[0] = time.monotonic() - began
