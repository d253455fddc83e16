"""The two losses of the paper: the simple loss, and the variational bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffkit import UNIFORM_TIMES, Data, Loss, Model, Objective, RandomStreams, Times, Weighting, broadcast
from diffkit.likelihood import Variance, term


@dataclass(frozen=True)
class Simple(Objective):
    """The simple loss: w |y - target|^2 at random times, averaged (or summed) over the dimensions of an example.

    Without a `weighting` w = 1, which is L_simple if the network predicts eps. With a `weighting` the loss is
    w(level) |x0 - x0_hat|^2, the same in every parameterization. Further channels of the output, such as those of a
    learned variance, are not trained. Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """

    weighting: Weighting | None = None
    times: Times = UNIFORM_TIMES
    reduction: Literal["mean", "sum"] = "mean"
    law_options = ({"reduction": "sum"},)

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        t = self.times.of_rows(noise, x0, model.schedule)
        level = model.schedule.level(t)
        eps = noise.normal("noise", x0)
        y = model.output(level.add_noise(x0, eps), level, t, **cond)[:, : x0.shape[1]]
        error = (y - model.parameterization.target(x0, eps, level)).square().flatten(1)
        each = error.mean(1) if self.reduction == "mean" else error.sum(1)
        if self.weighting is not None:
            each = each * broadcast(self.weighting.on_output(level, model.parameterization), each)
        return Loss.of(each, t, self.times.correction(t, model.schedule))

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)


@dataclass(frozen=True)
class VLB(Objective):
    """The variational bound, estimated by T times its term at a random time, in nats per dimension.

    For t > 1 the term is KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)); at t = 1 it is -log p(x0 | x_1), with the
    discretised decoder if the data has bins, else the density. The prior term has no parameters and is left out;
    `diffkit.likelihood.variational_bound` adds it. Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5, 13.
    """

    data: Data
    variance: Variance = "small"
    times: Times = UNIFORM_TIMES
    discrete_only = True
    trains_schedule = True
    law_options = ({"variance": "large"}, {"variance": "learned"})

    @property
    def needs(self) -> tuple[str, ...]:
        """Entries of `Estimate.aux` that the variance is computed from."""
        return ("variance_fraction",) if self.variance == "learned" else ()

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        steps = model.schedule.steps
        assert steps is not None
        t = self.times.of_rows(noise, x0, model.schedule)
        level = model.schedule.level(t)
        x = level.add_noise(x0, noise.normal("noise", x0))
        y = model.output(x, level, t, **cond).float()
        estimate = model.parameterization.decode(y, x, level)
        each = term(x0, t, estimate, model.schedule, self.variance, self.data.spec.bins) * steps
        return Loss.of(each, t, self.times.correction(t, model.schedule))

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)
