"""The three predictions of the paper: the noise, the clean data, and the mean of the posterior."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffkit import Level, Parameterization, Scalar, Schedule, scalar, transition


@dataclass(frozen=True)
class Eps(Parameterization):
    """Predict the noise: y = eps, coefficients (0, 1). It holds no information about x0 at alpha = 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 11, 14.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0


@dataclass(frozen=True)
class X0(Parameterization):
    """Predict the clean data: y = x0, coefficients (1, 0). It holds no information about eps at sigma = 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), sec. 3.2.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0


@dataclass(frozen=True)
class Mu(Parameterization):
    """Predict the posterior mean y = E[x_{t-1} | x_t, x0] = P x_t + Q x0, coefficients (P alpha + Q, P sigma).

    P and Q depend on the step, so the schedule must be discrete. Dividing by the small Q amplifies rounding errors, so
    outputs in half precision are refused. Raises ValueError if the schedule is continuous.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, 8.
    """

    schedule: Schedule
    full_precision = True

    def __post_init__(self) -> None:
        if self.schedule.steps is None:
            raise ValueError(
                "mu is the mean of one step, so it requires a discrete schedule: use linear, or predict eps"
            )

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        t = self.schedule.time(level)
        before = t - 1 if isinstance(t, Tensor) else max(t - 1.0, 0.0)
        at = self.schedule.level(t)
        s = self.schedule.level(before.clamp(min=0) if isinstance(before, Tensor) else before)
        p, q = transition.posterior_mean(at, s)
        stretch = scalar.divide(at.scale, level.scale)
        return p * level.alpha * stretch + q, p * level.sigma * stretch
