"""Metrics, conditioners, codecs and an augmentation that diffkit does not ship; see `strangers.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    Evaluation,
    Metric,
)

Positive = Annotated[float, Field(gt=0)]


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
