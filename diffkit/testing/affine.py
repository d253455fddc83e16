"""Samplers as affine maps: with an affine denoiser a linear sampler is x -> A x + b + Q^1/2 z, known exactly.

`probe` computes A, b and Q of a real sampler; `first_order` is one step written out with matrices, and
`compare_steps` compares the two. No statistics are involved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffkit import transition
from diffkit.denoiser import Denoiser
from diffkit.level import Level
from diffkit.sampler import Sampler, StepInfo, sample

from ..oracles.gaussian import GaussianOracle
from . import fixtures
from .case import Case
from .law_registry import LawResult

Step = Callable[[GaussianOracle, Level, Level], "Affine"]
"""The exact step of a method: (oracle, t, s) -> the affine map from level t to level s."""


@dataclass(frozen=True)
class Normal:
    """A normal distribution N(mean, covariance); mean: (D,), covariance: (D, D), float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Affine:
    """An affine map with noise: x -> A x + b + noise of covariance Q; A, Q: (D, D), b: (D,), float64."""

    A: Tensor
    b: Tensor
    Q: Tensor

    def then(self, after: Affine) -> Affine:
        """Return this map followed by `after`."""
        return Affine(after.A @ self.A, after.A @ self.b + after.b, after.A @ self.Q @ after.A.T + after.Q)

    def push(self, x: Normal) -> Normal:
        """Return the distribution of the result for normal x: (M, C) -> (A M + b, A C A^T + Q)."""
        return Normal(self.A @ x.mean + self.b, self.A @ x.covariance @ self.A.T + self.Q)


def first_order(oracle: GaussianOracle, t: Level, s: Level, rho: float = 0.0, std: float | None = None) -> Affine:
    """Return the step alpha_s x0* + sqrt(sigma_s^2 - rho^2) eps* + std z as matrices. Identity D5 of
    docs/theory/identities.md.

    With G = alpha_t S S_t^-1 and k = sqrt(sigma_s^2 - rho^2) / sigma_t: A = (alpha_s - k alpha_t) G + k I,
    b = (alpha_s - k alpha_t) (m - alpha_t G m), Q = std^2 I.

    Args:
        oracle: Gaussian data N(m, S) with their exact denoiser.
        t: the level of x, with noise.
        s: the level after the step.
        rho: the standard deviation that is removed from eps*.
        std: the standard deviation of the noise that is added; `rho` by default.

    Returns:
        The affine map of the step.
    """
    S, m = oracle.matrix, oracle.mean
    eye = torch.eye(len(m), dtype=torch.float64)
    a_t, s_t, a_s, s_s = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    G = torch.linalg.solve(a_t**2 * S + s_t**2 * eye, a_t * S).T
    k = math.sqrt(max(s_s**2 - rho**2, 0.0)) / s_t
    lead = a_s - k * a_t
    return Affine(lead * G + k * eye, lead * (m - a_t * G @ m), (rho if std is None else std) ** 2 * eye)


def posterior_kernel(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
    """Return q(x_s | x_t) of the data: gain K = alpha_{t|s} S_s S_t^-1, covariance sigma_{t|s}^2 S_s S_t^-1.

    Args:
        oracle: Gaussian data N(m, S) with their exact denoiser.
        t: the level of x_t.
        s: the level of x_s, with less noise.

    Returns:
        The affine map from x_t to x_s. Identity B6 of docs/theory/identities.md.
    """
    eye = torch.eye(oracle.dimensions, dtype=torch.float64)
    at, after = (float(v.alpha) ** 2 * oracle.matrix + float(v.sigma) ** 2 * eye for v in (t, s))
    gain = after @ torch.linalg.inv(at)
    K = float(transition.decay(t, s)) * gain
    mean = float(s.alpha) * oracle.mean - float(t.alpha) * K @ oracle.mean
    return Affine(K, mean, float(transition.spread(t, s)) ** 2 * gain)


def forward_variance(t: Level, s: Level) -> float:
    """Return sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, which is beta_t for neighbours."""
    return float(t.sigma) ** 2 - (float(t.alpha) / float(s.alpha) * float(s.sigma)) ** 2


def posterior_variance(t: Level, s: Level) -> float:
    """Return sigma_s^2 sigma_{t|s}^2 / sigma_t^2, which is beta tilde for neighbours."""
    return float(s.sigma) ** 2 * forward_variance(t, s) / float(t.sigma) ** 2


def compose(oracle: GaussianOracle, levels: Sequence[Level], step: Step) -> Affine:
    """Apply an exact step along all levels.

    Args:
        oracle: Gaussian data with their exact denoiser.
        levels: the levels, noisiest first.
        step: the exact step of a method.

    Returns:
        The affine map from the first level to the last.
    """
    d = oracle.dimensions
    eye, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    whole = Affine(eye, zero, 0.0 * eye)
    for t, s in pairwise(levels):
        whole = whole.then(step(oracle, t, s))
    return whole


def compare_steps(case: Case, result: LawResult, step: Step, variance_fraction: float = 0.5) -> None:
    """Compare A, b and Q of a sampler with those of exact steps, on full and partial grids.

    Args:
        case: the sampler.
        result: receives the errors.
        step: the exact step of the method.
        variance_fraction: the value of this output of the network, for samplers that use it.
    """
    sampler: Sampler[Any] = case.component
    for oracle in (fixtures.gaussian(), GaussianOracle(torch.zeros(2, dtype=torch.float64), 1.0)):
        for title, levels in fixtures.level_lists(case.deep):
            got = probe(fixtures.with_aux(sampler, oracle, variance_fraction), sampler, levels, 2)
            want = compose(oracle, levels, step)
            for name in ("A", "b", "Q"):
                result.compare(getattr(got, name), getattr(want, name), f"{name} of {title}")


class NotAffineError(ValueError):
    """Raised for a sampler that is not affine in x and its noises, so that A, b and Q do not describe it."""


class _UnitNoise:
    """A noise source whose draw k is 1 in one coordinate of the rows reserved for it, and 0 in all others."""

    def __init__(self, first: int, dimensions: int) -> None:
        self.first, self.dimensions = first, dimensions
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        row = self.first + self.calls * self.dimensions
        rows = min(self.dimensions, len(x) - row)
        if rows > 0:
            z.view(len(x), -1)[row : row + rows] = torch.eye(self.dimensions, dtype=x.dtype)[:rows]
        self.calls += 1
        return z


def probe(
    denoise: Denoiser,
    sampler: Sampler[Any],
    levels: Sequence[Level],
    dimensions: int,
    *,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Affine:
    """Compute A, b and Q of a whole run, from its results on the inputs 0 and e_j and on unit noises.

    Args:
        denoise: an affine denoiser, such as a `GaussianOracle`.
        sampler: the sampler.
        levels: the levels of the run, noisiest first.
        dimensions: D, for data x: (D,).
        on_step: called after each step.

    Returns:
        The affine map from levels[0] to levels[-1], in float64.

    Raises:
        NotAffineError: doubling the input does not double the change of the result.
    """
    d = dimensions
    count = _UnitNoise(1, d)
    sample(denoise, sampler, levels, torch.zeros(1, d, dtype=torch.float64), noise=count)
    x = torch.zeros(2 + d + count.calls * d, d, dtype=torch.float64)
    x[1 : 1 + d] = torch.eye(d, dtype=torch.float64)
    x[-1] = 2.0
    y = sample(denoise, sampler, levels, x, noise=_UnitNoise(1 + d, d), on_step=on_step)
    b, columns, noises, check = y[0], y[1 : 1 + d] - y[0], y[1 + d : -1] - y[0], y[-1]
    A = columns.T.contiguous()
    want = A @ torch.full((d,), 2.0, dtype=torch.float64) + b
    if not float((check - want).abs().max()) <= 1e-8 * max(1.0, float(want.abs().max())):
        raise NotAffineError(f"{type(sampler).__name__.lower()} is not affine in x with an affine denoiser")
    return Affine(A, b, noises.T @ noises)
