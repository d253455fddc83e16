"""Losses of a reconstruction in pixels, and of the posterior of its codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from diffkit import Reconstruction, ReconstructionLoss, UsageError

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class L1(ReconstructionLoss):
    """The mean absolute error of the values of x, times `weight`."""

    weight: Weight = 1.0
    law_minimum = 0.0

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return self.weight * (out.x - x).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class L2(ReconstructionLoss):
    """The mean squared error of the values of x, times `weight`."""

    weight: Weight = 1.0
    law_minimum = 0.0

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return self.weight * (out.x - x).square().flatten(1).mean(1)


@dataclass(frozen=True)
class KL(ReconstructionLoss):
    """The Kullback-Leibler divergence of the posterior N(m, s^2) from N(0, 1) in nats per value of x, times `weight`.

    It is the sum of (m^2 + s^2 - 1 - log s^2) / 2 over the dimensions of z, divided by the number of values of x. So
    `weight` beside a mean error is the weight beside a sum of errors in papers. Of the range 1e-6 to 1e-3, larger
    weights give smoother codes and blurred images. A weight near 1 makes all codes noise, a weight of 0 lets them grow.
    Source: Kingma & Welling 2014 (arXiv:1312.6114), appendix B; the weight, Rombach et al. 2022 (arXiv:2112.10752),
    appendix G.
    Raises UsageError DK083 for a codec without a posterior, such as vq-vae.
    """

    weight: Weight = 1e-6
    law_minimum = 0.0

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        if out.posterior.std is None:
            raise UsageError(
                "the loss kl needs a codec whose posterior has a standard deviation",
                code="DK083",
                fix="remove kl from loss, or choose the codec kl-vae",
            )
        return self.weight * nats(out.posterior.mean, out.posterior.std).flatten(1).sum(1) / x[0].numel()


def nats(mean: Tensor, std: Tensor) -> Tensor:
    """Compute the divergence of N(mean, std^2) from N(0, 1) in nats, for each element."""
    variance = std.square()
    return 0.5 * (mean.square() + variance - 1.0 - variance.log())
