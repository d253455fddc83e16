"""Exact likelihood of a model by its probability flow, in nats or bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffkit import Denoiser, Level

from .flow import slope, to_batch, to_rows
from .solver import Array, Method, solve

LOG_2 = math.log(2.0)
Prior = Callable[[Tensor, Level], Tensor]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-likelihood log p_s(x): (B,) in nats, and the latent (B, *S) at the noisy end; `nfe` evaluations of the
    denoiser.
    """

    log_density: Tensor
    latent: Tensor
    nfe: int


def log_density(
    denoise: Denoiser,
    x: Tensor,
    s: Level,
    t: Level,
    *,
    prior: Prior | None = None,
    probes: Sequence[Tensor] | None = None,
    method: Method = "RK45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: Mapping[str, Tensor] | None = None,
) -> Likelihood:
    """Compute the log density of x at level s under the flow from the prior at level t.

    log p_s(x) = log p_t(x_t) + int div + D log(r_t / r_s): the integral runs along the flow in the ANGLE chart, with
    error control for each example. Source: Song et al. 2021 (arXiv:2011.13456), eq. 39, 40.

    Args:
        denoise: the trained denoiser.
        x: examples (B, *S) at level s.
        s: the cleaner level, sigma_s > 0.
        t: the noisier level, at which the prior is known.
        prior: log density (B,) of x_t at level t; default N(0, sigma_t^2 I), from which samplers start.
        probes: tensors p (B, *S) with E[p p^T] = I, such as random signs: the divergence is estimated, without bias,
            by the mean of p^T J p over them, the same p along the whole flow. Default: exact, D derivatives per
            evaluation.
        method: method of scipy's solve_ivp; default "RK45".
        rtol: relative tolerance; default 1e-5.
        atol: absolute tolerance; default 1e-5.
        cond: condition tensors of the denoiser, each (B, ...); default none.

    Returns:
        The log densities, the latents and the number of evaluations.

    Raises:
        DivergedError: DK511, the solver fails.
    """
    calls, size = 0, x[0].numel()

    def field(angle: Array, rows: Array) -> Array:
        nonlocal calls
        calls += 1
        y = to_batch(rows[:, :size], x)
        with torch.enable_grad():
            y = y.requires_grad_()
            v = slope(denoise, y, torch.as_tensor(angle, device=x.device), cond)
            div = divergence(v, y, probes)
        return np.concatenate([to_rows(v), div.double().cpu().numpy()[:, None]], 1)

    start = np.concatenate([to_rows(x) / float(s.scale), np.zeros((len(x), 1))], 1)
    end = solve(field, start, float(s.angle), float(t.angle), method=method, rtol=rtol, atol=atol)
    latent = float(t.scale) * to_batch(end[:, :size], x)
    gained = torch.from_numpy(end[:, size]).to(x.device) + size * math.log(float(t.scale) / float(s.scale))
    return Likelihood((prior or standard)(latent, t).double() + gained, latent, calls)


def bits_per_dimension(
    denoise: Denoiser,
    x0: Tensor,
    s: Level,
    t: Level,
    *,
    bins: int,
    uniform: Tensor | None,
    prior: Prior | None = None,
    probes: Sequence[Tensor] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the bits per dimension of discrete data under the distribution of x_s / alpha_s.

    -(log p(x0 + w (u - 1/2)) + D log w) / (D log 2), with the width w = 2 / (bins - 1) of a bin.
    Source: Theis et al. 2016 (arXiv:1511.01844), sec. 3.1; identities G2, G7. Differs: Song et al. add 7 bits, which
    is log2 128, the offset of 256 bins of width 2 / 256.

    Args:
        denoise: the trained denoiser.
        x0: data (B, *S) with the values 2 k / (bins - 1) - 1.
        s: the cleaner level, sigma_s > 0.
        t: the noisier level, at which the prior is known.
        bins: the number of values per channel, 256 for images.
        uniform: numbers u in [0, 1) shaped as x0: the mean over u is an upper bound on -log2 P(x0) / D of the
            discretised model. None uses the middle of each bin, an approximation that is not a bound.
        prior: as in `log_density`.
        probes: as in `log_density`.
        rtol: relative tolerance; default 1e-5.
        atol: absolute tolerance; default 1e-5.
        cond: condition tensors of the denoiser, each (B, ...); default none.

    Returns:
        Bits per dimension, (B,).

    Raises:
        DivergedError: DK511, the solver fails.
    """
    width, size = 2.0 / (bins - 1), x0[0].numel()
    alpha = float(s.alpha)
    shifted = x0 if uniform is None else x0 + width * (uniform.to(x0) - 0.5)
    found = log_density(denoise, alpha * shifted, s, t, prior=prior, probes=probes, rtol=rtol, atol=atol, cond=cond)
    return -(found.log_density / size + math.log(alpha * width)) / LOG_2


def divergence(v: Tensor, y: Tensor, probes: Sequence[Tensor] | None) -> Tensor:
    """Compute the divergence sum_d dv_d / dy_d of each example.

    Args:
        v: field (B, *S), computed from y with gradients enabled.
        y: (B, *S), requires grad.
        probes: None for the exact sum; else tensors p (B, *S), over which p^T (dv/dy) p is averaged.

    Returns:
        The divergence, (B,).
    """
    if probes is not None:
        each = [(p * torch.autograd.grad(v, y, p, retain_graph=True)[0]).flatten(1).sum(1) for p in probes]
        return torch.stack(each).mean(0)
    flat, total = v.flatten(1), torch.zeros(len(v), dtype=v.dtype, device=v.device)
    for d in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, d].sum(), y, retain_graph=True)
        total = total + row.flatten(1)[:, d]
    return total


def standard(x: Tensor, level: Level) -> Tensor:
    """Compute log N(x; 0, sigma^2 I): (B,), the density from which samplers start."""
    z = x.double().flatten(1) / float(level.sigma)
    return -(0.5 * (z**2 + math.log(2.0 * math.pi)) + math.log(float(level.sigma))).sum(1)
