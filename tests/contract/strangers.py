"""Components of published methods that diffkit does not ship, as the author of a plugin writes them.

Each class states its formula in `law_reference`, a second time. `test_strangers.py` changes one line at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import (
    Discrete,
    Grid,
    Level,
    LRSchedule,
    NamedParameters,
    Optimizer,
    Scalar,
    Schedule,
    Times,
    Weighting,
    at_fraction,
    nearest_time,
    scalar,
)

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class SigmoidSchedule(Discrete):
    """alpha_bar_t = (f(1) - f(t / T)) / (f(1) - f(0)), f(u) = sigmoid((start + u (end - start)) / tau).

    Source: Jabri et al. 2023 (arXiv:2212.11972), app. B.
    """

    steps: Annotated[int, Field(ge=2)] = 1000
    start: float = -3.0
    end: float = 3.0
    tau: Positive = 1.0

    def __post_init__(self) -> None:
        u = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        f = torch.sigmoid((self.start + u * (self.end - self.start)) / self.tau)
        alpha_bar = ((f[-1] - f) / (f[-1] - f[0])).clamp(1e-9, 1.0)
        Discrete.__init__(self, 1.0 - alpha_bar[1:] / alpha_bar[:-1])

    def law_reference(self, fraction: float) -> tuple[float, float]:
        def f(u: float) -> float:
            return 1 / (1 + math.exp(-(self.start * (1 - u) + self.end * u) / self.tau))

        kept = max(1e-9, (f(1) - f(fraction)) / (f(1) - f(0)))
        return math.sqrt(kept), math.sqrt(1 - kept)


@dataclass(frozen=True)
class LaplaceSchedule(Schedule):
    """log snr = mu - b sign(1/2 - t) log(1 - 2 |t - 1/2|), t in [0.001, 0.999]. Source: arXiv:2407.03297, table 1."""

    mu: float = 0.0
    b: Positive = 0.5

    t_clean = 0.001
    t_noise = 0.999

    def level(self, t: Scalar) -> Level:
        v = t - 0.5
        size = scalar.sqrt(v * v)
        sign = -v / scalar.maximum(size, 1e-300)
        logsnr = self.mu - self.b * sign * scalar.log1p(-2.0 * size)
        kept = 1.0 / (1.0 + scalar.exp(-logsnr))
        return Level(scalar.sqrt(kept), scalar.sqrt(1.0 / (1.0 + scalar.exp(logsnr))))

    def time(self, level: Level) -> Scalar:
        x = (2.0 * level.half_logsnr - self.mu) / self.b
        size = scalar.sqrt(x * x)
        return 0.5 - 0.5 * x / scalar.maximum(size, 1e-300) * -scalar.expm1(-size)

    def law_reference(self, t: float) -> float:
        return 0.5 * (self.mu - self.b * math.log(2 * t) if t < 0.5 else self.mu + self.b * math.log(2 - 2 * t))


@dataclass(frozen=True)
class ShiftedCosine(Schedule):
    """log snr = -2 log tan(pi t / 2) + 2 log(base / size). Source: Hoogeboom et al. 2023 (arXiv:2301.11093), eq. 3."""

    size: Annotated[int, Field(ge=1)] = 256
    base: Annotated[int, Field(ge=1)] = 64

    t_clean = 1e-3
    t_noise = 1.0 - 1e-3

    def level(self, t: Scalar) -> Level:
        ratio = self.size / self.base * scalar.tan(math.pi / 2 * t)
        length = scalar.hypot(1.0, ratio)
        return Level(1.0 / length, ratio / length)

    def time(self, level: Level) -> Scalar:
        return scalar.atan2(self.base * level.sigma, self.size * level.alpha) / (math.pi / 2)

    def law_reference(self, t: float) -> float:
        return math.log(self.base / self.size) - math.log(math.tan(math.pi * t / 2))


@dataclass(frozen=True)
class Debiased(Weighting):
    """w = sqrt(snr) on x0: 1 / sqrt(snr) on eps. Source: Yu et al. 2023 (arXiv:2310.08442), eq. 11."""

    def __call__(self, level: Level) -> Scalar:
        return scalar.divide(level.alpha, level.sigma)

    def law_reference(self, snr: float) -> float:
        return math.sqrt(snr)


@dataclass(frozen=True)
class SigmoidWeight(Weighting):
    """w = snr sigmoid(bias - log snr) on x0. Source: Hoogeboom et al. 2024 (arXiv:2410.19324), eq. 5."""

    bias: float = -3.0

    def __call__(self, level: Level) -> Scalar:
        return scalar.divide(level.snr, 1.0 + math.exp(-self.bias) * level.snr)

    def law_reference(self, snr: float) -> float:
        return 1 / (1 / snr + math.exp(-self.bias))


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """w = min(max(snr, low), high). Source: Salimans & Ho 2022 (arXiv:2202.00512), sec. 4."""

    low: Positive = 1.0
    high: Positive = 100.0

    def __call__(self, level: Level) -> Scalar:
        return scalar.minimum(scalar.maximum(level.snr, self.low), self.high)

    law_reference = {0.01: 1.0, 0.5: 1.0, 2.0: 2.0, 40.0: 40.0, 1e4: 100.0}  # noqa: RUF012 - read only


@dataclass(frozen=True)
class LaplaceTimes(Times):
    """log snr follows a Laplace distribution with mean mu and scale b. Source: arXiv:2407.03297, table 1."""

    mu: float = 0.0
    b: Positive = 0.5

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        v = uniform.double() + 2.0**-25 - 0.5
        logsnr = self.mu - self.b * torch.sign(v) * torch.log1p(-2.0 * v.abs())
        level = Level(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())
        return nearest_time(torch.as_tensor(schedule.time(level)), schedule)

    def law_reference(self, logsnr: float) -> float:
        return math.exp(-abs(logsnr - self.mu) / self.b) / (2 * self.b)


@dataclass(frozen=True)
class ModeTimes(Times):
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u). Source: Esser et al. 2024 (arXiv:2403.03206), eq. 20."""

    scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        u = uniform.double()
        t = 1.0 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1.0 + u)
        return at_fraction((1.0 - t).clamp(0.0, 1.0 - 2.0**-53), schedule)

    def law_reference(self, fraction: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            u = 0.5 * (low + high)
            above = 1 - u - self.scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u) > fraction
            low, high = (u, high) if above else (low, u)
        return 1 / (1 + self.scale * (1 - math.pi / 2 * math.sin(math.pi * low)))


@dataclass(frozen=True)
class SharedOffset(Times):
    """u_i = (u_0 + i / B) mod 1, uniform. Source: Kingma et al. 2021 (arXiv:2107.00630), app. I.1."""

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        i = torch.arange(len(uniform), dtype=torch.float64)
        return at_fraction((uniform[0].double() + i / len(uniform)) % 1.0, schedule)

    def law_reference(self, fraction: float) -> float:
        return 1.0


@dataclass(frozen=True)
class PowerTimes(Times):
    """Fractions u = v^(1 / power), v uniform, corrected by 1 / (power u^(power - 1))."""

    power: Annotated[float, Field(ge=1, le=4)] = 2.0

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        u = (1.0 - uniform.double()) ** (1.0 / self.power)
        if schedule.steps is not None:
            return torch.ceil(u * schedule.steps).long().clamp(1, schedule.steps)
        return schedule.t_clean + (schedule.t_noise - schedule.t_clean) * u

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        if schedule.steps is not None:
            high, low = t.double() / schedule.steps, (t.double() - 1) / schedule.steps
            return 1.0 / (schedule.steps * (high**self.power - low**self.power))
        u = (t.double() - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)
        return 1.0 / (self.power * u ** (self.power - 1.0))


@dataclass(frozen=True)
class CosineGrid(Grid):
    """Times T cos(pi j / 2 n): denser near noise."""

    power: Positive = 1.0

    def points(self, schedule: Schedule, n: int) -> list[float]:
        span = schedule.t_noise - schedule.t_clean
        return [schedule.t_clean + span * math.cos(math.pi / 2 * j / n) ** self.power for j in range(n)]

    def law_reference(self, schedule: Schedule, n: int) -> list[float]:
        a, b = schedule.t_clean, schedule.t_noise
        return [a + (b - a) * math.sin(math.pi / 2 * (1 - j / n)) ** self.power for j in range(n)]


@dataclass(frozen=True)
class PolynomialRate(LRSchedule):
    """f = end + (1 - end) (1 - step / steps)^power. Source: Liu et al. 2015 (arXiv:1506.04579), sec. 3."""

    power: Positive = 0.9
    end: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __call__(self, step: int, steps: int) -> float:
        return self.end + (1.0 - self.end) * (1.0 - step / steps) ** self.power

    law_options = ({"end": 0.1},)

    def law_reference(self, step: int, steps: int) -> float:
        left = (steps - step) / steps
        return left**self.power + self.end * (1 - left**self.power)


class _Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                update = torch.sign(group["b1"] * m + (1 - group["b1"]) * p.grad)
                p.add_(update + group["decay"] * p, alpha=-group["lr"])
                m.mul_(group["b2"]).add_(p.grad, alpha=1 - group["b2"])


@dataclass(frozen=True)
class Lion(Optimizer):
    """w -= lr (sign(b1 m + (1 - b1) g) + decay w), m = b2 m + (1 - b2) g. Source: arXiv:2302.06675, Algorithm 2."""

    lr: Positive = 1e-4
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    decay: Annotated[float, Field(ge=0)] = 0.0

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "b1": self.b1, "b2": self.b2, "decay": self.decay}
        return _Lion([p for _, p in named_parameters], options)

    law_options = ({"decay": 0.1},)

    def law_reference(self, w: Tensor, gradients: Iterable[Tensor]) -> Tensor:
        m = torch.zeros_like(w)
        for g in gradients:
            w = w * (1 - self.lr * self.decay) - self.lr * torch.sign(self.b1 * m + (1 - self.b1) * g)
            m = self.b2 * m + (1 - self.b2) * g
        return w
