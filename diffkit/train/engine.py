"""The engine: weights, optimizer and averages on the device, and one step of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import InMemorySplit
from ..denoiser import Model
from ..errors import DivergedError, UsageError
from ..noise import RandomStreams, key
from ..objective import Loss, Objective
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from .config import TrainConfig
from .data_loading import BatchSource, ShuffledOrder, divide, feed
from .ema import Averaged
from .optimizer import Flat, Update, rate
from .precision import PrecisionWrapper, choose, compiles, keeps_channels_last
from .preprocessing import Preprocessing, TrainingProblem
from .validation import GROUP, MOST, ValidationResult, held_out_loss


class Engine:
    """The network of `task` and what updates it, as `settings` say.

    The weights live in flat memory from here on (the network's parameters are views of it), in float32. `model` is
    what is trained, `ema_model` the first average or None.
    Raises: UsageError for settings that contradict each other or the device, ValueError for averages of the same name
    or of more than one form, DataError where there are no examples.
    """

    def __init__(
        self, task: TrainingProblem, settings: TrainConfig, device: torch.device, world: Ranks = SINGLE_PROCESS
    ) -> None:
        if settings.batch_size < world.size * settings.accumulate:
            raise UsageError(
                f"a batch of {settings.batch_size} cannot be split over {world.size} processes with "
                f"{settings.accumulate} parts each",
                code="DK052",
                fix="raise train.batch_size or lower train.accumulate",
            )
        names = [ema.name for ema in settings.ema]
        if len(set(names)) != len(names):
            raise ValueError(f"two averages have the same name: {', '.join(names)}")
        self.task, self.settings, self.device, self.world = task, settings, device, world
        self.preparation = Preprocessing(task)
        self.network = task.model.network.to(device).train()
        self.components = task.learned().to(device)
        self.flat = self._flatten()
        self.precision = choose(settings.precision, device, task.model.parameterization, self.network)
        self.update = Update(settings.optimizer, settings.clip, self.flat, scaling=self.precision.scaling)
        self.averages = [Averaged(ema, self.flat, self.network, settings.batch_size) for ema in settings.ema]
        if compiles(settings, device):
            self.network.compile()
        self.model = replace(task.model, network=PrecisionWrapper(self.network, self.precision, device))
        self.ema_model = self._average_model()
        self._computation = Computation(task.objective, self.network, self.components, world)
        self.rows = divide(0, settings.batch_size, world.size)[world.rank]
        self.parts = divide(self.rows.start, self.rows.stop, settings.accumulate)
        self._split = task.data.split("train")
        self._order = ShuffledOrder(len(self._split), settings.batch_size, task.seed)
        # Reading a number is free on the CPU, so there every step is checked before anything changes.
        self._immediate = device.type == "cpu" and world.size == 1

    @property
    def examples(self) -> int:
        """How many examples there are to train on."""
        return self._order.count

    def feed(self, first: int, workers: int | None = None) -> BatchSource:
        """Where `advance` gets its examples from, starting with step `first`; close it after the last."""
        if workers is None:
            workers = self.task.data.workers if self.settings.workers is None else self.settings.workers
        return feed(self._split, self._order, self.rows, self.settings.steps, self.device, workers, first)

    def advance(self, step: int, source: BatchSource) -> dict[str, Tensor]:
        """One step: the gradient of the global batch, and one update. Returns numbers for the log, on the device.

        Raises DivergedError where a number is not finite and reading it is free; elsewhere `check` does.
        """
        sums, times, each = self.gradient(step, source, self.parts)
        sums["grad_norm"] = self.apply(step)
        total = self.settings.batch_size
        self.task.objective.update(self.world.gather(times, total), self.world.gather(each, total))
        return sums

    def gradient(
        self, step: int, source: BatchSource, parts: Sequence[range]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Leave the gradient of these rows of the batch with the parameters.

        Returns the mean losses, and of every example its time and its loss.
        """
        draws = RandomStreams(self.task.seed, step, self.settings.batch_size)
        sums: dict[str, Tensor] = {}
        each, times = [], []
        for index, rows in enumerate(parts):
            raw, cond = source.rows(step, rows)
            local = draws.rows(rows.start)
            seed_dropout(self.device, self.task.seed, step, self.world.rank, index)
            share = len(rows) * self.world.size / self.settings.batch_size
            with self._computation.part(last=index == len(parts) - 1):
                x0, ready = self.preparation.train(raw, cond, local)
                loss = self._computation(self.model, x0, local, self.ema_model, ready)
                (loss.mean * self._factor(loss.mean, share, step)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.mean, **{f"loss_{n}": v for n, v in loss.parts.items()}}.items():
                part = value.detach() * share
                sums[name] = sums[name] + part if name in sums else part
            each.append(loss.each)
            times.append(loss.t)
        return sums, _joined(times), _joined(each)

    def apply(self, step: int) -> Tensor:
        """Update weights and averages from the gradient, where it is finite; returns its norm."""
        norm = self.update(rate(self.settings, step))
        if self._immediate:
            self.check()
        for averaged in self.averages:
            averaged.update(step + 1, None if self._immediate else self.update.bad)
        return norm

    def check(self) -> None:
        """Raise DivergedError where some gradient was not finite; waits for the device."""
        if bool(self.update.bad):
            raise _diverged(self.update.done + 1)

    def validate(self, *, average: bool = True, rounds: int = 1) -> ValidationResult | None:
        """The loss on held-out examples, with the first average or the raw weights; the same draws at every call.

        Of at most a tenth of the examples that the whole training sees, so that it never takes longer than that.
        """
        seen = self.settings.steps * self.settings.batch_size
        return held_out_loss(
            self.ema_model if average and self.ema_model is not None else self.model,
            self.preparation,
            self.device,
            batch_size=len(self.parts[0]),
            ema=self.ema_model,
            most=min(MOST, max(GROUP, seen // 10)),
            rounds=rounds,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of named tensors for a checkpoint, which share memory with the engine: `network`, one `ema-NAME` for
        each average, `optimizer`, and `components` where others than the network learn or remember."""
        groups = {"network": dict(self.network.state_dict()), "optimizer": self.update.tensors()}
        groups |= {averaged.group: dict(averaged.network.state_dict()) for averaged in self.averages}
        if components := self.components.state_dict():
            groups["components"] = dict(components)
        return groups

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the `tensors()` of another engine of the same task."""
        for group, mine in self.tensors().items():
            for name, value in mine.items():
                value.copy_(tensors[group][name])

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights, by the names of the network's `state_dict`, as the initial ones, averages included."""
        self.network.load_state_dict(dict(weights))
        for averaged in self.averages:
            averaged.restart()

    def storages(self) -> Iterator[Tensor]:
        """Everything of size that stays on the device: weights, optimizer, averages, resident data."""
        yield from (self.flat.values, *self.update.tensors().values())
        yield from (averaged.average.values for averaged in self.averages)
        if isinstance(self._split, InMemorySplit):
            yield from (self._split.x, *self._split.cond.values())

    def _flatten(self) -> Flat:
        """All that is trained in one buffer, the network's parameters first."""
        own = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        rest = {f"/{name}": p for name, p in self.components.named_parameters() if p.requires_grad}
        last = keeps_channels_last(self.settings, self.device, own.values())
        return Flat(own | rest, self.device, channels_last=last)

    def _factor(self, mean: Tensor, share: float, step: int) -> Tensor | float:
        """What the loss is multiplied with; nan where it is not finite, so that on every rank the gradient is not."""
        if self._immediate:
            if not math.isfinite(float(mean.detach())):
                raise _diverged(step + 1)
            return share
        return torch.where(torch.isfinite(mean.detach()), share, torch.nan) * self.update.scale

    def _average_model(self) -> Model | None:
        if not self.averages:
            return None
        network = PrecisionWrapper(self.averages[0].network, self.precision, self.device).eval()
        return replace(self.task.model, network=network)


def _diverged(step: int) -> DivergedError:
    return DivergedError(
        f"loss or gradient stopped being finite at step {step}; the weights have not seen it",
        fix="lower train.optimizer.lr, lengthen train.warmup, lower train.clip, or set train.precision: fp32",
        notes=["the checkpoints before this step are kept"],
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
"""The option of torch 2.13 and later, and what it was called before: each rank's buffers are its own."""


class _Loss(nn.Module):
    """Holds all that learns, so that one forward of it is one loss, however often an objective asks the network."""

    def __init__(self, objective: Objective, network: nn.Module, components: nn.ModuleDict) -> None:
        super().__init__()
        self.network, self.components = network, components
        self._objective = (objective,)  # in a tuple: an objective that is a module is among the components

    def forward(
        self, model: Model, x0: Tensor, noise: RandomStreams, ema: Model | None, cond: Mapping[str, Tensor]
    ) -> Loss:
        return self._objective[0](model, x0, noise, ema=ema, **cond)


class Computation:
    """The loss of a part of the batch. Over several processes gradients are averaged in the last part of a step."""

    def __init__(self, objective: Objective, network: nn.Module, components: nn.ModuleDict, world: Ranks) -> None:
        loss = _Loss(objective, network, components)
        self._loss: nn.Module = loss
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            self._parallel = DistributedDataParallel(loss, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})  # type: ignore[arg-type]
            self._loss = self._parallel

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, ema: Model | None, cond: Mapping[str, Tensor]
    ) -> Loss:
        return self._loss(model, x0, noise, ema, cond)  # type: ignore[no-any-return]

    def part(self, last: bool) -> AbstractContextManager[None]:
        """The context of one part: forward and backward belong inside."""
        if self._parallel is None or last:
            return contextlib.nullcontext()
        return self._parallel.no_sync()


def seed_dropout(device: torch.device, seed: int, step: int, rank: int, part: int) -> None:
    """Seed what dropout draws from on this device: a function of its arguments and nothing else."""
    number = key(seed, "dropout", step, rank, part)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
