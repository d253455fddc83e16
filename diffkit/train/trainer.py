"""The training loop: on any device, restartable at any step, without waiting for the device between log points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..callback import Callback, TrainingStepInfo, TrainResult
from ..errors import CheckpointError, DataError
from ..optimizer import LRSchedule, Optimizer
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.memory import enough_memory, peak_memory
from ..runtime.progress import Clock, Progress
from ..strategy import SingleProcess, Strategy
from .config import TrainConfig
from .data_loading import BatchSource
from .engine import Engine
from .precision import float32_products
from .state import MetricAccumulator, TrainerState
from .tasks import Problem

FINAL_ROUNDS = 4
"""How often each held-out example is used at the end, for the loss by noise level."""


def never() -> bool:
    """Return False."""
    return False


def always(*_: object) -> bool:
    """Return True."""
    return True


class Trainer:
    """Trains the network of a problem, from step 0 or from a loaded state.

    N steps give the same weights, bit for bit, as k steps, `tensors()` and `state()` passed to the `load` of a new
    trainer, and N - k more.

    Args:
        problem: model, loss and data.
        config: the configuration; its components are passed as the next arguments.
        optimizer: builds the torch optimizer.
        lr_schedule: factor on the learning rates; None means 1.
        strategy: the strategy for several processes; None means one process.
        device: the device to train on.
        ranks: the processes of this run.

    Raises:
        UsageError, ValueError, DataError: as `Engine` does.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        optimizer: Optimizer,
        lr_schedule: LRSchedule | None = None,
        strategy: Strategy | None = None,
        *,
        device: torch.device | str = "cpu",
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.problem, self.config, self.ranks = problem, config, ranks
        self.device = torch.device(device)
        self.engine = Engine(
            problem,
            config,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            strategy=strategy or SingleProcess(),
            device=self.device,
            ranks=ranks,
        )
        self.step, self._saved = 0, -1
        self._write: Callable[[int], bool] = always
        self._draw: Callable[[int, Any], object] = always
        self._window = MetricAccumulator(self.device)

    def run(
        self,
        callbacks: Sequence[Callback] = (),
        *,
        directory: Path = Path(),
        stop: Callable[[], bool] = never,
        save: Callable[[int], bool] = always,
        preview: Callable[[int, Any], object] = always,
        progress: Progress | None = None,
    ) -> TrainResult:
        """Train to the last step, or until `stop()` returns True.

        Args:
            callbacks: called in this order, on the main process only.
            directory: passed to `on_start`.
            stop: called between steps.
            save: called with the step, on each process, at intervals, if stopped and at the end. If it returns True,
                `on_save` of the callbacks follows.
            preview: called with the step and a model at intervals, on the main process, and on all if weights are
                sharded, which then compute together. `on_preview` of the callbacks follows.
            progress: displays the progress; None displays nothing.

        Returns:
            The last step, and the loss on held-out examples.

        Raises:
            DivergedError: loss or gradient are not finite; the weights are those of the step before.
            ResourceError: memory is exhausted or a worker was killed.
        """
        callbacks = callbacks if self.ranks.is_main else ()
        self._write, self._draw = save, preview
        progress = progress or Progress()
        progress.start(self.step, self.config.steps)
        result = None
        try:
            for callback in callbacks:
                callback.on_start(directory)
            with self._own_generators(), float32_products(self.engine.precision), enough_memory(self._needs):
                source = self.engine.batch_source(self.step)
                try:
                    stopped = self._loop(source, callbacks, stop, progress)
                finally:
                    source.close()
                if self._saved != self.step:
                    self._save(callbacks)
                held_out = None if stopped else self.engine.validate(step=self.step, rounds=FINAL_ROUNDS)
            result = TrainResult(self.step, stopped, held_out)
            return result
        finally:
            for callback in callbacks:
                callback.on_end(result)
            progress.close()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return groups of named tensors for a checkpoint; they share memory with the trainer. See `Engine.tensors`."""
        return self.engine.tensors()

    def expected_tensors(self) -> dict[str, dict[str, Tensor] | None]:
        """Return the tensors that a checkpoint must have to be loaded: `tensors()`, with any states of the
        optimizers (None).
        """
        return {**self.tensors(), **dict.fromkeys(self.engine.updates)}

    def largest_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return tensors as large as a checkpoint: before the first step the optimizer has no state yet.

        It is taken to be two numbers a weight, as for Adam.
        """
        tensors = self.tensors()
        for group, update in self.engine.updates.items():
            if not tensors[group]:
                moments, trained = ("first", "second"), update.parameters.items()
                tensors[group] = {f"{name}.{moment}": p for name, p in trained for moment in moments}
        return tensors

    def expected_state(self) -> dict[str, Any]:
        """Return the JSON that a checkpoint must have to be loaded: the numbers of the optimizer may be missing."""
        return {name: value for name, value in self.state().to_json().items() if name != "numbers"}

    def state(self) -> TrainerState:
        """Return the rest of a checkpoint: the step, means since the last log point, and the fingerprint of the
        data.
        """
        return TrainerState(
            step=self.step,
            window=self._window.state(),
            data=self.problem.data.fingerprint(),
            powers={average.name: average.ema.power or 0.0 for average in self.engine.averages},
            precision=self.engine.precision.name,
            device=self.device.type,
            threads=torch.get_num_threads(),
            numbers=self.engine.numbers(),
        )

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: TrainerState) -> list[str]:
        """Load the `tensors()` and `state()` of another trainer of the same problem.

        Args:
            tensors: groups of named tensors.
            state: the rest.

        Returns:
            Sentences on settings that changed, so that the result is not equal bit for bit, such as another precision.

        Raises:
            DataError: the examples have changed since.
            CheckpointError: the state of the optimizer does not fit this recipe.
        """
        now = self.state()
        if now.data != state.data and not now.data.startswith(f"{state.data}:"):  # earlier versions stated less
            raise DataError(
                "the examples have changed since the checkpoint was saved",
                code="DK321",
                fix="restore the data; to train on the new data, pass another --out, and this run as train.init",
                notes=[f"then: {state.data}", f"now: {now.data}"],
            )
        self.engine.load(tensors, state.numbers)
        self.step = self._saved = state.step
        self._window.load(state.window)
        return state.differences(now)

    def require_equal_weights(self) -> None:
        """Raise CheckpointError on every process unless all processes have the same weights and averages, bit for bit.

        Weights that are sharded differ between processes by design, and are left out.
        """
        digests = self.ranks.exchange(self.engine.digest())
        if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise CheckpointError(
                f"at step {self.step} process {other[0]} has other weights than the first process",
                code="DK606",
                fix="start again: the run continues from the last checkpoint; if this returns, test the memory of "
                "its host, and use equal hardware and versions on all hosts",
            )

    def _loop(
        self, source: BatchSource, callbacks: Sequence[Callback], stop: Callable[[], bool], progress: Progress
    ) -> bool:
        """Do the steps that are left; returns whether `stop` ended them."""
        clock = Clock()
        while self.step < self.config.steps:
            if self.ranks.any(stop()):
                return True
            values = self.engine.advance(self.step, source)
            self._window.add(values)
            self.step += 1
            progress.advance(self.step)
            self._after_step(values, callbacks, clock, progress)
        return False

    def _after_step(
        self, values: Mapping[str, Tensor], callbacks: Sequence[Callback], clock: Clock, progress: Progress
    ) -> None:
        """Log, call callbacks, draw a preview and save a checkpoint if they are due after a step; weights do not
        change.
        """
        config, step = self.config, self.step
        last = step == config.steps
        validating = due(step, config.validate_every) or (last and config.validate_every > 0)
        record = None
        if due(step, config.log_every) or validating or last:
            record = self._record(clock, validating)
            if self.ranks.is_main:
                progress.log({"step": step, **record})
        if callbacks:
            with clock.paused():
                self._report(values, record, callbacks)
        with clock.paused():
            if due(step, config.sample_every):
                self._preview(callbacks)
            if due(step, config.checkpoint_every):
                self._save(callbacks)

    def _report(
        self, values: Mapping[str, Tensor], record: Mapping[str, float] | None, callbacks: Sequence[Callback]
    ) -> None:
        info = TrainingStepInfo(
            step=self.step,
            steps=self.config.steps,
            lr=self.engine.lr(self.step - 1),
            values=MappingProxyType(dict(values)),
            record=None if record is None else MappingProxyType(dict(record)),
            model=self.engine.model,
            average=self.engine.average_model,
        )
        for callback in callbacks:
            callback.on_step(info)

    def _record(self, clock: Clock, validating: bool) -> dict[str, float]:
        """Return the numbers of a log point."""
        self.engine.check(self.step)
        means, steps = self._means(), self._window.steps
        self._window.clear()
        record: dict[str, float] = {
            **means,
            "lr": self.engine.lr(self.step - 1),
            "images_per_second": steps * self.config.batch_size / clock.lap(),
            "memory": peak_memory(self.device),
        }
        if validating:
            with clock.paused():
                record |= self._held_out()
        return record

    def _means(self) -> dict[str, float]:
        """Return the means over the steps since the last log point, and over the processes."""
        means = self._window.means()
        if self.ranks.size == 1:
            return means
        total = self.ranks.sum(torch.tensor([*means.values()], device=self.device)) / self.ranks.size
        return dict(zip(means, total.tolist(), strict=True))

    def _held_out(self) -> dict[str, float]:
        found = {"held_out_loss": self.engine.validate(step=self.step, average=False)}
        if self.engine.averages:
            found["held_out_loss_ema"] = self.engine.validate(step=self.step)
        return {name: value.loss for name, value in found.items() if value is not None}

    def _preview(self, callbacks: Sequence[Callback]) -> None:
        self.engine.check(self.step)
        model = self.engine.average_model or self.engine.model
        mode = model.network.training
        model.network.eval()
        with torch.no_grad():
            if self.ranks.is_main or self.engine.sharded:
                self._draw(self.step, model)
            wanted = str(any(callback.draws for callback in callbacks))
            shared = self.engine.sharded and "True" in self.ranks.exchange(wanted)
            with self.engine.strategy.whole(model.network) if shared else nullcontext():
                for callback in callbacks:
                    callback.on_preview(self.step, model)
                self.ranks.barrier()
        model.network.train(mode)

    def _save(self, callbacks: Sequence[Callback]) -> None:
        self.engine.check(self.step)
        self.require_equal_weights()
        saved = self._write(self.step)
        for callback in callbacks if saved else ():
            callback.on_save(self.step)
        self.ranks.barrier()
        self._saved = self.step

    def _own_generators(self) -> AbstractContextManager[Any]:
        """Restore the global generators at the end: each step seeds them for dropout."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _needs(self) -> str:
        storages = (tensor.untyped_storage() for tensor in self.engine.stored_tensors())
        total = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        return f"weights, optimizer, averages and data take {total / 1e6:.0f} MB; the rest is activations"


def due(step: int, every: int) -> bool:
    """Return whether an interval ends at `step`; an interval of 0 never does."""
    return every > 0 and step % every == 0
