"""The equations of the pages of theory, their checks, and the examples that the checks use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffkit import Level, build
from diffkit.schedule import Discrete
from diffkit.testing import GaussianOracle, MixtureOracle

from .sources import ROOT

Array = NDArray[np.float64]
Sides = Iterator[tuple[ArrayLike | Tensor, ArrayLike | Tensor]]
PAGES = tuple(
    ROOT / "docs" / "theory" / f"{name}.md" for name in ("ddpm", "bound", "continuous-time", "rate-distortion")
)
DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
TAG = re.compile(r"\\tag\{([\d.]+)\}")


@dataclass(frozen=True)
class Check:
    """The formula that a check is for, the pairs of sides that it computes, and how far they may differ."""

    formula: str
    sides: Callable[[], Sides]
    tolerance: float


CHECKS: dict[str, Check] = {}


def equation(tag: str, tolerance: float = 1e-10) -> Callable[[Callable[[], Sides]], Callable[[], Sides]]:
    """Register the check of an equation; the docstring of the check is the formula, as the page has it."""

    def register(sides: Callable[[], Sides]) -> Callable[[], Sides]:
        assert tag not in CHECKS
        CHECKS[tag] = Check(plain(sides.__doc__ or ""), sides, tolerance)
        return sides

    return register


def displayed() -> list[tuple[str, str]]:
    """(page, formula) of each displayed equation, in order."""
    return [(page.name, one) for page in PAGES for one in DISPLAYED.findall(page.read_text(encoding="utf-8"))]


def plain(formula: str) -> str:
    """The formula without its tag and without white space that TeX ignores."""
    return " ".join(TAG.sub("", formula).replace("\\thinspace", "").split())


LINEAR = build("schedule", "linear", steps=1000)
BETA: Array = np.linspace(1e-4, 0.02, 1000)
"""The betas of the paper: BETA[t - 1] is beta_t."""
ALPHA_BAR: Array = np.concatenate([[1.0], np.cumprod(1.0 - BETA)])
"""ALPHA_BAR[t] is alpha_bar_t."""
SHORT = Discrete([0.1, 0.2, 0.3, 0.5])
"""Four steps, for which joint distributions are small matrices."""
MIXTURE = MixtureOracle([0.4, 0.6], [-1.2, 0.8], [0.04, 0.04])
"""Two peaks, of mean 0 and variance 1."""
GRID: Array = np.linspace(-12.0, 12.0, 24001)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def beta(t: int) -> float:
    return float(BETA[t - 1])


def alpha_bar(t: int) -> float:
    return float(ALPHA_BAR[t])


def snr(t: int) -> float:
    return alpha_bar(t) / (1.0 - alpha_bar(t))


def normal(x: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> Array:
    """The density of N(mean, variance) at x."""
    found: Array = np.exp(-0.5 * (np.asarray(x) - mean) ** 2 / variance) / np.sqrt(2.0 * np.pi * np.asarray(variance))
    return found


def integral(values: Array, x: Array = GRID) -> float:
    return float(np.trapezoid(values, x))


def mixture_density(x: Array) -> Array:
    """The density of the data of MIXTURE, written out."""
    return 0.4 * normal(x, -1.2, 0.04) + 0.6 * normal(x, 0.8, 0.04)


def draws_of_mixture() -> tuple[Array, Array, Array]:
    """x0, eps and weights of a product rule for expectations over both."""
    x0 = np.concatenate([-1.2 + 0.2 * NODES, 0.8 + 0.2 * NODES])
    of_x0 = np.concatenate([0.4 * WEIGHTS, 0.6 * WEIGHTS])
    a, b = np.meshgrid(x0, NODES, indexing="ij")
    return a, b, of_x0[:, None] * WEIGHTS


def conditioned(covariance: Array, target: int, given: list[int]) -> tuple[Array, float]:
    """The gains and the variance of one coordinate of a centred normal vector, given others."""
    gain = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, target])
    return gain, float(covariance[target, target] - gain @ covariance[given, target])


def step_covariance(t: int, s: float) -> Array:
    """The covariance of (x0, x_{t-1}, x_t) for data of variance s, from the steps of the forward process."""
    a = np.sqrt(alpha_bar(t - 1))
    rows = np.array([[1.0, 0.0, 0.0], [a, np.sqrt(1.0 - a**2), 0.0], [0.0, 0.0, np.sqrt(beta(t))]])
    rows[2, :2] = np.sqrt(1.0 - beta(t)) * rows[1, :2]
    sources = np.diag([s, 1.0, 1.0])
    found: Array = rows @ sources @ rows.T
    return found


def tensor(values: ArrayLike) -> Tensor:
    """(B,) numbers as (B, 1), the shape of examples of one dimension."""
    return torch.as_tensor(np.asarray(values, dtype=np.float64)).reshape(-1, 1)


def gaussian(variance: float) -> GaussianOracle:
    return GaussianOracle(0.0, variance)


def level_of(value: float) -> Level:
    """The variance-preserving level with alpha_bar = value."""
    return Level(float(np.sqrt(value)), float(np.sqrt(1.0 - value)))


def column(x: Tensor) -> Array:
    found: Any = x.detach().reshape(-1).numpy()
    return np.asarray(found, dtype=np.float64)
