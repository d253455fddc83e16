"""Samplers around a sampler that hold the known pixels of a picture: blending and RePaint.

The denoiser carries the measurement and the mask in the aux of its estimates; the guidance `known` puts them there.
Without them, or with a mask of zeros, only the inner sampler acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Around, Denoiser, Estimate, Level, Noise, transition


@dataclass(frozen=True, slots=True)
class State:
    """The state of the inner sampler, and the noise of the known pixels (None before the first step)."""

    inner: Any
    eps: Tensor | None = None


@dataclass
class _Watched:
    """A denoiser that keeps the aux of its last estimate."""

    denoise: Denoiser
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        estimate = self.denoise(x, level, **cond)
        self.aux = estimate.aux
        return estimate

    def known(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the known pixels and their mask, (B, C, H, W) each, or None without a measurement."""
        if "known" not in self.aux or "mask" not in self.aux:
            return None
        return self.aux["known"].to(like.dtype).expand_as(like), (self.aux["mask"] > 0.5).expand_as(like)


class _Holding(Around[State]):
    """The common part of both samplers: the state."""

    def init(self, levels: Sequence[Level]) -> State:
        return State(self.inner.init(levels))


@dataclass(frozen=True)
class Blend(_Holding):
    """After each step of the inner sampler, put the known pixels y back with one fixed noise: alpha_s y + sigma_s e.

    e is the noise that the first state has there, (x - alpha y) / sigma, so the known pixels move on a straight path
    from the start to y, and at the clean level they equal y.
    Source: Avrahami et al. 2022 (arXiv:2111.14818), Algorithm 2. Differs: the noise stays the same, as in diffusers.
    """

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: State | None, noise: Noise
    ) -> tuple[Tensor, State]:
        watched = _Watched(denoise)
        y, inner = self.inner.step(watched, x, t, s, None if state is None else state.inner, noise)
        found = watched.known(y)
        if found is None:
            return y, State(inner)
        known, mask = found
        eps = state.eps if state is not None else None
        if eps is None:
            eps = (x.to(y.dtype) - t.alpha * known) / t.sigma
        return torch.where(mask, s.add_noise(known, eps), y), State(inner, eps)


@dataclass(frozen=True)
class RePaint(_Holding):
    """Put the known pixels back with new noise after each step, and make each step `resamples` times.

    Between the repetitions the result is noised again from s to t, so that the hole learns of the known pixels. The
    step to clean data is made once.
    Source: Lugmayr et al. 2022 (arXiv:2201.09865), Algorithm 1, with U = resamples, jumps of one step.
    """

    resamples: Annotated[int, Field(ge=1)] = 10
    law_base: ClassVar[dict[str, int]] = {"resamples": 3}

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: State | None, noise: Noise
    ) -> tuple[Tensor, State]:
        watched = _Watched(denoise)
        before = None if state is None else state.inner
        count = 1 if s.is_clean else self.resamples
        for made in range(1, count + 1):
            y, inner = self.inner.step(watched, x, t, s, before, noise)
            found = watched.known(y)
            if found is not None:
                known, mask = found
                y = torch.where(mask, known if s.is_clean else s.add_noise(known, noise(y)), y)
            if made < count:
                x = float(transition.decay(t, s)) * y + float(transition.spread(t, s)) * noise(y)
        return y, State(inner)

    def nfe(self, n: int) -> int | None:
        return None if self.inner.nfe(1) != 1 else self.resamples * (n - 1) + 1
