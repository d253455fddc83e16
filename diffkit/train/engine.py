"""The engine: weights, optimizer and averages on the device, and one step of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..callback import ValidationResult
from ..data import InMemorySplit, stack
from ..errors import UsageError
from ..network import Network
from ..noise import RandomStreams, key
from ..objective import Loss
from ..optimizer import LRSchedule, Optimizer
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..strategy import Strategy, is_sharded, local, local_rows
from .config import TrainConfig
from .data_loading import BatchSource, ShuffledOrder, batch_source, divide
from .ema import Average
from .latents import LatentCache
from .optimizer import CriticUpdate, Update
from .precision import PrecisionWrapper, choose, compile_mode, keeps_channels_last, recompute_activations
from .preprocessing import Preprocessing
from .state import digest_of
from .tasks import Problem
from .validation import GROUP, MAX_EXAMPLES, held_out_loss

CRITICS = "critics:"
"""How the names of the numbers of the critics' optimizer start in a checkpoint."""
FITTED_TOGETHER = 16
"""Examples that are prepared at a time for `Network.fit`."""


class Engine:
    """The network of a problem, its optimizer, and its averages.

    `model` is the trained model, `average_model` has the first average of its weights (None without averages).

    Args:
        problem: model, loss and data. The network moves to `device`; its weights become float32 at least.
        config: the configuration of the training.
        optimizer: builds the torch optimizer.
        lr_schedule: factor on the learning rates; None means 1.
        strategy: the strategy for several processes.
        device: the device to train on.
        ranks: the processes of this run.

    Raises:
        UsageError: the configuration contradicts itself, the device or the number of processes.
        ValueError: two averages have the same name, or an average has not exactly one of decay, half_life, power.
        DataError: there are no examples.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        *,
        optimizer: Optimizer,
        lr_schedule: LRSchedule | None,
        strategy: Strategy,
        device: torch.device,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        _refuse_contradictions(config, strategy, ranks)
        self.problem, self.config, self.strategy, self.device, self.ranks = problem, config, strategy, device, ranks
        self.preprocessing = Preprocessing(problem)
        self.network = problem.model.network.to(device).train()
        self.components = problem.learned().to(device)
        copies = self._prepare_network()
        if self.sharded and not isinstance(self.network, Network):
            raise UsageError("a codec cannot be trained in shards", code="DK057", fix="set train.strategy: ddp")
        self.precision = choose(config.precision, device, problem.undecodable, self.network)
        bounds: dict[str, Any] = {"clip": config.clip, "deferred": defers(device)}
        self.critics = CriticUpdate(problem, optimizer, lr_schedule, ranks, **bounds) if problem.critics else None
        self.trained = self._trained_parameters()
        self.update = Update(optimizer, lr_schedule, self.trained, scaling=self.precision.scaling, **bounds)
        self.averages = [
            Average(ema, self.network, config.batch_size, copied)
            for ema, copied in zip(config.ema, copies, strict=True)
        ]
        if config.checkpointing:
            recompute_activations(self.network)
        if (mode := compile_mode(config, device)) is not None:
            self.network.compile(mode=mode)
        self.model = replace(problem.model, network=PrecisionWrapper(self.network, self.precision, device))
        self.average_model = self._average_model()
        self._loss = strategy.wrap(_LossModule(problem, self.network, self.components))
        self.rows = strategy.shard(config.batch_size)
        self.parts = divide(self.rows.start, self.rows.stop, config.accumulate)
        self._split = problem.data.split("train")
        self._order = ShuffledOrder(len(self._split), config.batch_size, problem.seed)

    def use_latents(self, latents: LatentCache) -> None:
        """Train on posteriors that are kept on disk, in place of the examples: the numbers are the same."""
        self.preprocessing = replace(self.preprocessing, latents=latents)
        self._split = latents.split("train")

    @property
    def examples(self) -> int:
        """The number of examples to train on."""
        return self._order.count

    def batch_source(self, first: int, workers: int | None = None) -> BatchSource:
        """Open the source of the examples of `advance`, from step `first` on; close it after the last step.

        `workers` None takes the number of the configuration, or else the number that the data prefers.
        """
        if workers is None:
            workers = self.problem.data.workers if self.config.workers is None else self.config.workers
        steps, ahead = range(first, self.config.steps), self.config.prefetch
        return batch_source(self._split, self._order, self.rows, steps, self.device, workers, ahead)

    def advance(self, step: int, source: BatchSource) -> dict[str, Tensor]:
        """Do one step: the gradient of the global batch, then one update.

        Args:
            step: number of steps before this one.
            source: the source of the examples.

        Returns:
            Numbers for the log: () each, on the device.

        Raises:
            DivergedError: a number is not finite and reading it costs nothing; elsewhere `check` raises it.
        """
        values, times, losses = self.gradient(step, source, self.parts)
        values["grad_norm"] = self.apply(step)
        if self.critics is not None:
            values |= self.critics(step, self.config.steps)
        total = self.config.batch_size
        self.problem.update(self.strategy.gather(times, total), self.strategy.gather(losses, total))
        return values

    def gradient(
        self, step: int, source: BatchSource, parts: Sequence[range]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the gradient and leave it with the parameters.

        Args:
            step: number of steps before this one.
            source: the source of the examples.
            parts: rows of the global batch, computed one part after the other.

        Returns:
            The mean losses by name, the time of each example (B,), and the loss of each example (B,).
        """
        streams = RandomStreams(self.problem.seed, step, self.config.batch_size)
        values: dict[str, Tensor] = {}
        losses, times = [], []
        for index, rows in enumerate(parts):
            raw, cond = source.rows(step, rows)
            local = streams.rows(rows.start)
            seed_dropout(self.device, key(self.problem.seed, "dropout", step, self.ranks.rank, index))
            share = len(rows) * self.strategy.size / self.config.batch_size
            with self.strategy.gradient_sync(self._loss, index == len(parts) - 1):
                x0, ready = self.preprocessing.train(raw, cond, local)
                loss: Loss = self._loss(self.model, x0, local, self.average_model, ready, step)
                (loss.mean * self.update.factor(loss.mean, share)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.mean, **{f"loss_{n}": v for n, v in loss.parts.items()}}.items():
                part = value.detach() * share
                values[name] = values[name] + part if name in values else part
            losses.append(loss.each)
            times.append(loss.t)
            if self.critics is not None:
                self.critics.add(loss.out, x0.detach(), share)
        return values, _joined(times), _joined(losses)

    def apply(self, step: int) -> Tensor:
        """Update weights and averages from the gradient; returns its norm: ()."""
        norm = self.update(step, self.config.steps)
        for average in self.averages:
            average.update(step + 1)
        return norm

    def check(self, step: int) -> None:
        """Raise DivergedError if a gradient of the first `step` steps was not finite; waits for the device."""
        self.update.check(step)
        if self.critics is not None:
            self.critics.update.check(step)

    def lr(self, step: int) -> float:
        """Return the learning rate of the step after `step` steps."""
        return self.update.lr(step, self.config.steps)

    def validate(self, *, step: int = 0, average: bool = True, rounds: int = 1) -> ValidationResult | None:
        """Return the loss on held-out examples; None if none are held out. Every call draws the same random numbers.

        At most a tenth of the examples of the whole training are used, so that validation never takes longer than
        training.

        Args:
            step: number of steps done, on which some losses depend.
            average: whether to use the first average of the weights, if there is one.
            rounds: how often each example is used.

        Returns:
            The mean loss, and that by time.
        """
        seen = self.config.steps * self.config.batch_size
        return held_out_loss(
            self.average_model if average and self.average_model is not None else self.model,
            self.preprocessing,
            self.device,
            batch_size=self.config.batch_size // (self.strategy.size * self.config.accumulate),  # on each process
            average=self.average_model,
            step=step,
            max_examples=min(MAX_EXAMPLES, max(GROUP, seen // 10)),
            rounds=rounds,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return groups of named tensors for a checkpoint; they share memory with the engine.

        The groups are `network`, `ema-NAME` for each average, `optimizer`, `critics-optimizer` if there are critics,
        and `components` if components besides the network have weights or buffers.
        """
        groups = {"network": dict(self.network.state_dict())}
        groups |= {group: update.tensors() for group, update in self.updates.items()}
        groups |= {average.group: dict(average.network.state_dict()) for average in self.averages}
        if components := self.components.state_dict():
            groups["components"] = dict(components)
        return groups

    @property
    def updates(self) -> dict[str, Update]:
        """The updates by the group of their tensors in a checkpoint."""
        return {
            "optimizer": self.update,
            **({} if self.critics is None else {"critics-optimizer": self.critics.update}),
        }

    def numbers(self) -> dict[str, float]:
        """Return the numbers in the states of the optimizers that are not tensors, see `Update.numbers`."""
        critics = {} if self.critics is None else self.critics.update.numbers()
        return self.update.numbers() | {CRITICS + name: value for name, value in critics.items()}

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return any(map(is_sharded, self.network.parameters()))

    def digest(self) -> str:
        """Return a digest of the weights and averages that every process holds as a whole, computed on the device."""
        if self.ranks.size == 1:
            return ""
        modules = (self.network, self.components, *(average.network for average in self.averages))
        return digest_of(p for module in modules for p in module.parameters() if not is_sharded(p))

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, float]) -> None:
        """Load the `tensors()` of another engine of the same problem, and the numbers of its optimizer.

        Raises:
            CheckpointError: the state of the optimizer belongs to other parameters.
        """
        self.update.load(tensors["optimizer"], {k: one for k, one in numbers.items() if not k.startswith(CRITICS)})
        if self.critics is not None:
            others = {k.removeprefix(CRITICS): one for k, one in numbers.items() if k.startswith(CRITICS)}
            self.critics.update.load(tensors["critics-optimizer"], others)
        for group, mine in self.tensors().items():
            if group not in self.updates:
                for name, value in mine.items():
                    local(value).copy_(tensors[group][name])

    def held_rows(self, group: str, name: str, shape: Sequence[int]) -> range | None:
        """Return the rows of a checkpoint tensor that this process holds; None means all of them.

        Args:
            group: its group, as in `tensors`.
            name: its name.
            shape: its whole shape.

        Returns:
            The rows.
        """
        update = self.updates.get(group)
        named = self.tensors()[group] if update is None else update.parameters
        like = named.get(name if update is None else name.rpartition(".")[0])
        return local_rows(like) if like is not None and like.shape == tuple(shape) else None

    def fit(self) -> str:
        """Let codec and network learn from the training examples; averages start from what the network has learned.

        See `Codec.fit` and `Network.fit`. Returns a line about what was learned.
        """
        found = [self.problem.fit()]
        if isinstance(self.network, Network) and self.network.examples_to_fit:
            found.append(self.network.fit(*self._prepared(self.network.examples_to_fit)))
        for average in self.averages:
            average.restart()
        return "; ".join(filter(None, found))

    @torch.no_grad()
    def _prepared(self, wanted: int) -> tuple[Tensor, Tensor | None]:
        """Return at most `wanted` prepared training examples, evenly spread, and their classes.

        A small data set is augmented again, as often as it fits.
        """
        count = min(wanted, self.examples)
        rows = [i * self.examples // count for i in range(count)] * (wanted // count)
        streams = RandomStreams(key(self.problem.seed, "fit"), 0, len(rows))
        found, labels = [], []
        for first in range(0, len(rows), FITTED_TOGETHER):
            raw, cond = stack(self._split, rows[first : first + FITTED_TOGETHER])
            given = {name: value.to(self.device) for name, value in cond.items()}
            x0, ready = self.preprocessing.train(raw.to(self.device), given, streams.rows(first))
            found.append(x0)
            labels += [value for name, value in ready.items() if name == "label" and not value.is_floating_point()]
        return torch.cat(found), torch.cat(labels) if labels else None

    def whole_weights(self) -> dict[str, Tensor]:
        """Return the weights of the network by name. Processes that hold shards gather them together."""
        named: dict[str, Any] = self.network.state_dict()
        return {name: value.full_tensor() if is_sharded(value) else value for name, value in named.items()}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load other initial weights, by the names of the network's `state_dict`; averages start from them."""
        for name, mine in self.network.state_dict().items():
            rows = local_rows(mine)
            local(mine).copy_(weights[name] if rows is None else weights[name][rows.start : rows.stop])
        for average in self.averages:
            average.restart()

    def stored_tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that stays in memory: weights, optimizer state, averages, data."""
        for named in self.tensors().values():
            yield from map(local, named.values())
        if isinstance(self._split, InMemorySplit):
            yield from (self._split.x, *self._split.cond.values())

    def _prepare_network(self) -> list[nn.Module]:
        """Set the type and the memory format of the weights, shard them if the strategy does; return copies for the
        averages.
        """
        for parameter in self.network.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        own = [p for p in self.network.parameters() if p.requires_grad]
        if keeps_channels_last(self.config, self.device, own):
            self.network.to(memory_format=torch.channels_last)
        copies = [self.strategy.prepare(copy.deepcopy(self.network)) for _ in self.config.ema]
        self.network = self.strategy.prepare(self.network)
        return copies

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        own = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        others = {f"/{name}": p for name, p in self.components.named_parameters() if p.requires_grad}
        return own | others

    def _average_model(self) -> Any:
        if not self.averages:
            return None
        network = PrecisionWrapper(self.averages[0].network, self.precision, self.device).eval()
        return replace(self.problem.model, network=network)


def defers(device: torch.device) -> bool:
    """Return whether bad gradients are skipped on the device: on the CPU the host reads numbers without waiting."""
    return device.type != "cpu"


def _refuse_contradictions(config: TrainConfig, strategy: Strategy, ranks: Ranks) -> None:
    if strategy.size != ranks.size:
        raise UsageError(
            f"train.strategy {type(strategy).__name__} trains in {strategy.size} processes, but {ranks.size} were "
            "started",
            code="DK057",
            fix="set train.strategy: auto, or start one process",
        )
    if config.batch_size < ranks.size * config.accumulate:
        raise UsageError(
            f"a batch of {config.batch_size} cannot be split over {ranks.size} processes with "
            f"{config.accumulate} parts each",
            code="DK052",
            fix="raise train.batch_size or lower train.accumulate",
        )
    names = [ema.name for ema in config.ema]
    if len(set(names)) != len(names):
        raise ValueError(f"two averages have the same name: {', '.join(names)}")


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _LossModule(nn.Module):
    """A module around all trained modules whose forward pass is one loss, however often it calls the network."""

    def __init__(self, problem: Problem, network: nn.Module, components: nn.ModuleDict) -> None:
        super().__init__()
        self.network, self.components, self.problem = network, components, problem

    def forward(self, *args: Any) -> Loss:
        return self.problem.loss(*args)


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout draws from on this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
