"""The variational bound in continuous time as an objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffkit import UNIFORM_TIMES, Data, Level, Loss, Model, Objective, RandomStreams, Schedule, Times
from diffkit.likelihood import Categorical, Density, prior_kl

from .schedule import LearnedVP, variance_loss


@dataclass(frozen=True)
class ContinuousVLB(Objective):
    """The variational bound of infinitely many layers, in nats per dimension: prior + diffusion + decoder.

    diffusion = 1/2 gamma'(t) |eps - eps_hat|^2 at a random time t, gamma = -log snr; the prior is the divergence of the
    noisiest latent from normal noise; the decoder computes p(x0) from the cleanest latent alone: the categorical one if
    the data has bins, else the density N(z / alpha, sigma^2 / alpha^2). The bound trains network and ends of the
    schedule `learned-vp`, and the variance of the estimator trains the shape between them. `parts` are the three
    summands. Raises ValueError unless alpha and sigma are positive at both ends of the schedule.
    Source: Kingma et al. 2021 (arXiv:2107.00630), eq. 8, 11, 17, 18 and app. I.2.
    """

    data: Data
    schedule: Schedule
    times: Times = UNIFORM_TIMES
    trains_schedule = True

    def __post_init__(self) -> None:
        schedule = self.schedule
        ends = [float(schedule.level(t).half_logsnr) for t in (schedule.t_clean, schedule.t_noise)]
        if not all(map(math.isfinite, ends)):
            raise ValueError(
                "both ends of the schedule must have alpha > 0 and sigma > 0: use learned-vp, or vp with t_clean > 0"
            )

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        schedule = model.schedule
        t = self.times.of_rows(noise, x0, schedule)
        level, eps = schedule.level(t), noise.normal("noise", x0)
        x = level.add_noise(x0, eps)
        estimate = model.parameterization.decode(model.output(x, level, t, **cond).float(), x, level)
        error = (eps - estimate.eps).square().flatten(1).mean(1)
        diffusion = 0.5 * (schedule.t_noise - schedule.t_clean) * gamma_slope(schedule, t) * error
        clean, noisy = (schedule.level(torch.full_like(t[:1], end)) for end in (schedule.t_clean, schedule.t_noise))
        prior, decoder = prior_kl(noisy, x0), self._decoder(clean, x0, noise.normal("decoder", x0))
        parts = {"prior": prior.mean(), "diffusion": diffusion.mean(), "decoder": decoder.mean()}
        loss = Loss.of(prior + diffusion + decoder, t, self.times.correction(t, schedule), parts)
        if isinstance(schedule, LearnedVP):
            shape = variance_loss(schedule, t, diffusion)
            loss = replace(loss, mean=loss.mean + shape - shape.detach())
        return loss

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)

    def _decoder(self, clean: Level, x0: Tensor, eps: Tensor) -> Tensor:
        """Compute -log p(x0 | z) / D at the clean end: (B,)."""
        bins = self.data.spec.bins
        decoder = Density() if bins is None else Categorical(bins)
        mean = x0 + clean.like(x0).ratio * eps
        return -decoder.log_prob(x0.double(), mean.double(), clean.ratio).flatten(1).mean(1)


def gamma_slope(schedule: Schedule, t: Tensor) -> Tensor:
    """Compute d gamma / dt, gamma = log(sigma^2 / alpha^2), at t: (B,), with a gradient to a trained schedule."""
    with torch.enable_grad():
        t = t.detach().double().requires_grad_()
        gamma = -2.0 * torch.as_tensor(schedule.level(t).half_logsnr)
        (slope,) = torch.autograd.grad(gamma.sum(), t, create_graph=True)
    return slope if torch.is_grad_enabled() else slope.detach()
