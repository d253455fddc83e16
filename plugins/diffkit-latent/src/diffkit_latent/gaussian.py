"""A network that starts as the best linear denoiser of the training examples."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Network, Parameterization, Schedule, Shape
from diffkit.oracles import LevelNetwork, ideal_output
from diffkit.oracles.base import column, working

EXAMPLES = 5000
"""Examples whose mean and principal components are computed."""
EXACT = 2048
"""The most values of an example for which the whole covariance is computed."""
SPARE, ITERATIONS = 16, 3
"""Directions that are searched beyond those that are kept, and how often the covariance sharpens them."""


class GaussianStart(LevelNetwork):
    """Add the output of the exact denoiser of a normal distribution to that of `inner`.

    The distribution has the mean and the covariance of the training examples, encoded and augmented, when the run
    starts; its denoiser is the best linear one at each level. `inner` learns only what this lacks, so that a short
    training does not spend most of its steps on means and correlations. The distribution is N(0, I) until `fit`.

    components   principal components of the covariance; all other directions share the mean of their variances

    Raises ValueError if the schedule is trained, since the denoiser would change with it.
    Source: Wang & Vastola 2024 (arXiv:2412.09726), eq. 8: trained denoisers are nearly those of a normal distribution
    at most levels. Differs: the network is added to it.
    """

    law_base = {"components": 8}  # noqa: RUF012 - read only
    examples_to_fit = EXAMPLES
    mean: Tensor
    axes: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(
        self,
        inner: Network,
        shape: Shape,
        schedule: Schedule,
        parameterization: Parameterization,
        components: Annotated[int, Field(ge=1)] = 512,
    ) -> None:
        super().__init__(schedule, parameterization)
        if isinstance(schedule, nn.Module):
            raise ValueError("network gaussian-start needs a schedule that is not trained")
        self.inner, self.shape = inner, shape
        values = shape.in_channels * math.prod(shape.size)
        count = min(components, values)
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("axes", torch.zeros(values, count))
        self.register_buffer("variances", torch.ones(count))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(self, x0: Tensor) -> str:
        """Compute mean and principal components of x0: (N, C, *S); return the share of their variance."""
        rows = x0.flatten(1).float()
        mean, count = rows.mean(0), min(self.axes.shape[1], *rows.shape)
        variances, axes = principal(rows - mean, count)
        total = (rows - mean).square().sum() / len(rows)
        left = (total - variances.sum()).clamp_min(0)
        self.axes.zero_()
        self.variances.zero_()
        self.mean.copy_(mean)
        self.axes[:, :count] = axes
        self.variances[:count] = variances
        self.rest.copy_(left / max(rows.shape[1] - count, 1))
        return (
            f"{count} principal components of {len(rows):,} examples hold {float(1 - left / total):.4f} of the variance"
        )

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        """Add the output of `inner` to that of the denoiser.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; none by default.
            **cond: Further conditions of `inner`.

        Returns:
            The output: (B, C', *S).
        """
        given = cond if label is None else {**cond, "label": label}
        out: Tensor = self.inner(x, c_noise, **given)
        with torch.autocast(x.device.type, enabled=False):
            return (out + self._linear(x.to(working(x)), c_noise)).to(self.mean.dtype)

    def _linear(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Return the output of the exact denoiser of the normal distribution."""
        z, level = self.unscaled(x, c_noise)
        alpha, sigma = column(level.alpha, z), column(level.sigma, z)
        mean, axes, variances = (buffer.to(z.dtype) for buffer in (self.mean, self.axes, self.variances))
        centred = z.flatten(1) - alpha * mean
        inside = centred @ axes

        def spread(of_variance: Tensor, of_rest: Tensor) -> Tensor:
            """Multiply each component by its factor, and what lies outside of them by another one."""
            return of_rest * centred + (inside * (of_variance - of_rest)) @ axes.T

        power, rest = alpha**2 * variances + sigma**2, alpha**2 * self.rest + sigma**2
        x0 = mean + spread(alpha * variances / power, alpha * self.rest / rest)
        eps = spread(sigma / power, sigma / rest)
        return ideal_output(self.parameterization, x0.view_as(z), eps.view_as(z), level)


def principal(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute the principal components of examples with mean 0.

    Args:
        centred: The examples: (N, D).
        count: How many components, at most N and D.

    Returns:
        Their variances, the largest first: (count,), and their directions: (D, count).
    """
    if centred.shape[1] <= EXACT:
        variances, axes = torch.linalg.eigh(centred.T.double() @ centred.double() / len(centred))
        return variances.flip(0)[:count].clamp_min(0).float(), axes.flip(1)[:, :count].float()
    with torch.random.fork_rng(devices=[centred.device] if centred.is_cuda else []):
        torch.manual_seed(0)
        _, lengths, axes = torch.svd_lowrank(centred, q=min(count + SPARE, *centred.shape), niter=ITERATIONS)
    return lengths[:count].square() / len(centred), axes[:, :count]
