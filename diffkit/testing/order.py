"""Measure the order of convergence against an exact flow that is not linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffkit.denoiser import Denoiser
from diffkit.level import Level
from diffkit.sampler import Sampler

from ..oracles.base import Oracle
from ..oracles.mixture import MixtureOracle
from ..oracles.polynomial import PolynomialOracle

FIRST, LAST = -1.5, 2.0
"""half_logsnr of the noisy and the clean end of the fit; the clean end keeps noise, as h is infinite without."""


@dataclass(frozen=True)
class OrderFit:
    """`errors`[i] is the largest error in `steps`[i] steps; `slope` is the measured order."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """The measured order: log(error ratio) / log(step ratio) of the two finest grids; inf if the error is only
        rounding.
        """
        (n, m), (coarse, fine) = self.steps[-2:], self.errors[-2:]
        if fine < 1e-13:
            return math.inf
        return math.log(coarse / fine) / math.log(m / n)


def curve() -> MixtureOracle:
    """Return the exact denoiser of the mixture that orders are measured on: two components in one dimension."""
    return MixtureOracle([0.4, 0.6], [-0.9, 0.7], [0.09, 0.2])


def logsnr_levels(n: int, first: float = FIRST, last: float = LAST) -> list[Level]:
    """Return n + 1 variance-preserving levels, evenly spaced in half_logsnr.

    Args:
        n: the number of steps.
        first: half_logsnr of the first level.
        last: half_logsnr of the last level.

    Returns:
        The levels, noisiest first.
    """
    return [at_logsnr(first + (last - first) * i / n) for i in range(n + 1)]


def _graded(n: int) -> list[Level]:
    """Return `logsnr_levels` with the first step divided into parts of 1/64, 1/64, 1/32, ..., 1/2."""
    step = (LAST - FIRST) / n
    parts = [FIRST + step * 2.0**k for k in range(-6, 0)]
    return [at_logsnr(FIRST), *(at_logsnr(clock) for clock in parts), *logsnr_levels(n)[1:]]


def at_logsnr(half_logsnr: float) -> Level:
    """Return the variance-preserving level of this half_logsnr: alpha^2 = sigmoid(2 half_logsnr)."""
    angle = math.atan(math.exp(-half_logsnr))
    return Level(math.cos(angle), math.sin(angle))


def run_from_exact(
    denoise: Denoiser, sampler: Sampler[Any], levels: Sequence[Level], starts: Sequence[Tensor]
) -> Tensor:
    """Run a sampler whose first steps start at given exact states, so that a multistep method has an exact history.

    Args:
        denoise: the denoiser.
        sampler: the sampler; noise that it draws is zero.
        levels: the levels, noisiest first.
        starts: the states at the first levels, each (B, *S); at least one.

    Returns:
        The state at the last level.
    """
    state, x = sampler.init(levels), starts[0]
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(levels)):
            x = starts[i] if i < len(starts) else x
            x, state = sampler.step(denoise, x, t, s, state, torch.zeros_like)
    return x


def measure(
    sampler: Sampler[Any],
    steps: Sequence[int] = (20, 40, 80),
    *,
    oracle: Oracle | None = None,
    exact_starts: int = 1,
) -> OrderFit:
    """Measure the error against the quantile map of a mixture, from half_logsnr -1.5 to 2. Identities E4, F1 of
    docs/theory/identities.md.

    Args:
        sampler: a deterministic sampler.
        steps: the numbers of steps, rising.
        oracle: the exact denoiser with its flow; a mixture of two components by default.
        exact_starts: the number of steps that start on the exact solution: 1 measures the method with its own start,
            `order` or more the multistep method alone. A corrector replaces exact states, so with more than 1 the first
            step is divided into seven parts of growing length, so that the low order of the start does not change the
            slope.

    Returns:
        The largest error for each number of steps.
    """
    truth = oracle if oracle is not None else curve()
    ends = logsnr_levels(1)
    x = torch.linspace(-1.9, 1.9, 9, dtype=torch.float64)[:, None]
    want = truth.flow(x, ends[0], ends[1])
    errors = []
    for n in steps:
        levels = logsnr_levels(n) if exact_starts == 1 else _graded(n)
        starts = [x, *(truth.flow(x, levels[0], level) for level in levels[1:exact_starts])]
        got = run_from_exact(truth, sampler, levels, starts)
        errors.append(float((got - want).abs().max()))
    return OrderFit(tuple(steps), tuple(errors))


def single_steps(sampler: Sampler[Any], length: float = 0.08, start: float = -0.5) -> OrderFit:
    """Measure the error of single steps whose history is exact, on steps of unequal length.

    In a whole run the errors of wrong coefficients may cancel, as their sum over all steps telescopes.

    Args:
        sampler: a deterministic sampler.
        length: the length in half_logsnr that the steps are multiples of: 1/64, 1/64, 1/32, ..., 1/2, then 1 and 0.4.
        start: half_logsnr of the first level.

    Returns:
        The larger error of the last two steps, for this length and half of it. A method of order p has the slope p + 1.
    """
    truth, x = curve(), torch.linspace(-1.9, 1.9, 9, dtype=torch.float64)[:, None]
    errors = []
    for parts in (1, 2):
        clocks = [0.0, *(2.0**k for k in range(-6, 1)), 2.0, 2.4]
        levels = [at_logsnr(start + length / parts * clock) for clock in clocks]
        exact = [truth.flow(x, levels[0], level) for level in levels]
        ends = [(levels[:count], exact[count - 1]) for count in (len(levels) - 1, len(levels))]
        gaps = [run_from_exact(truth, sampler, some, exact) - want for some, want in ends]
        errors.append(max(float(gap.abs().max()) for gap in gaps))
    return OrderFit((1, 2), tuple(errors))


def polynomial_error(sampler: Sampler[Any], degree: int, n: int = 6, reach: float = 1.0) -> float:
    """Return the error of one run on x0 = half_logsnr^degree for all x, with exact first states. Identity F4 of
    docs/theory/identities.md.

    d(x / sigma) / d half_logsnr = (alpha / sigma) x0, so x_s = sigma_s (x_t / sigma_t + int e^l l^degree dl).
    An exponential method of order p with the right coefficients has only rounding errors for degree < p.

    Args:
        sampler: an exponential method.
        degree: the degree of the polynomial.
        n: the number of uneven steps.
        reach: the steps go from half_logsnr -reach to reach.

    Returns:
        The largest absolute error of the result.
    """
    levels = [at_logsnr(clock) for clock in _uneven(n, reach)]
    x = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)[:, None]
    exact = [_polynomial_flow(x, levels[0], level, degree) for level in levels]
    oracle = PolynomialOracle([0.0] * degree + [1.0])
    got = run_from_exact(oracle, sampler, levels, exact[: max(degree + 1, sampler.order)])
    return float((got - exact[-1]).abs().max())


def _uneven(n: int, reach: float) -> list[float]:
    return [reach * (-1.0 + 2.0 * (i / n) ** 1.3 + 0.03 * (i % 2)) for i in range(n + 1)]


def _polynomial_flow(x: Tensor, t: Level, s: Level, degree: int) -> Tensor:
    integral = _primitive(float(s.half_logsnr), degree) - _primitive(float(t.half_logsnr), degree)
    return float(s.sigma) * (x / float(t.sigma) + integral)


def _primitive(clock: float, degree: int) -> float:
    """Return the primitive of e^l l^degree: e^l (l^k - k (l^(k-1) - (k-1) (...)))."""
    value = 1.0
    for k in range(1, degree + 1):
        value = clock**k - k * value
    return math.exp(clock) * value
