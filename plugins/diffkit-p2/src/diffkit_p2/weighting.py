"""Three weightings of |x0 - x0_hat|^2 that weight nearly clean levels less than L_simple does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Level, Scalar, Weighting, scalar

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class P2(Weighting):
    """P2 weights: w = snr / (k + snr)^gamma, which favours the levels at which perceptible content forms.

    Source: Choi et al. 2022 (arXiv:2204.00227), eq. 8; there 1 / (k + snr)^gamma multiplies the error of eps.
    """

    k: Positive = 1.0
    gamma: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, level: Level) -> Scalar:
        return scalar.divide(level.snr, (self.k + level.snr) ** self.gamma)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """Min-SNR weights: w = min(snr, gamma), the same loss in every parameterization.

    Source: Hang et al. 2023 (arXiv:2303.09556), eq. 8.
    """

    gamma: Positive = 5.0

    def __call__(self, level: Level) -> Scalar:
        return scalar.minimum(level.snr, self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """Soft min-SNR weights: w = snr gamma / (snr + gamma), a smooth min(snr, gamma).

    Source: Crowson et al. 2024 (arXiv:2401.11605), sec. 4, with gamma = 1 / sigma_data^2 there.
    """

    gamma: Positive = 4.0

    def __call__(self, level: Level) -> Scalar:
        return self.gamma / (1.0 + scalar.divide(self.gamma, level.snr))
