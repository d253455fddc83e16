"""A Gaussian: the distribution for which every quantity of the theory has a closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Data, DataSpec, Denoiser, InMemorySplit, Part
from diffkit.oracles import GaussianOracle

from .files import fingerprint

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Gaussian(Data):
    """Vectors x (D,) from a Gaussian: x0 ~ N(mean, covariance), drawn once from `seed`.

    The covariance is std^2 times the identity; diag(std^2) if `std` has one value for each coordinate; or the matrix
    `covariance`, given by rows, symmetric and positive semi-definite (`std` must then keep its default).
    `truth()` is the exact denoiser E[x0 | x]. Raises ValueError if these conditions do not hold.
    """

    mean: tuple[float, ...] = (0.0,)
    std: Positive | tuple[Positive, ...] = 1.0
    covariance: tuple[tuple[float, ...], ...] | None = None
    count: Count = 8192
    held_out: Count = 2048
    seed: int = 0
    law_options = (
        {"mean": (0.5, -1.0), "std": (0.5, 2.0)},
        {"mean": (0.0, 1.0), "covariance": ((2.0, 0.6), (0.6, 0.5))},
    )

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("mean is empty; give one value for each coordinate")
        if isinstance(self.std, tuple) and len(self.std) != len(self.mean):
            raise ValueError(f"std has {len(self.std)} values, mean has {len(self.mean)}")
        if self.covariance is not None:
            self._check_covariance(self.covariance)

    def _check_covariance(self, rows: tuple[tuple[float, ...], ...]) -> None:
        if self.std != 1.0:
            raise ValueError("give std or covariance, not both")
        side = len(self.mean)
        if len(rows) != side or any(len(row) != side for row in rows):
            raise ValueError(f"covariance must have {side} rows of {side} values, as mean has {side}")
        matrix = torch.tensor(rows, dtype=torch.float64)
        if not torch.equal(matrix, matrix.T):
            raise ValueError("covariance is not symmetric")
        least = float(torch.linalg.eigvalsh(matrix)[0])
        if least < -1e-12 * float(matrix.abs().max()):
            raise ValueError(f"covariance has the negative eigenvalue {least:.3g}")

    @property
    def spec(self) -> DataSpec:
        return DataSpec(len(self.mean))

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    def truth(self) -> Denoiser:
        covariance = self.matrix if self.covariance is not None else self.matrix.diagonal()
        return GaussianOracle(torch.tensor(self.mean, dtype=torch.float64), covariance)

    def fingerprint(self) -> str:
        return fingerprint(self)

    @property
    def matrix(self) -> Tensor:
        """The covariance: (D, D) float64."""
        if self.covariance is not None:
            return torch.tensor(self.covariance, dtype=torch.float64)
        std = torch.tensor(self.std, dtype=torch.float64).expand(len(self.mean))
        return torch.diag(std.square())

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(self.count + self.held_out, len(self.mean), generator=generator, dtype=torch.float64)
        variances, axes = torch.linalg.eigh(self.matrix)
        root = axes * variances.clamp(min=0).sqrt()
        x = (torch.tensor(self.mean, dtype=torch.float64) + z @ root.T).float()
        return {"train": InMemorySplit(x[: self.count]), "held-out": InMemorySplit(x[self.count :])}
