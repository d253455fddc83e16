"""Bits per dimension of discrete data under a density: dequantisation, and the bound that it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UsageError
from ..level import Level
from .chain import wide
from .decoder import check_values
from .ode import Adaptive, Fixed, Prior, log_density

Dequantisation = Literal["none", "uniform", "variational"]


def dequantise(
    x0: Tensor, u: Tensor | None, bins: int, level: Level, method: Dequantisation = "uniform"
) -> tuple[Tensor, Tensor]:
    """Spread discrete data over its bins: -log P(x0) <= E[log q(y | x0) - log p(y)] for y ~ q, inside the bin of x0.

    `none`: y = x0, the middle of the bin, as if q were uniform; an approximation, no bound. `uniform`: y uniform in the
    bin. `variational`: y = x0 + (sigma / alpha) e, e normal and truncated to the bin, which is the distribution of the
    latent at `level` as far as it lies in the bin. Source: Theis et al. 2016 (arXiv:1511.01844), sec. 3.1; Zheng et al.
    2023 (arXiv:2305.03935), sec. 4.2, for the truncated normal.

    Args:
        x0: Data with the values 2 k / (bins - 1) - 1: (B, *S).
        u: Uniform numbers in [0, 1): (B, *S); not used by `none`.
        bins: Number of values.
        level: The level at which the density is computed; its sigma / alpha is the width of `variational`.
        method: `none`, `uniform` (default) or `variational`.

    Returns:
        y: (B, *S), and log q(y | x0) of each example in nats: (B,).

    Raises:
        UsageError: `u` is missing (DK522), or x0 has other values (DK521).
    """
    check_values(x0, bins)
    half, size, x = 1.0 / (bins - 1), x0[0].numel(), wide(x0)
    flat = torch.full((len(x),), -size * math.log(2.0 * half), dtype=x.dtype, device=x.device)
    if method == "none":
        return x0, flat
    if u is None:
        fix = "pass uniform numbers in the shape of x0, or method none for the middle of each bin"
        raise UsageError(f"dequantisation {method} requires random numbers", code="DK522", fix=fix)
    u = wide(u)
    if method == "uniform":
        return (x + 2.0 * half * (u - 0.5)).to(x0.dtype), flat
    std = float(level.ratio)
    mass = math.erf(half / std / math.sqrt(2.0))
    e = math.sqrt(2.0) * torch.special.erfinv((2.0 * u - 1.0) * mass)
    each = -0.5 * e**2 - 0.5 * math.log(2.0 * math.pi) - math.log(std) - math.log(mass)
    return (x + std * e).to(x0.dtype), each.flatten(1).sum(1)


def bits_per_dim(
    denoise: Denoiser,
    x0: Tensor,
    s: Level,
    t: Level,
    *,
    bins: int,
    draws: Sequence[Tensor] = (),
    method: Dequantisation = "uniform",
    prior: Prior | None = None,
    probes: Sequence[Tensor] | None = None,
    solver: Fixed | Adaptive | None = None,
    cond: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Compute the bits per dimension of discrete data under the distribution of x_s / alpha_s of the flow.

    -log2(mean over the draws of p(y) / q(y | x0)) / D: its expectation is an upper bound on -log2 P(x0) / D, which
    falls with the number of draws. Source: Burda et al. 2016 (arXiv:1509.00519), eq. 8. Differs: Song et al. add 7
    bits, which is log2 128, the offset of 256 bins of width 2 / 256.

    Args:
        denoise: The trained denoiser.
        x0: Data with the values 2 k / (bins - 1) - 1: (B, *S).
        s: The cleaner level, sigma_s > 0.
        t: The noisier level, at which the prior is known.
        bins: Number of values of the data, 256 for images.
        draws: Uniform numbers in [0, 1), (B, *S) each; none for method `none`.
        method: How x0 is dequantised; default `uniform`.
        prior: As in `log_density`.
        probes: As in `log_density`.
        solver: As in `log_density`.
        cond: Conditions, each (B, ...); default none.

    Returns:
        Bits per dimension: (B,), and the number of evaluations of the model.

    Raises:
        DivergedError: DK511, the solver fails.
        UsageError: There are no draws (DK522), or x0 has other values (DK521).
    """
    size, calls, values = x0[0].numel(), 0, []
    for u in draws or (None,):
        y, log_q = dequantise(x0, u, bins, s, method)
        found = log_density(denoise, float(s.alpha) * y, s, t, prior=prior, probes=probes, solver=solver, cond=cond)
        calls += found.nfe
        values.append(found.log_density + size * math.log(float(s.alpha)) - log_q)
    log_p = torch.stack(values).logsumexp(0) - math.log(len(values))
    return -log_p / (size * math.log(2.0)), calls
