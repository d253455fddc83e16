"""A discrete schedule, rescaled so that its last level is pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from diffkit import Discrete, Schedule, build


@dataclass(frozen=True)
class ZeroSNR(Discrete):
    """Rescale `inner` to zero terminal SNR: alpha'_t = (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T).

    So alpha'_1 = alpha_1 and alpha'_T = 0. At alpha = 0 eps does not determine x0: a network must predict v, flow or
    x0. Raises ValueError if `inner` is continuous or has fewer than two steps.
    Source: Lin et al. 2024 (arXiv:2305.08891), Algorithm 1.
    """

    inner: Schedule

    def __post_init__(self) -> None:
        if self.inner.steps is None:
            raise ValueError(
                "zero-snr needs a discrete `inner`, such as linear; rectified has zero terminal SNR already"
            )
        if self.inner.steps < 2:
            raise ValueError("zero-snr needs at least two steps: the first stays unchanged, the last becomes noise")
        alpha = torch.as_tensor(self.inner.level(torch.arange(self.inner.steps + 1)).alpha).double()
        first, last = alpha[1], alpha[-1]
        # The step to alpha'_1 is that of `inner`; the common factor cancels in each later ratio.
        ratios = (alpha[2:] - last) / (alpha[1:-1] - last)
        steps = torch.cat([-torch.expm1(2.0 * torch.log(first))[None], 1.0 - ratios**2])
        Discrete.__init__(self, steps)

    @staticmethod
    def law_example(folder: Path) -> ZeroSNR:
        """Return an instance on which the laws are tested."""
        return ZeroSNR(build("schedule", "scaled-linear"))
