"""Samplers: one step from a level to a cleaner one, and the only sampling loop.

A sampler keeps nothing between calls: what a later step needs is in the state that `step` returns. The grid of
levels is chosen elsewhere, and the denoiser may be a model, an oracle, or either under guidance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .denoiser import Denoiser
from .estimate import Estimate
from .level import Level
from .noise import SampleNoise

State = TypeVar("State")
Noise = Callable[[Tensor], Tensor]


class Sampler(ABC, Generic[State]):
    """Implement `step`. What is declared here is held against the closed forms by `diffkit check`.

    `order` is the order of convergence to the probability-flow ODE (of the noise-free part for stochastic ones),
    `stochastic` whether it draws noise, `needs` the entries of `Estimate.aux` it reads, `discrete_only` whether it
    works on discrete schedules only, `reaches_noise` whether it can start at alpha = 0, `syncs` whether a step waits
    for the device, `dtype` the type of the state (None: that of x).
    """

    order: int = 1
    stochastic: bool = False
    needs: tuple[str, ...] = ()
    discrete_only: bool = False
    reaches_noise: bool = True
    syncs: bool = False
    dtype: torch.dtype | None = None

    def init(self, levels: Sequence[Level]) -> State | None:
        """The state before the first step."""
        return None

    @abstractmethod
    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: State | None, noise: Noise
    ) -> tuple[Tensor, State | None]:
        """x: (B, C, *S) at level t -> x at the cleaner level s, and the state for the next step."""

    def nfe(self, n: int) -> int | None:
        """Number of function evaluations in n steps; None where it depends on the data."""
        return n


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One finished step: `index` of `count`, from t to s; x at s; the last estimate; evaluations so far."""

    index: int
    count: int
    t: Level
    s: Level
    x: Tensor
    estimate: Estimate | None
    nfe: int


class _Counted:
    """A denoiser that counts its calls and remembers the last estimate."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise = denoise
        self.calls = 0
        self.last: Estimate | None = None

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        self.calls += 1
        self.last = self.denoise(x, level, **cond)
        return self.last


def sample(
    denoise: Denoiser,
    sampler: Sampler[State],
    levels: Sequence[Level],
    x: Tensor,
    *,
    noise: SampleNoise | Noise | None = None,
    dtype: torch.dtype | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Tensor:
    """Carry x: (B, C, *S) at levels[0] to levels[-1], one step for each pair of neighbours.

    `noise` is a `SampleNoise`, or any function noise(x) -> z like x; by default the streams of seed 0. The state is
    held in `dtype`, by default the sampler's or that of x. `on_step` is called after each step. Runs without
    gradients, but not in inference mode, so that guidance may enable them; the result is detached.
    Raises ValueError unless the signal-to-noise ratio rises strictly along `levels`, TypeError where the arguments are
    in another order.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sample(denoise, sampler, levels, x): the second is no sampler but a {type(sampler).__name__}")
    _refuse_disorder(levels)
    source = SampleNoise(0, range(len(x))) if noise is None else noise
    x = x.to(dtype or sampler.dtype or x.dtype)
    watched = None if on_step is None else _Counted(denoise)
    with torch.no_grad():
        state = sampler.init(levels)
        for index, (t, s) in enumerate(pairwise(levels)):
            draw = source.at_step(index) if isinstance(source, SampleNoise) else source
            x, state = sampler.step(watched or denoise, x, t, s, state, draw)
            if on_step is not None and watched is not None:
                on_step(StepInfo(index + 1, len(levels) - 1, t, s, x, watched.last, watched.calls))
    return x.detach()


def _refuse_disorder(levels: Sequence[Level]) -> None:
    if len(levels) < 2:
        raise ValueError("a grid needs at least two levels, the noisiest first")
    if not all(isinstance(level, Level) for level in levels):
        raise TypeError("levels are those of a grid, such as build('grid', 'trailing').levels(schedule, 50)")
    angles = [math.atan2(level.sigma, level.alpha) for level in levels]
    for i, (a, b) in enumerate(pairwise(angles)):
        if not b < a:
            raise ValueError(f"levels {i} and {i + 1} do not rise in signal-to-noise ratio; put the noisiest first")
