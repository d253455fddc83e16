"""The training loop: on any device, restartable at any step, and without waiting for it between log points."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Model
from ..errors import DataError, DivergedError, UsageError
from ..noise import Draws
from .distributed import ALONE, World
from .dropout import seed_dropout
from .ema import Averaged
from .feed import Feed, feed
from .flat import Flat
from .held_out import HeldOut, held_out_loss
from .hooks import Hooks
from .memory import enough_memory, peak_memory
from .optim import Update
from .order import Order, divide
from .parallel import Computation
from .precision import InPrecision, choose
from .preparation import Preparation
from .rate import rate
from .settings import Settings
from .task import Task
from .window import Window

HOOKS = Hooks()


@dataclass(frozen=True)
class Outcome:
    """Where training ended: `stopped` before the last step because it was asked to; the loss on held-out data."""

    step: int
    stopped: bool
    held_out: HeldOut | None = None


class Trainer:
    """Trains the network of `task` as `settings` say, from step 0 or from what `load` was given.

    The weights live in flat memory from here on (the network's parameters are views of it), in float32. N steps are
    the same, bit for bit, as k steps, `tensors()` and `state()` given to the `load` of a new trainer, and N - k more.
    Raises: UsageError for settings that contradict each other or the device, DataError where there are no examples.
    """

    def __init__(
        self, task: Task, settings: Settings, *, device: torch.device | str = "cpu", world: World = ALONE
    ) -> None:
        if settings.batch_size < world.size * settings.accumulate:
            raise UsageError(
                f"a batch of {settings.batch_size} cannot be split over {world.size} processes with "
                f"{settings.accumulate} parts each",
                code="DK052",
                fix="raise train.batch_size or lower train.accumulate",
            )
        self.task, self.settings, self.world = task, settings, world
        self.device = torch.device(device)
        self.step, self._saved = 0, -1
        network = task.model.network.to(self.device).train()
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.components = task.learned().to(self.device)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        extra = {f"/{name}": p for name, p in self.components.named_parameters() if p.requires_grad}
        self.flat = Flat(trained | extra, self.device, channels_last=settings.channels_last)
        self.precision = choose(
            settings.precision, self.device, task.model.parameterization, sum(p.numel() for p in trained.values())
        )
        self.update = Update(settings.optimizer, settings.clip, self.flat, scaling=self.precision.scaling)
        self.averages = [Averaged(ema, self.flat, network, settings.batch_size) for ema in settings.ema]
        if settings.compile:
            network.compile()
        self.model = replace(task.model, network=InPrecision(network, self.precision, self.device))
        self.ema_model = self._average_model()
        self.preparation = Preparation(task)
        self.window = Window(self.device)
        self._computation = Computation(task.objective, network, self.components, world)
        self._own = divide(0, settings.batch_size, world.size)[world.rank]
        self._chunks = divide(self._own.start, self._own.stop, settings.accumulate)
        self._split = task.data.split("train")
        self._order = Order(len(self._split), settings.batch_size, task.seed)
        # Reading a number is free on the CPU, so there every step is checked before anything changes.
        self._immediate = self.device.type == "cpu" and world.size == 1

    def run(self, hooks: Hooks = HOOKS) -> Outcome:
        """Train to the last step, or until `hooks.stop()`; saves at intervals, when stopped, and at the end.

        Raises: DivergedError where loss or gradient is not finite: nothing has seen it, and nothing is saved.
        ResourceError where memory runs out or a worker is killed.
        """
        settings = self.settings
        hooks.progress.start(self.step, settings.steps)
        source: Feed | None = None
        stopped = False
        clock = Clock()
        try:
            with self._own_generators(), enough_memory(self._needs):
                source = self._feed()
                while self.step < settings.steps:
                    if self.world.any(hooks.stop()):
                        stopped = True
                        break
                    self._train(source)
                    self.step += 1
                    hooks.progress.advance(self.step)
                    last = self.step == settings.steps
                    validating = due(self.step, settings.validate_every) or (last and settings.validate_every > 0)
                    if due(self.step, settings.log_every) or validating or last:
                        self._log(hooks, clock, validating)
                    if due(self.step, settings.sample_every):
                        with clock.paused():
                            self._preview(hooks)
                    if due(self.step, settings.checkpoint_every) and not last:
                        with clock.paused():
                            self._save(hooks)
                if self._saved != self.step:
                    self._save(hooks)
                return Outcome(self.step, stopped, None if stopped else self.validate())
        finally:
            if source is not None:
                source.close()
            hooks.progress.close()

    def validate(self, *, average: bool = True) -> HeldOut | None:
        """The loss on held-out examples, with the first average or the raw weights; the same draws at every call."""
        return held_out_loss(
            self.ema_model if average and self.ema_model is not None else self.model,
            self.preparation,
            self.device,
            batch_size=len(self._chunks[0]),
            ema=self.ema_model,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of named tensors for a checkpoint, which share memory with the trainer: `network`, one `ema-NAME` for
        each average, `optimizer`, and `components` where others than the network learn or remember."""
        groups = {"network": dict(self.network.state_dict()), "optimizer": self.update.tensors()}
        groups |= {averaged.group: dict(averaged.network.state_dict()) for averaged in self.averages}
        if components := self.components.state_dict():
            groups["components"] = dict(components)
        return groups

    def state(self) -> dict[str, Any]:
        """What else a checkpoint holds, as JSON: where training stands, and what the data was."""
        return {
            "step": self.step,
            "window": self.window.state(),
            "data": self.task.data.fingerprint(),
            "precision": self.precision.name,
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
        mine = self.tensors()
        for group in mine:
            for name, value in mine[group].items():
                value.copy_(tensors[group][name])
        self.update.load(tensors["optimizer"])
        self.step = self._saved = int(state["step"])
        self.window.load(state["window"])
        return [
            f"{what} was {state.get(what)}, is {now[what]}"
            for what in ("precision", "device", "threads")
            if state.get(what) != now[what]
        ]

    def _train(self, source: Feed) -> None:
        """One step: the gradient of the global batch, and one update."""
        settings, task, world = self.settings, self.task, self.world
        draws = Draws(task.seed, self.step, settings.batch_size)
        ema = self.ema_model
        losses, each, times, parts = [], [], [], []
        for index, rows in enumerate(self._chunks):
            raw, cond = source.rows(self.step, rows)
            local = draws.rows(rows.start)
            seed_dropout(self.device, task.seed, self.step, world.rank, index)
            last = index == len(self._chunks) - 1
            with self._computation.part(last):
                x0, ready = self.preparation.train(raw, cond, local)
                loss = self._computation(self.model, x0, local, ema, ready)
                share = len(rows) * world.size / settings.batch_size
                (loss.mean * self._factor(loss.mean, share)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.mean.detach() * share)
            parts.append({name: value * share for name, value in loss.parts.items()})
            each.append(loss.each)
            times.append(loss.t)
        self.flat.gather()
        norm = self.update(rate(settings, self.step))
        if self._immediate:
            self._refuse_divergence()
        for averaged in self.averages:
            averaged.update(self.step + 1, None if self._immediate else self.update.bad)
        task.objective.update(
            world.gather(_joined(times), settings.batch_size), world.gather(_joined(each), settings.batch_size)
        )
        sums = {name: _total([part[name] for part in parts]) for name in parts[0]}
        self.window.add({"loss": _total(losses), "grad_norm": norm, **{f"loss_{n}": v for n, v in sums.items()}})

    def _factor(self, mean: Tensor, share: float) -> Tensor | float:
        """What the loss is multiplied with; nan where it is not finite, so that on every rank the gradient is not."""
        if self._immediate:
            return share
        finite = torch.isfinite(mean.detach())
        return torch.where(finite, share, torch.nan) * self.update.scale

    def _log(self, hooks: Hooks, clock: Clock, validating: bool) -> None:
        self._refuse_divergence()
        means = self.window.means()
        if self.world.size > 1:
            names = [name for name in means if name.startswith("loss")]
            sums = self.world.sum(torch.tensor([means[name] for name in names], device=self.device)).tolist()
            means |= {name: value / self.world.size for name, value in zip(names, sums, strict=True)}
        speed = clock.lap(self.window.steps) * self.settings.batch_size
        self.window.clear()
        record: dict[str, float] = {
            "step": self.step,
            **means,
            "lr": rate(self.settings, self.step - 1),
            "images_per_second": speed,
            "memory": peak_memory(self.device),
        }
        if validating:
            with clock.paused():
                for name, average in (("held_out_loss", False), ("held_out_loss_ema", True)):
                    found = self.validate(average=average)
                    if found is not None and (not average or self.averages):
                        record[name] = found.loss
        if self.world.is_main:
            hooks.log(record)
            hooks.progress.log(record)

    def _preview(self, hooks: Hooks) -> None:
        self._refuse_divergence()
        if self.world.is_main:
            model = self.ema_model or self.model
            mode = model.network.training
            model.network.eval()
            with torch.no_grad():
                hooks.preview(self.step, model)
            model.network.train(mode)
        self.world.barrier()

    def _save(self, hooks: Hooks) -> None:
        self._refuse_divergence()
        if self.world.is_main:
            hooks.save(self)
        self.world.barrier()
        self._saved = self.step

    def _own_generators(self) -> AbstractContextManager[None]:
        """Dropout seeds the global generators; whoever calls gets them back as they were."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _refuse_divergence(self) -> None:
        if not bool(self.update.bad):
            return
        step = self.update.done + 1
        raise DivergedError(
            f"loss or gradient stopped being finite at step {step}; the weights have not seen it",
            fix="lower train.optimizer.lr, lengthen train.warmup, lower train.clip, or set train.precision: fp32",
            notes=["the checkpoints before this step are kept; run again to continue from the last one"],
        )

    def _average_model(self) -> Model | None:
        if not self.averages:
            return None
        network = InPrecision(self.averages[0].network, self.precision, self.device).eval()
        return replace(self.task.model, network=network)

    def _feed(self) -> Feed:
        workers = self.task.data.workers if self.settings.workers is None else self.settings.workers
        return feed(self._split, self._order, self._own, self.settings.steps, self.device, workers, self.step)

    def _needs(self) -> str:
        weights = self.flat.values.numel() * 4
        total = weights * (4 + len(self.averages))
        return f"weights, gradients, optimizer and averages take {total / 1e6:.0f} MB; the rest is activations"


class Clock:
    """Steps per second, without the pauses."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def lap(self, steps: int) -> float:
        """Steps per second since the last lap."""
        now = time.monotonic()
        speed = steps / max(now - self._start, 1e-9)
        self._start = now
        return speed

    def paused(self) -> Pause:
        """A context whose time does not count."""
        return Pause(self)

    def skip(self, seconds: float) -> None:
        """Leave out some time."""
        self._start += seconds


class Pause:
    """See `Clock.paused`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._from = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.skip(time.monotonic() - self._from)


def due(step: int, every: int) -> bool:
    """Whether an interval ends at `step`; an interval of 0 never does."""
    return every > 0 and step % every == 0


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
