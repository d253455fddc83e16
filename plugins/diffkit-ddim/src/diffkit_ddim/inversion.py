"""DDIM inversion: encode an example to its latent, decode a latent, and interpolate between latents.

The probability flow is an ODE, so it runs in both directions. `encode` carries an example to noise along a grid,
`decode` carries a latent back, and `slerp` interpolates on the sphere near which Gaussian noise lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit import Denoiser, Level, sample

from .sampler import DDIM


def encode(denoise: Denoiser, levels: Sequence[Level], x: Tensor, *, rounds: int = 0) -> Tensor:
    """Compute the latent of examples by DDIM steps in the reverse direction.

    A step from s to the noisier t needs the estimate at the x_t that it leads to. The estimate is computed at x_s
    first, and then `rounds` times at the x_t found so far: each round makes the round trip with `decode` more exact.
    Clean data holds no noise to estimate, so if levels[-1] is clean the first step evaluates at the next level.
    Source: Song et al. 2021 (arXiv:2010.02502), sec. 4.3; rounds: Pan et al. 2023 (arXiv:2309.04907), eq. 8.

    Args:
        denoise: the trained denoiser.
        levels: the grid, from noise to data as in sampling.
        x: examples (B, C, *S) at levels[-1].
        rounds: fixed-point iterations per step, one evaluation each; default 0.

    Returns:
        The latents at levels[0], shaped as x.
    """
    with torch.no_grad():
        for t, s in zip(reversed(levels[:-1]), reversed(levels[1:])):
            known = denoise(_rescaled(x, s, t), t) if s.is_clean else denoise(x, s)
            ahead = _backwards(x, s, t, known.eps)
            for _ in range(rounds):
                ahead = _backwards(x, s, t, denoise(ahead, t).eps)
            x = ahead
    return x


def decode(denoise: Denoiser, levels: Sequence[Level], latent: Tensor) -> Tensor:
    """Compute the examples of latents by deterministic DDIM.

    Args:
        denoise: the trained denoiser.
        levels: the grid, from noise to data.
        latent: (B, C, *S) at levels[0].

    Returns:
        The examples at levels[-1], shaped as `latent`.
    """
    return sample(denoise, DDIM(), levels, latent)


def slerp(a: Tensor, b: Tensor, weight: float | Sequence[float]) -> Tensor:
    """Interpolate on the sphere: (sin((1 - w) angle) a + sin(w angle) b) / sin(angle), with the angle of each pair.

    Source: Song et al. 2021 (arXiv:2010.02502), eq. 67.

    Args:
        a: latents (B, *S).
        b: latents (B, *S).
        weight: w, or W values of w; 0 returns a, 1 returns b.

    Returns:
        (W B, *S), all pairs for the first w, then for the next.
    """
    u, v = a.flatten(1), b.flatten(1)
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    angle = torch.acos(cosine.clamp(-1.0, 1.0)).reshape(-1, *(1,) * (a.ndim - 1))
    rows = []
    for w in [weight] if isinstance(weight, float | int) else weight:
        near = angle.sin() < 1e-6
        mixed = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin().clamp(min=1e-6)
        rows.append(torch.where(near, torch.lerp(a, b, w), mixed))
    return torch.cat(rows)


def _backwards(x: Tensor, s: Level, t: Level, eps: Tensor) -> Tensor:
    """Step from s to the noisier t: x_t = alpha_t x0 + sigma_t eps for x = alpha_s x0 + sigma_s eps."""
    ratio = t.alpha / s.alpha
    return ratio * x + (t.sigma - ratio * s.sigma) * eps


def _rescaled(x: Tensor, s: Level, t: Level) -> Tensor:
    """Return the mean of x_t for clean x."""
    return t.alpha / s.alpha * x
