"""The variational bound in the limit of infinitely many layers: an integral over the noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UsageError
from ..level import Level
from .bound import Total
from .chain import Noise, prior_kl, wide
from .decoder import Decoder


@dataclass(frozen=True, slots=True)
class Points:
    """Positions u in [0, 1] with weights, for int_0^1 f(u) du = mean of sum_k weight_k f(u_k). u, weight: (B, K)."""

    u: Tensor
    weight: Tensor

    @classmethod
    def low_discrepancy(cls, offset: Tensor, count: int) -> Points:
        """Return u_k = (offset + k / count) mod 1: each uniform, together evenly spread; offset: (B,) in [0, 1).

        Source: Kingma et al. 2021 (arXiv:2107.00630), app. I.1.
        """
        k = torch.arange(count, dtype=torch.float64, device=offset.device) / count
        u = (offset.double()[:, None] + k) % 1.0
        return cls(u, torch.full_like(u, 1.0 / count))

    @classmethod
    def importance(cls, offset: Tensor, count: int, masses: Sequence[float] | Tensor) -> Points:
        """Draw evenly spread points in [0, 1] from a density that is constant on each of equal parts of [0, 1].

        Args:
            offset: Uniform numbers in [0, 1): (B,).
            count: Number of points for each example.
            masses: A positive number for each part, such as the root of the mean squared integrand there.

        Returns:
            The points, with the inverse of the density in the weights, so that the integral stays unbiased.

        Raises:
            UsageError: A mass is not positive (DK520), so that its part would be left out of the integral.
        """
        table = torch.as_tensor(masses, dtype=torch.float64, device=offset.device)
        if not bool((table > 0).all()):
            fix = "add a small positive number to each mass"
            raise UsageError("importance points require a positive mass for each part", code="DK520", fix=fix)
        table = table / table.sum()
        edges = torch.cat([table.new_zeros(1), table.cumsum(0)])
        v = cls.low_discrepancy(offset, count).u
        part = (torch.searchsorted(edges, v.contiguous(), right=True) - 1).clamp(0, len(table) - 1)
        u = (part + (v - edges[part]) / table[part]) / len(table)
        return cls(u, 1.0 / (count * len(table) * table[part]))

    @classmethod
    def gauss_legendre(cls, rows: int, count: int) -> Points:
        """Return the same Gauss-Legendre rule for every example: exact for smooth integrands, without randomness."""
        # Golub & Welsch: nodes are the eigenvalues of a symmetric tridiagonal matrix.
        k = torch.arange(1, count, dtype=torch.float64)
        off = k / torch.sqrt(4.0 * k**2 - 1.0)
        nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
        return cls((0.5 * (nodes + 1.0)).expand(rows, -1), vectors[0].square().expand(rows, -1))


@dataclass(frozen=True)
class ContinuousBound(Total):
    """The terms of the continuous bound of B examples, in nats per dimension, float64: (B,) each.

    prior       KL(q(z | x0) || N(0, r^2 I)) at the noisy end
    diffusion   int |eps - eps_hat|^2 / D d lambda between the ends, lambda = log(alpha / sigma)
    decoder     -log p(x0 | z) / D at the clean end
    integrand   |eps - eps_hat|^2 / D at each point: (B, K)
    """

    prior: Tensor
    diffusion: Tensor
    decoder: Tensor
    integrand: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x0) / D: (B,)."""
        return self.prior + self.diffusion + self.decoder


def continuous_bound(
    denoise: Denoiser,
    x0: Tensor,
    clean: Level,
    noisy: Level,
    *,
    noise: Noise,
    points: Points,
    decoder: Decoder,
    cond: Mapping[str, Tensor] | None = None,
) -> ContinuousBound:
    """Compute the bound of infinitely many layers between two levels, whatever schedule connects them.

    1/2 int |x0 - x0_hat|^2 d snr = int |eps - eps_hat|^2 d lambda. The position u in [0, 1] of a point is linear in
    lambda, from the noisy end. Source: Kingma et al. 2021 (arXiv:2107.00630), eq. 11, 15, 18.

    Args:
        denoise: The model.
        x0: Clean data: (B, *S).
        clean: The level of the decoder, sigma > 0, such as schedule.level(schedule.t_clean) or the first step.
        noisy: The level of the prior.
        noise: Draws standard normal noise in the shape of its argument: once for each point, and once for the decoder.
        points: Positions and weights of the integral.
        decoder: The distribution of x0 given the latent at `clean`; `Density` and `Discretised` take the mean from the
            model and the standard deviation sigma / alpha.
        cond: Conditions, one row per example; default none.

    Returns:
        The terms of each example.

    Raises:
        UsageError: The levels are not clean and noisy (DK520), or the decoder does not fit the data (DK521).
    """
    low, high = float(noisy.half_logsnr), float(clean.half_logsnr)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"the continuous bound requires alpha > 0 and sigma > 0 at both ends, and less noise at `clean`; "
            f"got log(alpha / sigma) = {high:g} and {low:g}",
            code="DK520",
            fix="pass levels inside the schedule, such as schedule.level(1e-4) and schedule.level(0.999)",
        )
    decoder.check(x0)
    found = []
    with torch.no_grad():
        for k in range(points.u.shape[1]):
            lam = low + (high - low) * points.u[:, k].to(device=x0.device, dtype=wide(x0).dtype)
            level = Level(torch.sigmoid(2.0 * lam).sqrt(), torch.sigmoid(-2.0 * lam).sqrt())
            eps = noise(x0)
            estimate = denoise(level.add_noise(x0, eps), level, **(cond or {}))
            found.append(wide(eps - estimate.eps).square().flatten(1).mean(1))
        z = clean.add_noise(x0, noise(x0))
        mean = wide(z) / float(clean.alpha) if decoder.of_latent else wide(denoise(z, clean, **(cond or {})).x0)
        decoded = -decoder.log_prob(wide(x0), mean, float(clean.ratio)).flatten(1).mean(1)
    integrand = torch.stack(found, 1)
    weight = points.weight.to(integrand)
    return ContinuousBound(prior_kl(noisy, x0), (high - low) * (weight * integrand).sum(1), decoded, integrand)
