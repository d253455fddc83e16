"""Averages of the weights: kept in flat memory, one pass an update, and a network that shows them at any time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..denoiser import Model
from ..network import Network
from .flat import Flat
from .profile import profile
from .settings import Ema


class Average:
    """new = beta_n old + (1 - beta_n) weights at update n, starting from the initial weights.

    `weights`: (N,) is the flat memory that is averaged, `values`: (N,) the average.
    """

    def __init__(self, ema: Ema, weights: Tensor, batch_size: int) -> None:
        self.ema, self.weights = ema, weights
        self.values = weights.detach().clone()
        self._beta = profile(ema, batch_size)

    def update(self, n: int, keep: Tensor | None = None) -> None:
        """Update number n = 1, 2, ...; where `keep`: () is 1, a flag on the device, nothing changes."""
        step = 1.0 - self._beta(n)
        self.values.lerp_(self.weights, step if keep is None else step * (1.0 - keep))


class Averaged:
    """An average, and the network whose parameters are views of it; buffers are copied from the trained network."""

    def __init__(self, ema: Ema, flat: Flat, network: Network, batch_size: int) -> None:
        own = dict(network.named_parameters())
        length = flat.end(sum(parameter.requires_grad for parameter in own.values()))
        self.average = Average(ema, flat.values[:length], batch_size)
        self.network = shadow(network, flat.views(self.average.values))
        twins = dict(self.network.named_modules())
        # Walking a network takes longer than an average of its weights, so where the buffers are is found once.
        self._buffers = [
            (twins[path], module, name)
            for path, module in network.named_modules()
            for name, _ in module.named_buffers(recurse=False)
        ]

    @property
    def name(self) -> str:
        """The name that the recipe gives it."""
        return self.average.ema.name

    @property
    def group(self) -> str:
        """The group of tensors in a checkpoint."""
        return f"ema-{self.name}"

    def update(self, n: int, keep: Tensor | None = None) -> None:
        """Update number n = 1, 2, ..., of weights and buffers."""
        self.average.update(n, keep)
        self.refresh()

    def restart(self) -> None:
        """Forget the past: the average becomes the present weights."""
        self.average.values.copy_(self.average.weights)
        self.refresh()

    def refresh(self) -> None:
        """Take over the buffers of the trained network."""
        for mine, theirs, name in self._buffers:
            getattr(mine, name).copy_(getattr(theirs, name))

    def model(self, like: Model) -> Model:
        """The model with the averaged network."""
        return replace(like, network=self.network)


def shadow(network: Network, views: Mapping[str, Tensor]) -> Network:
    """A copy of a network whose trained parameters, by name, are `views`; the rest is copied. It never trains."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(views[name] if name in views else parameter.detach().clone(), requires_grad=False)
        for name, parameter in network.named_parameters()
    }
    twin = copy.deepcopy(network, memo)
    return twin.requires_grad_(False).eval()


def average(ema: Ema, weights: list[Tensor], batch_size: int = 1) -> Tensor:
    """The average after updates with weights[1:], starting at weights[0]; the definition, for tests and analysis."""
    source = weights[0].clone()
    result = Average(ema, source, batch_size)
    for n, values in enumerate(weights[1:], start=1):
        source.copy_(values)
        result.update(n)
    return result.values


def effective_weights(ema: Ema, updates: int, batch_size: int = 1) -> Tensor:
    """(updates + 1,) float64: how much the initial weights and those after each update count; they sum to 1."""
    beta = profile(ema, batch_size)
    out = torch.zeros(updates + 1, dtype=torch.float64)
    out[0] = 1.0
    for n in range(1, updates + 1):
        factor = beta(n)
        out *= factor
        out[n] = 1.0 - factor
    return out
