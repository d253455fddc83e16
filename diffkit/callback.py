"""Callbacks: code that the training loop calls, such as trackers that send numbers to another program.

Callbacks change neither the weights nor the random numbers, so a training with callbacks gives the same
weights as one without. Callbacks run on the main process only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingStepInfo:
    """One optimizer step.

    Attributes:
        step: number of steps done, this one included.
        steps: number of steps of the whole training.
        lr: learning rate of this step.
        values: loss, parts of the loss, norm of the gradient: () each, on the device. Reading a value waits for the
            device. record: means since the last log point as plain numbers, at log points; else None. model: the model
            that is trained, a `Model` for a diffusion; its `network` is the trained module. average: the model with the
            first average of the weights; None without averages.
    """

    step: int
    steps: int
    lr: float
    values: Mapping[str, Tensor]
    record: Mapping[str, float] | None
    model: Any
    average: Any


@dataclass(frozen=True)
class ValidationResult:
    """The loss on held-out examples: `loss` over all of them, and by K equal bins of time.

    Attributes:
        loss: mean over all examples.
        level: (K,) middles of the bins.
        binned: (K,) mean loss of each bin, nan for an empty bin; no bins if losses have no time.
        count: (K,) number of examples in each bin.
    """

    loss: float
    level: tuple[float, ...]
    binned: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class TrainResult:
    """The end of a training: the number of steps done; `stopped` is True if it ended early on request."""

    step: int
    stopped: bool
    held_out: ValidationResult | None = None


class Callback(ABC):  # noqa: B024 - each method is optional
    """Implement the methods that you need; the others do nothing.

    An OSError, such as that of a full disk, becomes an event of the run and stops no training; any other error ends it.
    """

    def on_start(self, directory: Path) -> None:  # noqa: B027
        """Called before the first step; `directory` is the run directory."""

    @property
    def draws(self) -> bool:
        """Whether `on_preview` is overridden; if so, sharded weights are gathered for it."""
        return type(self).on_preview is not Callback.on_preview

    def on_step(self, info: TrainingStepInfo) -> None:  # noqa: B027
        """Called after each step, so it must be cheap. Do not call a model with sharded weights here."""

    def on_preview(self, step: int, model: Any) -> None:  # noqa: B027
        """Called every `train.sample_every` steps with the first average in evaluation mode, without gradients."""

    def on_save(self, step: int) -> None:  # noqa: B027
        """Called when the checkpoint of `step` is saved."""

    def on_end(self, result: TrainResult | None) -> None:  # noqa: B027
        """Called at the end, to release resources; `result` is None if an error ended the training."""


class Tracker(Callback):
    """A callback that sends the numbers of a training to another program, besides metrics.jsonl in the run
    directory.
    """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record named numbers after `step` optimizer steps."""

    def on_step(self, info: TrainingStepInfo) -> None:
        """Log the record, at log points."""
        if info.record is not None:
            self.log(info.step, info.record)
