"""Exact likelihood of a model by its probability flow, in nats and in bits per dimension."""

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
    """log p_s(x): (B,) in nats, and the latent (B, *S) at the noisy end; `nfe` evaluations of the denoiser."""

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
    """log of the density at x: (B, *S) that the flow from N(0, sigma_t^2 I) at level t has at level s, sigma_s > 0.

    log p_s(x) = log p_t(x_t) + int div + D log(r_t / r_s), the integral along the flow in the ANGLE chart, with an
    error control for each example alone. `prior` is the log density at t, by default that which samplers start from.
    The divergence is exact by default, D derivatives at each evaluation; or the mean of p^T J p over `probes`
    p: (B, *S), unbiased where E[p p^T] = I (random signs, best), and the same along the whole way.
    Raises DivergedError where the solver gives up. Source: Song et al. 2021 (arXiv:2011.13456), eq. 39, 40.
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
    """Bits per dimension of x0: (B, *S) that takes the values 2 k / (bins - 1) - 1, in the law of x_s / alpha_s: (B,).

    -(log p(x0 + w (u - 1/2)) + D log w) / (D log 2), w = 2 / (bins - 1) the width of a bin. With `uniform` numbers u
    in [0, 1) shaped like x0 its mean over u is at least -log2 P(x0) / D of the discretised model: a bound. With None
    x0 is taken at the middle of its bin: an approximation, and no bound.
    Source: Theis et al. 2016 (arXiv:1511.01844), sec. 3.1; identities G2, G7. Differs: Song et al. add 7 bits, which
    is log2 128, the offset of 256 bins of width 2 / 256.
    """
    width, size = 2.0 / (bins - 1), x0[0].numel()
    alpha = float(s.alpha)
    shifted = x0 if uniform is None else x0 + width * (uniform.to(x0) - 0.5)
    found = log_density(denoise, alpha * shifted, s, t, prior=prior, probes=probes, rtol=rtol, atol=atol, cond=cond)
    return -(found.log_density / size + math.log(alpha * width)) / LOG_2


def divergence(v: Tensor, y: Tensor, probes: Sequence[Tensor] | None) -> Tensor:
    """sum_d dv_d / dy_d of each example: (B,); exact, or the mean of p^T (dv/dy) p over `probes`."""
    if probes is not None:
        each = [(p * torch.autograd.grad(v, y, p, retain_graph=True)[0]).flatten(1).sum(1) for p in probes]
        return torch.stack(each).mean(0)
    flat, total = v.flatten(1), torch.zeros(len(v), dtype=v.dtype, device=v.device)
    for d in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, d].sum(), y, retain_graph=True)
        total = total + row.flatten(1)[:, d]
    return total


def standard(x: Tensor, level: Level) -> Tensor:
    """log N(x; 0, sigma^2 I): (B,), what samplers start from."""
    z = x.double().flatten(1) / float(level.sigma)
    return -(0.5 * (z**2 + math.log(2.0 * math.pi)) + math.log(float(level.sigma))).sum(1)
