"""The monotone map between two mixtures of Gaussians on the line."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 200


def transport(x: Tensor, weights: Tensor, m: Tensor, std: Tensor, to_m: Tensor, to_std: Tensor) -> Tensor:
    """y with F_to(y) = F(x), F and F_to the distribution functions of two mixtures of the same weights; x: (N,).

    Solved on the smaller of the two tails in logarithms, by Newton's method inside a bracket that halves.
    """
    z = (x[:, None] - m) / std
    upper = _log_tail(z, weights, -1.0) < _log_tail(z, weights, 1.0)
    side = torch.where(upper, -1.0, 1.0).to(x)[:, None]
    target = torch.logsumexp(weights.log() + torch.special.log_ndtr(side * z), 1)
    # y lies between what the components alone would give for the widest and the narrowest z of x.
    corners = to_m[None, :, None] + to_std[None, :, None] * z[:, None, :]
    low, high = corners.amin((1, 2)), corners.amax((1, 2))
    y = 0.5 * (low + high)
    for _ in range(ROUNDS):
        v = (y[:, None] - to_m) / to_std
        log_f = torch.logsumexp(weights.log() + torch.special.log_ndtr(side * v), 1)
        gap = (log_f - target) * side[:, 0]
        low, high = torch.where(gap <= 0, y, low), torch.where(gap >= 0, y, high)
        slope = torch.exp(torch.logsumexp(weights.log() - 0.5 * v**2 - to_std.log(), 1) - _HALF_LOG_2PI - log_f)
        step = y - gap / slope
        inside = (step > low) & (step < high)
        new = torch.where(inside, step, 0.5 * (low + high))
        if bool((new == y).all()):
            break
        y = new
    return y


_HALF_LOG_2PI = 0.9189385332046727


def _log_tail(z: Tensor, weights: Tensor, side: float) -> Tensor:
    return torch.logsumexp(weights.log() + torch.special.log_ndtr(side * z), 1)
