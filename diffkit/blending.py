"""Samplers around a sampler: the base of wrappers, and one that holds a known part of x along its own noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor

from .denoiser import Denoiser
from .level import Level
from .sampler import Noise, Sampler, State


@dataclass(frozen=True)
class Around(Sampler[State], Generic[State]):
    """Base of samplers that wrap the steps of `inner` and take its attributes, such as `order`. Implement `step`."""

    inner: Sampler[Any]

    @property
    def order(self) -> int:
        return self.inner.order

    @property
    def stochastic(self) -> bool:
        return self.inner.stochastic

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    @property
    def discrete_only(self) -> bool:
        return self.inner.discrete_only

    @property
    def reaches_noise(self) -> bool:
        return self.inner.reaches_noise

    @property
    def consistency(self) -> bool:
        return self.inner.consistency

    @property
    def syncs(self) -> bool:
        return self.inner.syncs

    @property
    def dtype(self) -> torch.dtype | None:
        return self.inner.dtype

    def nfe(self, n: int) -> int | None:
        return self.inner.nfe(n)


@dataclass(frozen=True)
class HeldState:
    """The state of the inner sampler, and the level at which sampling ends."""

    inner: Any
    last: Level | None = None


@dataclass(frozen=True)
class Held(Around[HeldState]):
    """After each step of `inner`, put the known part of x back with its noise at the start: alpha_s x0 + sigma_s eps,
    and x0 itself after the last step.

    x0       what is known: (B, C, *S)
    eps      its noise, for all steps: (B, C, *S)
    unknown  1 for what the sampler makes, 0 for what is known; broadcasts to x
    Source: Avrahami et al. 2022 (arXiv:2111.14818), Algorithm 2. Differs: the noise stays the same, as in diffusers.
    """

    x0: Tensor
    eps: Tensor
    unknown: Tensor

    def init(self, levels: Sequence[Level]) -> HeldState:
        return HeldState(self.inner.init(levels), levels[-1])

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: HeldState | None, noise: Noise
    ) -> tuple[Tensor, HeldState]:
        known = state or HeldState(None)
        y, inner = self.inner.step(denoise, x, t, s, known.inner, noise)
        held = self.x0 if s == known.last else s.add_noise(self.x0, self.eps)
        return torch.where(self.unknown > 0.5, y, held.to(y.dtype)), HeldState(inner, known.last)
