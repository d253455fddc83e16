"""The weighting with which score matching bounds the likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import Level, Scalar, Schedule, Weighting


@dataclass(frozen=True)
class Likelihood(Weighting):
    """Likelihood weights, g^2 on the error of the score: on the error of x0, w = g^2 snr / sigma^2 = -d snr / dt.

    Half its mean over uniform t in [0, 1] is the continuous bound on -log p, in nats, up to terms without parameters.
    On a discrete schedule the derivative is that of the curve through its steps.
    Source: Song et al. 2021 (arXiv:2101.09258), theorem 1, eq. 8.
    """

    schedule: Schedule

    def __call__(self, level: Level) -> Scalar:
        t = torch.as_tensor(self.schedule.time(level), dtype=torch.float64).detach()
        with torch.enable_grad():
            leaf = t.clone().requires_grad_()
            snr = self.schedule.level(leaf).snr
            assert isinstance(snr, Tensor)
            (slope,) = torch.autograd.grad(snr.sum(), leaf)
        return -slope if isinstance(level.sigma, Tensor) else -float(slope)
