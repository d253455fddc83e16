"""Linear multistep methods: a step is a sum over the state and the outputs at the last levels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from diffkit import Denoiser, Estimate, Level, Sampler
from diffkit.sampler import Noise

REMEMBERED = 8192
"""Steps whose factors are kept: every batch on a grid takes the same ones."""


class Step(NamedTuple):
    """x_s = keep x_t + sum_i factors_i outputs_i + rho z; there may be fewer factors than outputs."""

    keep: float
    factors: Sequence[float]
    rho: float = 0.0


class Memory(NamedTuple):
    """The state that the last step began with, corrected, and the outputs known there, the newest first."""

    x: Tensor
    levels: tuple[Level, ...]
    outputs: tuple[Tensor, ...]


class Multistep(Sampler[Memory]):
    """x_s = keep x_t + sum_i factors_i outputs_i + rho z. Implement `factors`, in a frozen dataclass.

    One evaluation a step. `remembers` is how many outputs a step is made from at most; what `factors` says is
    remembered by the options and the levels.
    """

    remembers: int = 1

    @abstractmethod
    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        """The step from t to s with the outputs at `levels`, among which may be s."""

    def output(self, estimate: Estimate) -> Tensor:
        """What is kept of an estimate: x0."""
        return estimate.x0

    def corrects(self, before: Level, t: Level, s: Level) -> bool:
        """Whether the step from `before` to t is repeated, with the output at t, ahead of the one to s."""
        return False

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Memory | None, noise: Noise
    ) -> tuple[Tensor, Memory]:
        before = state or Memory(x, (), ())
        levels = (t, *before.levels)
        outputs = (self.output(denoise(x, t)), *before.outputs)
        correction, step = _plan(self, s, levels)
        if correction is not None:
            x = correction(before.x, outputs)
        moved = step(x, outputs)
        if step.rho:
            moved.add_(noise(x), alpha=step.rho)
        return moved, Memory(x, levels[: self.remembers], outputs[: self.remembers])


class _Sum(NamedTuple):
    """A step made ready: a factor that is a tensor already need not become one at each multiplication."""

    keep: Tensor
    factors: Sequence[float]
    rho: float

    def __call__(self, x: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """The sum without its noise, in a new tensor."""
        moved = x * self.keep
        for factor, output in zip(self.factors, outputs):
            moved.add_(output, alpha=factor)
        return moved


@lru_cache(maxsize=REMEMBERED)
def _plan(method: Multistep, s: Level, levels: tuple[Level, ...]) -> tuple[_Sum | None, _Sum]:
    """The correction of the step from levels[1] to levels[0], where there is one, and the step from levels[0] to s."""

    def ready(start: Level, end: Level, known: tuple[Level, ...]) -> _Sum:
        keep, factors, rho = method.factors(start, end, known)
        with torch.inference_mode(False):  # it outlives the mode and the default device of this call
            return _Sum(torch.tensor(keep, dtype=torch.float64, device="cpu"), factors, rho)

    t = levels[0]
    corrects = len(levels) > 1 and method.corrects(levels[1], t, s)
    return ready(levels[1], t, levels) if corrects else None, ready(t, s, levels[: method.remembers])
