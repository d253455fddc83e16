"""The training loop: on any device, restartable at any step, and without waiting for it between log points."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .allocator import keep_memory
from .clock import Clock
from .distributed import ALONE, World
from .engine import Engine
from .held_out import HeldOut
from .hooks import Hooks
from .memory import enough_memory, peak_memory
from .rate import rate
from .settings import Settings
from .task import Task
from .window import Window

HOOKS = Hooks()
ROUNDS = 4
"""How often each held-out example is looked at in the end, for the loss by noise level."""


@dataclass(frozen=True)
class Outcome:
    """Where training ended: `stopped` before the last step because it was asked to; the loss on held-out data."""

    step: int
    stopped: bool
    held_out: HeldOut | None = None


class Trainer:
    """Trains the network of `task` as `settings` say, from step 0 or from what `load` was given.

    N steps are the same, bit for bit, as k steps, `tensors()` and `state()` given to the `load` of a new trainer, and
    N - k more. Raises: as `Engine` does.
    """

    def __init__(
        self, task: Task, settings: Settings, *, device: torch.device | str = "cpu", world: World = ALONE
    ) -> None:
        self.task, self.settings, self.world = task, settings, world
        self.device = torch.device(device)
        keep_memory(self.device)
        self.engine = Engine(task, settings, self.device, world)
        self.step, self._saved = 0, -1
        self._window = Window(self.device)

    def run(self, hooks: Hooks = HOOKS) -> Outcome:
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
                return Outcome(self.step, stopped, None if stopped else engine.validate(rounds=ROUNDS))
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
