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

EXAMPLES, MOST_VALUES, LEAST = 5000, 1 << 26, 256
"""Examples whose mean and principal components are computed: the number, which falls to keep the values of all of them
below a limit (256 MiB), and the least number, whatever their size."""
EXACT = 2048
"""The most values of an example for which the whole covariance is computed."""
SPARE, ITERATIONS = 16, 3
"""Directions that are searched beyond those that are kept, and how often the covariance sharpens them."""
OWN = 0.3
"""Share of the covariance of a class that comes from its own examples; the rest is that within all classes."""


class GaussianStart(LevelNetwork):
    """Add the output of the exact denoiser of a normal distribution to that of `inner`.

    The distribution has the mean and the covariance of 5,000 training examples, or fewer large ones, encoded and
    augmented, when the run starts; its denoiser is the best linear one at each level. `inner` learns only what this
    lacks, so that a short training does not spend most of its steps on means and correlations. Distributions are
    N(0, I) until `fit`.

    components   principal components of the covariance; all other directions share the mean of their variances. Choose
                 few for few examples: `inner` cannot learn what they describe of the training examples alone
    by_class     whether each class has a distribution of its own, beside that of all examples for the null class: with
                 the mean of the class, and 0.3 times its covariance plus 0.7 times the covariance within all classes

    Raises ValueError if the schedule is trained, since the denoiser would change with it.
    Source: Wang & Vastola 2024 (arXiv:2412.09726): trained denoisers are first and mostly those of normal
    distributions. Differs: the network is added to that denoiser.
    """

    law_base = {"components": 1}  # noqa: RUF012 - read only
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
        components: Annotated[int, Field(ge=1)] = 64,
        by_class: bool = True,
    ) -> None:
        super().__init__(schedule, parameterization)
        if isinstance(schedule, nn.Module):
            raise ValueError("network gaussian-start needs a schedule that is not trained")
        self.inner, self.shape = inner, shape
        values, groups = shape.in_channels * math.prod(shape.size), (shape.classes or 0) * by_class + 1
        count = min(components, values)
        self.examples_to_fit = min(EXAMPLES, max(LEAST, MOST_VALUES // values))
        self.register_buffer("mean", torch.zeros(groups, values))
        self.register_buffer("axes", torch.zeros(groups, values, count))
        self.register_buffer("variances", torch.ones(groups, count))
        self.register_buffer("rest", torch.ones(groups))

    @torch.no_grad()
    def fit(self, x0: Tensor, label: Tensor | None = None) -> str:
        rows, null = x0.flatten(1).to(working(x0)), len(self.mean) - 1
        mean = rows.mean(0)
        held = self._set(null, mean, (rows - mean) / len(rows) ** 0.5)
        count = min(self.axes.shape[2], *rows.shape)
        found = f"{count} principal components of {len(rows):,} examples hold {held:.4f} of the variance"
        for one in range(null):  # a class without examples keeps the distribution of all
            for buffer in (self.mean, self.axes, self.variances, self.rest):
                buffer[one] = buffer[null]
        if not null or label is None:
            return found
        present = [one for one in range(null) if bool((label == one).any())]
        inside = torch.cat([rows[label == one] - rows[label == one].mean(0) for one in present])
        for one in present:
            own = rows[label == one]
            mean, share = own.mean(0), OWN / len(own)
            self._set(one, mean, torch.cat([(own - mean) * share**0.5, inside * ((1 - OWN) / len(inside)) ** 0.5]))
        return f"{found}; each of {len(present)} classes has its own"

    def _set(self, group: int, mean: Tensor, rows: Tensor) -> float:
        """Keep a mean, and the principal components of rows^T rows; return the share of the variance that they hold."""
        count = min(self.axes.shape[2], *rows.shape)
        variances, axes = principal(rows, count)
        total = rows.square().sum()
        self.mean[group], self.axes[group], self.variances[group] = mean, 0.0, 0.0
        self.axes[group, :, :count], self.variances[group, :count] = axes, variances
        self.rest[group] = (total - variances.sum()).clamp_min(0) / max(rows.shape[1] - count, 1)
        return float(variances.sum() / total)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        """Add the output of `inner` to that of the denoiser.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.
            **cond: Further conditions of `inner`.

        Returns:
            The output: (B, C', *S).
        """
        given = cond if label is None else {**cond, "label": label}
        out: Tensor = self.inner(x, c_noise, **given)
        with torch.autocast(x.device.type, enabled=False):
            return (out + self._linear(x.to(working(x)), c_noise, label)).to(self.mean.dtype)

    def _linear(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the output of the exact denoiser of the distribution of each example."""
        z, level = self.unscaled(x, c_noise)
        alpha, sigma = (torch.as_tensor(column(one, z)) for one in (level.alpha, level.sigma))
        flat, null = z.flatten(1), len(self.mean) - 1
        x0, eps = self._denoised(flat, alpha, sigma, null)
        if label is not None:
            for one in range(null):  # all of them: which occur is known to the device only
                chosen = (label == one)[:, None]
                own = self._denoised(flat, alpha, sigma, one)
                x0, eps = torch.where(chosen, own[0], x0), torch.where(chosen, own[1], eps)
        return ideal_output(self.parameterization, x0.view_as(z), eps.view_as(z), level)

    def _denoised(self, z: Tensor, alpha: Tensor, sigma: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Return the exact estimates of x0 and eps of z: (B, D), by the distribution of a class."""
        mean, axes, variances, rest = (
            buffer[group].to(z.dtype) for buffer in (self.mean, self.axes, self.variances, self.rest)
        )
        centred = z - alpha * mean
        inside = centred @ axes

        def spread(of_variance: Tensor, of_rest: Tensor) -> Tensor:
            """Multiply each component by its factor, and what lies outside of them by another one."""
            return of_rest * centred + (inside * (of_variance - of_rest)) @ axes.T

        power, left = alpha**2 * variances + sigma**2, alpha**2 * rest + sigma**2
        x0 = mean + spread(alpha * variances / power, alpha * rest / left)
        return x0, spread(sigma / power, sigma / left)


def principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute the largest eigenvalues of rows^T rows.

    Args:
        rows: A matrix: (N, D).
        count: How many, at most N and D.

    Returns:
        The eigenvalues, the largest first: (count,), and their directions: (D, count).
    """
    if rows.shape[1] <= EXACT:
        variances, axes = torch.linalg.eigh((rows.T @ rows).double())
        return variances.flip(0)[:count].clamp_min(0).to(rows.dtype), axes.flip(1)[:, :count].to(rows.dtype)
    with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
        torch.manual_seed(0)
        _, lengths, axes = torch.svd_lowrank(rows, q=min(count + SPARE, *rows.shape), niter=ITERATIONS)
    return lengths[:count].square(), axes[:, :count]
