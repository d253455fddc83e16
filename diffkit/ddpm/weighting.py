"""Weightings of the error of x0 in the paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import Level, Scalar, Schedule, Weighting, transition
from diffkit.schedule import sde


@dataclass(frozen=True)
class Uniform(Weighting):
    """Uniform weights of the error of x0: w = 1 on |x0 - x0_hat|^2 at every level."""

    def __call__(self, level: Level) -> Scalar:
        return torch.ones_like(level.sigma) if isinstance(level.sigma, Tensor) else 1.0


@dataclass(frozen=True)
class SNR(Weighting):
    """Signal-to-noise weights, L_simple in every parameterization: w = snr on |x0 - x0_hat|^2, or w = 1 on eps.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """

    def __call__(self, level: Level) -> Scalar:
        return level.snr


@dataclass(frozen=True)
class VLBWeight(Weighting):
    """Weights of the variational bound: w = (snr_{t-1} - snr_t) / 2 on |x0 - x0_hat|^2, for variance beta tilde, in
    nats.

    At t = 1 snr_0 is infinite, so the variance of t = 2 is used, as in the decoder: w = 1 / (2 beta tilde_2). On a
    continuous schedule w = -(1/2) d snr / dt. Source: Kingma et al. 2021 (arXiv:2107.00630), eq. 13, 17.
    """

    schedule: Schedule

    def __call__(self, level: Level) -> Scalar:
        t = torch.as_tensor(self.schedule.time(level), dtype=torch.float64)
        if self.schedule.steps is None:
            return self._rate(t)
        at = self.schedule.level(t)
        before = self.schedule.level((t - 1).clamp(min=0))
        first, second = self.schedule.level(1.0), self.schedule.level(min(2.0, self.schedule.t_noise))
        floor = float(transition.posterior(second, first)) ** 2
        start = 1.0 / (2.0 * floor) if floor > 0 else 1.0 / (2.0 * float(first.sigma) ** 2)
        assert isinstance(at.snr, Tensor)
        assert isinstance(before.snr, Tensor)
        return torch.where(t <= 1, torch.full_like(t, start), 0.5 * (before.snr - at.snr))

    def _rate(self, t: Tensor) -> Tensor:
        """Return -(1/2) d snr / dt = g^2 snr / (2 sigma^2), as g^2 = -2 sigma^2 d half_logsnr / dt."""
        level = self.schedule.level(t)
        _, g2 = sde(self.schedule, t.reshape(-1))
        return g2.reshape(t.shape) * level.snr / (2.0 * level.sigma**2)
