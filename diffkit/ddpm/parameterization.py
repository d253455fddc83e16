"""The three predictions of the paper: the noise, the clean data, the mean of the step before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffkit import scalar, transition
from diffkit.level import Level
from diffkit.parameterization import Parameterization
from diffkit.scalar import Scalar
from diffkit.schedule import Schedule


@dataclass(frozen=True)
class Eps(Parameterization):
    """y = eps, the row (0, 1). Says nothing about x0 at alpha = 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 11, 14.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0


@dataclass(frozen=True)
class X0(Parameterization):
    """y = x0, the row (1, 0). Says nothing about eps at sigma = 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), sec. 3.2.
    """

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0


@dataclass(frozen=True)
class Mu(Parameterization):
    """y = mean of q(x_{t-1} | x_t, x0) = P x_t + Q x0, the row (P alpha + Q, P sigma).

    It needs the level before, so it holds its discrete schedule. Dividing by the small Q amplifies rounding: outputs
    in half precision are refused. Raises ValueError on a schedule that is not discrete.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, 8.
    """

    schedule: Schedule
    full_precision = True

    def __post_init__(self) -> None:
        if self.schedule.steps is None:
            raise ValueError(
                "mu is the mean one step before, so it needs a discrete schedule: use linear, or predict eps"
            )

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        t = self.schedule.time(level)
        before = t - 1 if isinstance(t, Tensor) else max(t - 1.0, 0.0)
        at, s = (
            self.schedule.level(t),
            self.schedule.level(before.clamp(min=0) if isinstance(before, Tensor) else before),
        )
        p, q = transition.posterior_mean(at, s)
        stretch = scalar.divide(at.scale, level.scale)
        return p * level.alpha * stretch + q, p * level.sigma * stretch
