"""Going back: the latent of an example, and the space between two latents.

The probability flow is an ODE, so it runs both ways. `encode` carries an example to noise along a grid, `decode`
carries a latent back, and `slerp` walks between latents on the sphere where Gaussian noise lives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit import Denoiser, Level, sample

from .sampler import DDIM


def encode(denoise: Denoiser, levels: Sequence[Level], x: Tensor, *, rounds: int = 0) -> Tensor:
    """The latent at levels[0] of x: (B, C, *S) at levels[-1], by DDIM steps taken backwards.

    A step from s to the noisier t needs the estimate at the x_t that it leads to. It is taken at x_s first, and then
    `rounds` times at the x_t found so far: each round makes the round trip with `decode` more exact. Clean data holds
    no noise to estimate, so where levels[-1] is clean the first step asks at the next level.
    Source: Song et al. 2021 (arXiv:2010.02502), sec. 4.3; rounds: Pan et al. 2023 (arXiv:2309.04907), eq. 8.
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
    """The example of a latent: (B, C, *S) at levels[0] -> levels[-1], by deterministic DDIM."""
    return sample(denoise, DDIM(), levels, latent)


def slerp(a: Tensor, b: Tensor, weight: float | Sequence[float]) -> Tensor:
    """Spherical interpolation: (sin((1 - w) angle) a + sin(w angle) b) / sin(angle); a, b: (B, *S) -> (W B, *S).

    The angle is that between each pair. Source: Song et al. 2021 (arXiv:2010.02502), eq. 67.
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
    """x_t with alpha_t x0 + sigma_t eps, where x = alpha_s x0 + sigma_s eps."""
    ratio = t.alpha / s.alpha
    return ratio * x + (t.sigma - ratio * s.sigma) * eps


def _rescaled(x: Tensor, s: Level, t: Level) -> Tensor:
    """Clean x as the mean of x_t."""
    return t.alpha / s.alpha * x
