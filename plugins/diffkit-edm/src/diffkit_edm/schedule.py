"""The EDM schedule: time is the noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Level, Scalar, Schedule, scalar

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class EDM(Schedule):
    """The schedule of EDM, whose time is the noise level: alpha = 1, sigma = t, t from sigma_min to sigma_max. Raises
    ValueError unless sigma_min < sigma_max.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, "Ours".
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min:g}, which is not below sigma_max, {self.sigma_max:g}")

    @property
    def t_clean(self) -> float:
        return self.sigma_min

    @property
    def t_noise(self) -> float:
        return self.sigma_max

    def level(self, t: Scalar) -> Level:
        return Level(torch.ones_like(t) if isinstance(t, Tensor) else 1.0, t)

    def time(self, level: Level) -> Scalar:
        return scalar.divide(level.sigma, level.alpha)
