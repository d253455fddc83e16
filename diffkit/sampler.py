"""Samplers: one step from a level to a cleaner level, and the only sampling loop.

A sampler keeps nothing between calls: values for later steps are in the state that `step` returns. The grid of levels
is chosen independently, and the denoiser may be a model or an oracle, with or without guidance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import ArgumentError
from .estimate import Estimate
from .interface import attribute
from .level import Level
from .noise import SampleNoise

State = TypeVar("State")
Noise = Callable[[Tensor], Tensor]
"""Draws standard normal noise in the shape of its argument; each call returns new numbers."""


class Sampler(ABC, Generic[State]):
    """Base of samplers. Implement `step`; `diffkit check` compares the declared attributes with closed forms."""

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    @attribute
    def order(self) -> int:
        """Order of convergence to the probability-flow ODE (without the noise if stochastic); default 1."""
        return 1

    @attribute
    def stochastic(self) -> bool:
        """Whether the sampler draws noise; default False."""
        return False

    @attribute
    def needs(self) -> tuple[str, ...]:
        """Entries of `Estimate.aux` that the sampler reads; default none."""
        return ()

    @attribute
    def discrete_only(self) -> bool:
        """Whether the sampler works on discrete schedules only; default False."""
        return False

    @attribute
    def reaches_noise(self) -> bool:
        """Whether the sampler can start at alpha = 0 (pure noise); default True."""
        return True

    @attribute
    def consistency(self) -> bool:
        """Whether the denoiser is a consistency function: x0 is the end of the probability-flow path; default False."""
        return False

    @attribute
    def syncs(self) -> bool:
        """Whether a step waits for the device; default False."""
        return False

    @attribute
    def dtype(self) -> torch.dtype | None:
        """The dtype of the state; None (default) is that of x."""
        return None

    @attribute
    def presets(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Settings of other libraries for this sampler: pairs of a library and its values for the section `sample` of a
        recipe, one pair for each grid that it offers, the usual one first; default none.
        """
        return ()

    def init(self, levels: Sequence[Level]) -> State | None:
        """Return the state before the first step; coefficients can be computed once for all `levels` here."""
        return None

    @abstractmethod
    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: State | None, noise: Noise
    ) -> tuple[Tensor, State | None]:
        """Make one step from level t to the cleaner level s.

        Args:
            denoise: The denoiser to evaluate.
            x: The state at t: (B, C, *S).
            t: The level of x.
            s: The level to reach.
            state: The state that the previous step returned; for the first step, that of `init`.
            noise: Draws standard normal noise in the shape of its argument.

        Returns:
            x at s, and the state for the next step.
        """

    def nfe(self, n: int) -> int | None:
        """Return the number of function evaluations in n steps; None if it depends on the data."""
        return n


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One finished step of `sample`.

    index      number of the step, 1..count
    count      number of all steps
    t, s       levels before and after the step
    x          state at s: (B, C, *S)
    estimate   the last estimate of the denoiser
    nfe        function evaluations so far
    """

    index: int
    count: int
    t: Level
    s: Level
    x: Tensor
    estimate: Estimate | None
    nfe: int


class _Counted:
    """A denoiser that counts its calls and keeps the last estimate."""

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
    """Draw samples: step x from levels[0] to levels[-1], one step for each pair of neighbouring levels.

    Gradients are disabled, but inference mode is not used, so that guidance may enable gradients.

    Args:
        denoise: A model or an oracle, with or without guidance.
        sampler: The sampler, such as build("sampler", "ancestral").
        levels: At least two levels, noisiest first, such as build("grid", "trailing").levels(schedule, 50).
        x: The state at levels[0]: (B, C, *S). Not changed.
        noise: A `SampleNoise`, or any function noise(x) -> z; default `SampleNoise(0, range(B))`.
        dtype: Dtype of the state during sampling; default that of the sampler, or else of x.
        on_step: Called after each step.

    Returns:
        x at levels[-1], detached: (B, C, *S).

    Raises:
        ValueError: The signal-to-noise ratio does not increase strictly along `levels`.
        ArgumentError: An argument has the wrong type, for example because the order is wrong.
    """
    _check_arguments(denoise, sampler, levels, x, noise)
    source = SampleNoise(0, range(len(x))) if noise is None else noise
    x = x.to(dtype or sampler.dtype or x.dtype, copy=True)
    counted = None if on_step is None else _Counted(denoise)
    with torch.no_grad():
        state = sampler.init(levels)
        for index, (t, s) in enumerate(pairwise(levels)):
            draw = source.at_step(index) if isinstance(source, SampleNoise) else source
            x, state = sampler.step(counted or denoise, x, t, s, state, draw)
            if on_step is not None and counted is not None:
                on_step(StepInfo(index + 1, len(levels) - 1, t, s, x, counted.last, counted.calls))
    return x.detach()


def _check_arguments(denoise: object, sampler: object, levels: object, x: object, noise: object) -> None:
    def refuse(argument: str, expected: str, got: object, fix: str) -> None:
        raise ArgumentError.of(f"sample(denoise, sampler, levels, x): argument {argument}", expected, got, fix)

    grid = 'make them by a grid, such as build("grid", "trailing").levels(schedule, 50)'
    if not callable(denoise):
        refuse("1 (`denoise`)", "a denoiser", denoise, "pass Model(network, parameterization, schedule)")
    if not isinstance(sampler, Sampler):
        refuse("2 (`sampler`)", "a Sampler", sampler, 'build it, such as build("sampler", "ancestral")')
    if not isinstance(levels, Sequence):
        refuse("3 (`levels`)", "a list of levels", levels, grid)
    assert isinstance(levels, Sequence)
    for level in levels:
        if not isinstance(level, Level):
            refuse("3 (`levels`)", "a list of levels", level, grid)
    if not isinstance(x, Tensor):
        refuse("4 (`x`)", "a tensor", x, "pass SampleNoise(seed, range(count)).initial(shape) * levels[0].sigma")
    if isinstance(noise, torch.Generator) or not (noise is None or isinstance(noise, SampleNoise) or callable(noise)):
        refuse("`noise`", "a SampleNoise or a function", noise, "pass SampleNoise(seed, range(count))")
    if len(levels) < 2:
        raise ValueError("a grid needs at least two levels, the noisiest first")
    angles = [math.atan2(level.sigma, level.alpha) for level in levels]
    for i, (a, b) in enumerate(pairwise(angles)):
        if not b < a:
            raise ValueError(
                f"the signal-to-noise ratio does not increase from level {i} to level {i + 1}; put the noisiest first"
            )
