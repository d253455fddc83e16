"""The score prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import Level, LevelError, Parameterization, Scalar


@dataclass(frozen=True)
class Score(Parameterization):
    """Predict the score of p_t: y = -eps / sigma, coefficients (0, -1 / sigma). At alpha = 0 the score does not
    determine x0.

    The score grows as 1 / sigma, so use it with a weighting (`snr` makes its loss that of eps), or predict eps, as the
    paper's networks do (their output is divided by sigma). Raises LevelError at sigma = 0, at which the score is
    undefined. Source: Song et al. 2021 (arXiv:2011.13456), eq. 7.
    """

    law_exemptions = {"finite": "the score is undefined at sigma = 0, so the component raises LevelError"}  # noqa: RUF012 - read only

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        sigma = level.sigma
        if isinstance(sigma, Tensor):
            # On other devices this comparison would wait for the device.
            clean = sigma.device.type == "cpu" and not torch.compiler.is_compiling() and bool((sigma == 0).any())
        else:
            clean = sigma == 0.0
        if clean:
            raise LevelError(
                "the score is undefined at sigma = 0: clean data has no smooth density",
                code="DK503",
                fix="start the schedule with noise (vp: t_clean: 1e-5), or use eps",
            )
        return 0.0, -1.0 / sigma
