"""The hybrid loss: L_simple for the mean, the variational bound for the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import UNIFORM_TIMES, Data, Loss, Model, Objective, RandomStreams, Times, Weighting, broadcast, likelihood


@dataclass(frozen=True)
class Hybrid(Objective):
    """The hybrid loss L_simple + scale T L_{t-1}: L_simple trains the mean, the bound trains only the variance.

    L_simple is |y - target|^2, mean over the dimensions of an example; L_{t-1} is the term of the bound at the same x
    with variance `learned`, in bits per dimension (mean), without gradient through the mean. With scale 0.001 that is
    mse + vb T / 1000. A `weighting` applies to L_simple. `parts` are the two summands.
    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 16.
    Differs: eq. 16 counts the bound in nats; bits are those of the authors' code.
    """

    data: Data
    scale: Annotated[float, Field(ge=0)] = 0.001
    weighting: Weighting | None = None
    times: Times = UNIFORM_TIMES
    discrete_only = True
    needs = ("variance_fraction",)

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        steps, channels = model.schedule.steps, x0.shape[1]
        assert steps is not None
        t = self.times.of_rows(noise, x0, model.schedule)
        level = model.schedule.level(t)
        eps = noise.normal("noise", x0)
        x = level.add_noise(x0, eps)
        y = model.output(x, level, t, **cond).float()
        error = y[:, :channels] - model.parameterization.target(x0, eps, level)
        frozen = torch.cat([y[:, :channels].detach(), y[:, channels:]], dim=1)
        estimate = model.parameterization.decode(frozen, x, level)
        nats = likelihood.term(x0, t, estimate, model.schedule, "learned", self.data.spec.bins)
        simple, bits = error.square().flatten(1).mean(1), self.scale * steps / math.log(2) * nats
        if self.weighting is not None:
            simple = simple * broadcast(self.weighting.on_output(level, model.parameterization), simple)
        parts = {"simple": simple.mean(), "bound": bits.mean()}
        return Loss.of(simple + bits, t, self.times.correction(t, model.schedule), parts)

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)
