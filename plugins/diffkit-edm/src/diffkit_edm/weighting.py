"""The EDM weighting: weight 1 on the loss of F at all levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Level, Scalar, Weighting, scalar


@dataclass(frozen=True)
class EDM(Weighting):
    """The weighting of EDM: w = (sg^2 + sd^2) / (sg sd)^2 = snr + 1 / sd^2, with sg = sigma / alpha and sd =
    `sigma_data`.

    1 / c_out^2, a unit weight on the output F of parameterization `edm` with the same sigma_data.
    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, lambda.
    """

    sigma_data: Annotated[float, Field(gt=0)] = 0.5

    def __call__(self, level: Level) -> Scalar:
        return scalar.divide(level.alpha, level.sigma) ** 2 + 1.0 / self.sigma_data**2
