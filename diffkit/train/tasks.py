"""The problems of the tasks besides diffusion: an autoencoder that reconstructs, and a classifier of noisy examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..classifier import Classifier
from ..codec import Codec, Posterior, Reconstruction
from ..conditioner import Conditions
from ..data import Augmentation, ConditionSpec, Data
from ..noise import RandomStreams
from ..objective import Loss
from ..reconstruction import ReconstructionLoss
from ..times import Times
from .preprocessing import IDENTITY, Problem


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
