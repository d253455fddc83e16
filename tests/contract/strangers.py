"""Components of published methods that diffkit does not ship, as the author of a plugin writes them.

Each class states its formula in `law_reference`, a second time. `test_strangers.py` changes one line at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import (
    Augmentation,
    Codec,
    Conditioner,
    ConditionSpec,
    Data,
    DataSpec,
    Discrete,
    Evaluation,
    Grid,
    Level,
    LRSchedule,
    Metric,
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


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other row."""
    return torch.cdist(x, x).kthvalue(k + 1, dim=1).values


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """The share of samples within the k-nearest balls of the training examples, and the reverse.

    Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
    """

    k: Annotated[int, Field(ge=1)] = 3
    definition = "precision: share of samples near training examples; recall: share of those near samples"
    lower_is_better = False

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        ours, theirs = evaluation.samples.flatten(1).double(), evaluation.train.flatten(1).double()
        apart = torch.cdist(ours, theirs)
        precision = (apart <= _radii(theirs, self.k)[None, :]).any(1).double().mean()
        recall = (apart <= _radii(ours, self.k)[:, None]).any(0).double().mean()
        return {"precision": float(precision), "recall": float(recall)}

    law_options = ({"k": 1},)

    def law_reference(self, samples: Tensor, train: Tensor) -> dict[str, float]:
        def share(points: Tensor, of: Tensor) -> float:
            balls = [sorted(float((a - b).norm()) for b in of)[self.k] for a in of]
            inside = [any(float((x - c).norm()) <= r for c, r in zip(of, balls, strict=True)) for x in points]
            return sum(inside) / len(points)

        return {"precision": share(samples, train), "recall": share(train, samples)}


@dataclass(frozen=True)
class DensityCoverage(Metric):
    """Mean number of training balls around a sample over k; share of training balls that hold a sample.

    Source: Naeem et al. 2020 (arXiv:2002.09797), eq. 4 and 5.
    """

    k: Annotated[int, Field(ge=1)] = 5
    definition = "density and coverage of the training examples by the samples, from balls of k nearest neighbours"
    lower_is_better = False

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        ours, theirs = evaluation.samples.flatten(1).double(), evaluation.train.flatten(1).double()
        inside = torch.cdist(ours, theirs) <= _radii(theirs, self.k)[None, :]
        return {
            "density": float(inside.double().sum(1).mean() / self.k),
            "coverage": float(inside.any(0).double().mean()),
        }

    law_reference = (
        ([[0.0], [0.1]], [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], {"density": 1.2, "coverage": 1.0}),
        ([[20.0]], [[0.0], [1.0], [2.0], [3.0], [4.0], [9.0]], {"density": 0.0, "coverage": 0.0}),
        ([[13.0]], [[0.0], [1.0], [2.0], [3.0], [4.0], [9.0]], {"density": 0.2, "coverage": 1 / 6}),
    )


@dataclass(frozen=True)
class KernelDistance(Metric):
    """Unbiased MMD^2 with the kernel (x . y / D + 1)^degree. Source: arXiv:1801.01401, sec. 4."""

    degree: Annotated[int, Field(ge=1, le=5)] = 3
    definition = "unbiased squared MMD between samples and training examples with a polynomial kernel; 0 is best"

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        x, y = evaluation.samples.flatten(1).double(), evaluation.train.flatten(1).double()
        n, m = len(x), len(y)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b.T / a.shape[1] + 1.0) ** self.degree

        own = (kernel(x, x).sum() - kernel(x, x).trace()) / (n * (n - 1))
        real = (kernel(y, y).sum() - kernel(y, y).trace()) / (m * (m - 1))
        return {"kid": float(own + real - 2.0 * kernel(x, y).mean())}

    def law_reference(self, samples: Tensor, train: Tensor) -> float:
        def mean(a: Tensor, b: Tensor, same: bool) -> float:
            pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
            rows, columns = torch.tensor(pairs).T
            return float((((a[rows] * b[columns]).mean(1) + 1) ** self.degree).mean())

        return mean(samples, samples, True) + mean(train, train, True) - 2 * mean(samples, train, False)


class Angles(Conditioner):
    """Numbers as points on the unit circle; the null is its centre."""

    def __init__(self, condition: ConditionSpec) -> None:
        super().__init__()
        if condition.dtype != "float":
            raise ValueError("numbers are required")
        self.count = math.prod(condition.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 * self.count,)

    def forward(self, raw: Tensor) -> Tensor:
        angle = raw.float().flatten(1)
        return torch.cat([angle.cos(), angle.sin()], 1)

    def null(self) -> Tensor:
        return torch.zeros(self.shape)


class Letters(Conditioner):
    """A learned vector for each byte of a text, with a learned null."""

    def __init__(self, condition: ConditionSpec, width: Annotated[int, Field(ge=1)] = 4) -> None:
        super().__init__()
        if condition.dtype != "text":
            raise ValueError("a text is required")
        self.length = condition.shape[0]
        self.table = nn.Embedding(256, width)
        self.nothing = nn.Parameter(torch.randn(width))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, self.table.embedding_dim)

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(raw.long()), raw.new_ones(len(raw), self.length, dtype=torch.bool)

    def null(self) -> tuple[Tensor, Tensor]:
        return self.nothing.expand(self.shape), torch.ones(self.length, dtype=torch.bool)


class Standardised(Codec):
    """z = (x - m) / s with the mean and standard deviation of each channel of the training examples."""

    def __init__(self, data: Data, spread: Positive = 1.0) -> None:
        split = data.split("train")
        x = data.to_model_range(torch.stack([split[i][0] for i in range(len(split))]))
        self.spread = spread
        self.mean = x.transpose(0, 1).flatten(1).mean(1)
        self.std = x.transpose(0, 1).flatten(1).std(1).clamp(min=1e-4)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return (x - self.mean.view(shape)) * (self.spread / self.std).view(shape)

    def decode(self, z: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (z.ndim - 2))
        return z * (self.std / self.spread).view(shape) + self.mean.view(shape)

    def spec(self, data: DataSpec) -> DataSpec:
        return DataSpec(data.channels, data.size, data.classes)

    law_reference = {"channel_mean": 0.0, "channel_std": 1.0}  # noqa: RUF012 - read only


class Whitened(Codec):
    """z = L^-1 (x - m), L L^T the covariance of the training examples, all dimensions together."""

    def __init__(self, data: Data) -> None:
        split = data.split("train")
        x = data.to_model_range(torch.stack([split[i][0] for i in range(len(split))])).flatten(1).double()
        self.mean = x.mean(0)
        self.root = torch.linalg.cholesky(torch.cov(x.T) + 1e-7 * torch.eye(x.shape[1], dtype=x.dtype))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        centred = x.flatten(1).double() - self.mean
        return torch.linalg.solve_triangular(self.root, centred.T, upper=False).T.reshape(x.shape).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        return (z.flatten(1).double() @ self.root.T + self.mean).reshape(z.shape).to(z.dtype)

    def spec(self, data: DataSpec) -> DataSpec:
        return DataSpec(data.channels, data.size, data.classes)

    law_reference = {"mean": 0.0, "covariance": 1.0}  # noqa: RUF012 - read only


@dataclass(frozen=True)
class BlockDCT(Codec):
    """The orthonormal DCT-II of blocks of `block` pixels a side; coefficient k of a block is in channel k."""

    block: Literal[2, 4] = 2

    def _matrix(self) -> Tensor:
        n = self.block
        k, i = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        cosines = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2.0 / n)
        cosines[0] /= math.sqrt(2.0)
        return cosines

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        b, c, h, w = x.shape
        n, D = self.block, self._matrix()
        blocks = x.reshape(b, c, h // n, n, w // n, n)
        return torch.einsum("ki,bchiwj,lj->bcklhw", D, blocks, D).reshape(b, c * n * n, h // n, w // n)

    def decode(self, z: Tensor) -> Tensor:
        b, c, h, w = z.shape
        n, D = self.block, self._matrix()
        codes = z.reshape(b, c // (n * n), n, n, h, w)
        return torch.einsum("ki,bcklhw,lj->bchiwj", D, codes, D).reshape(b, c // (n * n), h * n, w * n)

    def spec(self, data: DataSpec) -> DataSpec:
        n = self.block
        return DataSpec(data.channels * n * n, tuple(side // n for side in data.size), data.classes)

    law_options = ({"block": 4},)
    law_reference = {"norm": 1.0}  # noqa: RUF012 - read only


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


@dataclass(frozen=True)
class Roll(Augmentation):
    """Roll an image by up to `most` pixels along its last axis."""

    most: Annotated[int, Field(ge=1)] = 2

    def __call__(self, x: Tensor, uniform: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        shifts = (uniform[:, 0] * (2 * self.most + 1)).floor().long() - self.most
        return torch.stack([torch.roll(one, int(s), -1) for one, s in zip(x, shifts, strict=True)]), cond

    def law_reference(self, x: Tensor, uniform: Tensor) -> Tensor:
        places = 2 * self.most + 1
        shift = next(k for k in range(places) if float(uniform[0]) < (k + 1) / places) - self.most
        return torch.stack([x[..., (i - shift) % x.shape[-1]] for i in range(x.shape[-1])], -1)
