"""The problem of each task, which a trainer minimises: a diffusion, an autoencoder, a classifier of noisy examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..classifier import Classifier
from ..codec import Codec, Identity, Posterior, Reconstruction
from ..conditioner import Conditions
from ..data import Augmentation, ConditionSpec, Data
from ..denoiser import Model
from ..noise import RandomStreams
from ..objective import Loss, Objective
from ..reconstruction import ReconstructionLoss
from ..times import Times

IDENTITY = Identity()


class Problem(ABC):
    """What a trainer minimises: a model around the trained `network`, the data, and the loss of a batch.

    The model is a dataclass. The trainer replaces its field `network` by its own, and by averages.
    """

    model: Any
    data: Data
    codec: Codec
    augment: tuple[Augmentation, ...]
    condition_dropout: float | Mapping[str, float]
    seed: int

    @property
    @abstractmethod
    def conditioning(self) -> Conditions:
        """The conditions that the loss receives."""

    @property
    def undecodable(self) -> str | None:
        """The parameterization whose outputs cannot be decoded in half precision, by name; None if there is no
        problem.
        """
        return None

    @property
    def times(self) -> tuple[float, float] | None:
        """The clean and the noisy end of the times of losses; None if losses have no time."""
        return None

    @property
    def critics(self) -> Mapping[str, nn.Module]:
        """Modules that an optimizer of their own trains by `critic_loss`, after the network in each step."""
        return {}

    def fit(self) -> str:
        """Let the codec learn from the training examples; return a line about it. See `Codec.fit`."""
        return self.codec.fit(self.data)

    @abstractmethod
    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        """Return the loss of a batch.

        Args:
            model: the model to train.
            x0: prepared examples, (B, C, *S).
            streams: random numbers of these examples.
            average: the averaged model, None without averages.
            cond: conditions, one row for each example.
            step: number of steps before this one.

        Returns:
            The loss, with the losses of the examples; its `out` is passed to the critics.
        """

    def critic_loss(self, name: str, out: Any, x0: Tensor, step: int) -> Tensor:
        """Return the loss of a critic: (B,).

        Args:
            name: its name.
            out: what the loss of these examples returned as `out`.
            x0: prepared examples, (B, C, *S).
            step: number of steps before this one.

        Returns:
            The losses: (B,); without gradient, the critic is left as it is.
        """
        raise NotImplementedError

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the times and losses of the whole global batch, (B,) each, after each step."""

    @abstractmethod
    def parts(self) -> list[tuple[str, object]]:
        """Return the components whose modules are trained and saved besides the network, with their paths."""

    def learned(self) -> nn.ModuleDict:
        """Return every module besides the network that a component is or contains: it is trained and saved as well.

        Keys are paths with slashes, such as `objective/times`.
        """
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, part in self.parts():
            for at, module in _modules(part, path):
                if not any(module is inner for inner in self.model.network.modules()):
                    found.setdefault(id(module), (at, module))
        return nn.ModuleDict(dict(found.values()))


@dataclass(frozen=True)
class TrainingProblem(Problem):
    """A diffusion: a model, the objective that trains it, and the data.

    `condition_dropout` is the share of conditions that are replaced by their null: of each condition, by name, or under
    `joint` of all conditions of an example. All random numbers follow from `seed`. `conditions` None: every condition
    of the data, unchanged.
    """

    model: Model
    objective: Objective
    data: Data
    codec: Codec = IDENTITY
    augment: tuple[Augmentation, ...] = ()
    condition_dropout: float | Mapping[str, float] = 0.0
    seed: int = 0
    conditions: Conditions | None = None

    @property
    def conditioning(self) -> Conditions:
        """The conditions that the network receives."""
        return self.conditions or Conditions.unchanged(self.data.spec.conditions)

    @property
    def undecodable(self) -> str | None:
        parameterization = self.model.parameterization
        return type(parameterization).__name__.lower() if parameterization.full_precision else None

    @property
    def times(self) -> tuple[float, float]:
        return self.model.schedule.t_clean, self.model.schedule.t_noise

    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        return self.objective(model, x0, streams, ema=average, **cond)

    def update(self, t: Tensor, each: Tensor) -> None:
        self.objective.update(t, each)

    def parts(self) -> list[tuple[str, object]]:
        conditioners = self.conditioning.conditioners.items()
        return [
            ("objective", self.objective),
            ("parameterization", self.model.parameterization),
            ("schedule", self.model.schedule),
            ("codec", self.codec),
            *((f"augment{index}", augmentation) for index, augmentation in enumerate(self.augment)),
            *((f"conditions/{name}", one) for name, one in conditioners if one.state_dict()),
        ]


@dataclass(frozen=True)
class CodecModel:
    """A codec in training: `network` is the codec, or a module around it."""

    network: nn.Module

    def __call__(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Encode and decode x: (B, C, *S) in the dtype of x; see `TrainableCodec.forward`."""
        out: Reconstruction = self.network(x, noise)
        std = None if out.posterior.std is None else out.posterior.std.to(x.dtype)
        posterior = Posterior(out.posterior.mean.to(x.dtype), std)
        terms = {name: term.to(x.dtype) for name, term in out.terms.items()}
        return Reconstruction(out.x.to(x.dtype), out.z.to(x.dtype), posterior, terms, out.last_layer, out.logged)


@dataclass(frozen=True)
class CodecProblem(Problem):
    """A codec, the losses of its reconstructions by name, and the data. All random numbers follow from `seed`."""

    model: CodecModel
    losses: Mapping[str, ReconstructionLoss]
    data: Data
    augment: tuple[Augmentation, ...] = ()
    seed: int = 0
    codec = IDENTITY
    condition_dropout = 0.0

    @property
    def conditioning(self) -> Conditions:
        return Conditions()

    @property
    def critics(self) -> Mapping[str, nn.Module]:
        return {name: loss.critic for name, loss in self.losses.items() if loss.critic is not None}

    def fit(self) -> str:
        network = self.model.network
        assert isinstance(network, Codec)
        return network.fit(self.data)

    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        codec = self.model.network
        assert isinstance(codec, Codec)
        shape = codec.spec(self.data.spec).shape
        noise = streams.normal("codec", torch.empty((), dtype=x0.dtype, device=x0.device).expand(len(x0), *shape))
        out = model(x0, noise)
        terms = {**{name: loss(out, x0, step) for name, loss in self.losses.items()}, **out.terms}
        each = torch.stack([*terms.values()]).sum(0)
        parts = {name: value.detach().mean() for name, value in {**terms, **out.logged}.items()}
        return Loss(each.mean(), each.detach(), torch.zeros_like(each), parts, _detached(out))

    def critic_loss(self, name: str, out: Any, x0: Tensor, step: int) -> Tensor:
        return self.losses[name].critic_loss(out, x0, step)

    def parts(self) -> list[tuple[str, object]]:
        losses: list[tuple[str, object]] = [(f"loss/{name}", loss) for name, loss in self.losses.items()]
        critics = [(f"critic/{name}", one) for name, one in self.critics.items() if one not in _inside(losses)]
        return [*losses, *critics, *((f"augment{index}", one) for index, one in enumerate(self.augment))]


@dataclass(frozen=True)
class ClassifierProblem(Problem):
    """A classifier of noisy examples, the distribution of times, and the data. Random numbers follow from `seed`.

    `condition` is the class that it predicts.
    """

    model: Classifier
    times_drawn: Times
    condition: str
    data: Data
    codec: Codec = IDENTITY
    augment: tuple[Augmentation, ...] = ()
    seed: int = 0
    condition_dropout = 0.0

    @property
    def conditioning(self) -> Conditions:
        spec: ConditionSpec = self.data.spec.conditions[self.condition]
        return Conditions.unchanged({self.condition: spec})

    @property
    def times(self) -> tuple[float, float]:
        return self.model.schedule.t_clean, self.model.schedule.t_noise

    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        t = self.times_drawn.of_rows(streams, x0, model.schedule)
        level = model.schedule.level(t)
        noisy = level.add_noise(x0, streams.normal("noise", x0))
        each = cross_entropy(model(noisy, level).float(), cond[self.condition], reduction="none")
        return Loss.of(each, t, self.times_drawn.correction(t, model.schedule))

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times_drawn.update(t, each)

    def parts(self) -> list[tuple[str, object]]:
        augment = [(f"augment{index}", one) for index, one in enumerate(self.augment)]
        return [("times", self.times_drawn), ("schedule", self.model.schedule), ("codec", self.codec), *augment]


def _inside(parts: list[tuple[str, object]]) -> list[nn.Module]:
    """Return every module of the parts that are modules."""
    return [inner for _, part in parts if isinstance(part, nn.Module) for inner in part.modules()]


def _detached(out: Reconstruction) -> Reconstruction:
    """Return a reconstruction without gradient and without losses."""
    std = None if out.posterior.std is None else out.posterior.std.detach()
    return Reconstruction(out.x.detach(), out.z.detach(), Posterior(out.posterior.mean.detach(), std))


def _modules(part: object, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules in a component and in its own components, with their paths."""
    if isinstance(part, nn.Module):
        yield path, part
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _modules(getattr(part, field.name), f"{path}/{field.name}")
    elif isinstance(part, (tuple, list)):
        for index, item in enumerate(part):
            yield from _modules(item, f"{path}/{index}")
