"""The training loop: on any device, restartable at any step, and without waiting for it between log points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Model
from ..errors import DataError
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.memory import enough_memory, peak_memory
from ..runtime.progress import Clock, Progress
from .config import TrainConfig
from .engine import Engine
from .optimizer import rate
from .preprocessing import TrainingProblem
from .validation import ValidationResult

Record = Mapping[str, float]


def _log(record: Record) -> None:
    """Keep nothing."""


def _save(trainer: Trainer) -> None:
    """Save nothing."""


def _preview(step: int, model: Model) -> None:
    """Draw nothing."""


def _event(name: str, fields: Mapping[str, Any]) -> None:
    """Note nothing."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """`log(record)` at log points; `save(trainer)` at checkpoints, at the end and when stopped; `preview(step, model)`
    with the first average at `sample_every`; `stop()` is asked between steps; `event(name, fields)` is told what is
    worth a note: `small-data` where a batch holds examples twice.

    All are called on the main rank only, but for `stop`.
    """

    log: Callable[[Record], None] = _log
    save: Callable[[Trainer], None] = _save
    preview: Callable[[int, Model], None] = _preview
    stop: Callable[[], bool] = _never
    event: Callable[[str, Mapping[str, Any]], None] = _event
    progress: Progress = field(default_factory=Progress)


HOOKS = Hooks()
ROUNDS = 4
"""How often each held-out example is looked at in the end, for the loss by noise level."""


@dataclass(frozen=True)
class TrainResult:
    """Where training ended: `stopped` before the last step because it was asked to; the loss on held-out data."""

    step: int
    stopped: bool
    held_out: ValidationResult | None = None


class Trainer:
    """Trains the network of `task` as `settings` say, from step 0 or from what `load` was given.

    N steps are the same, bit for bit, as k steps, `tensors()` and `state()` given to the `load` of a new trainer, and
    N - k more. Raises: as `Engine` does.
    """

    def __init__(
        self,
        task: TrainingProblem,
        settings: TrainConfig,
        *,
        device: torch.device | str = "cpu",
        world: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.task, self.settings, self.world = task, settings, world
        self.device = torch.device(device)
        self.engine = Engine(task, settings, self.device, world)
        self.step, self._saved = 0, -1
        self._window = MetricAccumulator(self.device)

    def run(self, hooks: Hooks = HOOKS) -> TrainResult:
        """Train to the last step, or until `hooks.stop()`; saves at intervals, when stopped, and at the end.

        Raises: DivergedError where loss or gradient is not finite: nothing has seen it, and nothing is saved.
        ResourceError where memory runs out or a worker is killed.
        """
        settings, engine = self.settings, self.engine
        if engine.examples < settings.batch_size and self.world.is_main:
            hooks.event("small-data", {"examples": engine.examples, "batch_size": settings.batch_size})
        hooks.progress.start(self.step, settings.steps)
        stopped = False
        clock = Clock()
        try:
            with self._own_generators(), enough_memory(self._needs):
                source = engine.feed(self.step)
                try:
                    while self.step < settings.steps and not stopped:
                        if self.world.any(hooks.stop()):
                            stopped = True
                        else:
                            self._window.add(engine.advance(self.step, source))
                            self.step += 1
                            hooks.progress.advance(self.step)
                            self._pause_between(hooks, clock)
                finally:
                    source.close()
                if self._saved != self.step:
                    self._save(hooks)
                return TrainResult(self.step, stopped, None if stopped else engine.validate(rounds=ROUNDS))
        finally:
            hooks.progress.close()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of named tensors for a checkpoint; they share memory with the trainer. See `Engine.tensors`."""
        return self.engine.tensors()

    def state(self) -> dict[str, Any]:
        """What else a checkpoint holds, as JSON: where training stands, and what the data was."""
        return {
            "step": self.step,
            "window": self._window.state(),
            "data": self.task.data.fingerprint(),
            "averages": [averaged.name for averaged in self.engine.averages],
            "powers": [averaged.average.ema.power or 0.0 for averaged in self.engine.averages],
            "precision": self.engine.precision.name,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> list[str]:
        """Take over `tensors()` and `state()` of another trainer of the same task; what makes bits differ is listed.

        Raises DataError where the examples have changed since.
        """
        now = self.state()
        if state["data"] != now["data"]:
            raise DataError(
                "the examples have changed since the checkpoint was saved",
                code="DK321",
                fix="put the data back, or start again with --resume never",
                notes=[f"then: {state['data']}", f"now: {now['data']}"],
            )
        self.engine.load(tensors)
        self.step = self._saved = int(state["step"])
        self._window.load(state["window"])
        return [
            f"{what} was {state.get(what)}, is {now[what]}"
            for what in ("precision", "device", "threads")
            if state.get(what) != now[what]
        ]

    def _pause_between(self, hooks: Hooks, clock: Clock) -> None:
        """What is due after a step: the log, a preview, a checkpoint. None of it changes what is trained."""
        settings, step = self.settings, self.step
        last = step == settings.steps
        validating = due(step, settings.validate_every) or (last and settings.validate_every > 0)
        if due(step, settings.log_every) or validating or last:
            self._log(hooks, clock, validating)
        with clock.paused():
            if due(step, settings.sample_every):
                self._preview(hooks)
            if due(step, settings.checkpoint_every):
                self._save(hooks)

    def _log(self, hooks: Hooks, clock: Clock, validating: bool) -> None:
        self.engine.check()
        means, steps = self._means(), self._window.steps
        self._window.clear()
        record: dict[str, float] = {
            "step": self.step,
            **means,
            "lr": rate(self.settings, self.step - 1),
            "images_per_second": steps * self.settings.batch_size / clock.lap(),
            "memory": peak_memory(self.device),
        }
        if validating:
            with clock.paused():
                record |= self._held_out()
        if self.world.is_main:
            hooks.log(record)
            hooks.progress.log(record)

    def _means(self) -> dict[str, float]:
        """Means over the steps since the last log point, and over the ranks."""
        means = self._window.means()
        if self.world.size == 1:
            return means
        total = self.world.sum(torch.tensor([*means.values()], device=self.device)) / self.world.size
        return dict(zip(means, total.tolist(), strict=True))

    def _held_out(self) -> dict[str, float]:
        found = {"held_out_loss": self.engine.validate(average=False)}
        if self.engine.averages:
            found["held_out_loss_ema"] = self.engine.validate()
        return {name: value.loss for name, value in found.items() if value is not None}

    def _preview(self, hooks: Hooks) -> None:
        self.engine.check()
        if self.world.is_main:
            model = self.engine.ema_model or self.engine.model
            mode = model.network.training
            model.network.eval()
            with torch.no_grad():
                hooks.preview(self.step, model)
            model.network.train(mode)
        self.world.barrier()

    def _save(self, hooks: Hooks) -> None:
        self.engine.check()
        if self.world.is_main:
            hooks.save(self)
        self.world.barrier()
        self._saved = self.step

    def _own_generators(self) -> AbstractContextManager[None]:
        """Dropout seeds the global generators; whoever calls gets them back as they were."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _needs(self) -> str:
        storages = (tensor.untyped_storage() for tensor in self.engine.storages())
        total = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        return f"weights, optimizer, averages and data take {total / 1e6:.0f} MB; the rest is activations"


def due(step: int, every: int) -> bool:
    """Whether an interval ends at `step`; an interval of 0 never does."""
    return every > 0 and step % every == 0


class MetricAccumulator:
    """Means of named numbers over the steps since the last log point."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step; values: () each, on the device."""
        self.steps += 1
        for name, value in values.items():
            if name in self._sums:
                self._sums[name].add_(value)
            else:
                self._sums[name] = value.detach().double()

    def means(self) -> dict[str, float]:
        """The means; waits for the device."""
        if not self._sums:
            return {}
        values = torch.stack([*self._sums.values()]) / self.steps
        return dict(zip(self._sums, values.tolist(), strict=True))

    def clear(self) -> None:
        """Start anew."""
        self._sums, self.steps = {}, 0

    def state(self) -> dict[str, Any]:
        """As JSON; waits for the device. A sum that is not finite, as of gradients that overflowed, is null."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"steps": self.steps, "sums": {n: value if math.isfinite(value) else None for n, value in sums.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` gave."""
        self.steps = int(state["steps"])
        self._sums = {
            str(name): torch.tensor(math.nan if value is None else value, dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }
