"""The exact denoiser of mixtures of Gaussians, which is not linear in x."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level

from .base import CLEAN, Oracle, column, working
from .gaussian import LOG_2PI

NODES = 8001
"""Points of the trapezoidal rule for expectations over x; it converges faster than any power on smooth densities."""


class MixtureOracle(Oracle):
    """The exact denoiser of x0 ~ sum_k w_k N(m_k, S_k): x0* = sum_k r_k(x) x0*_k with the responsibilities r_k.

    weights       (K,), positive; divided by their sum
    means         (K, *S), or K numbers
    covariances   K numbers, K diagonals (K, *S) or (K, D), or K matrices (K, D, D)

    With the condition `label`, label k is component k, and K is the whole mixture. `flow`, `entropy` and `uncertainty`
    require data of one dimension and raise ValueError otherwise. Identities E1 to E4 of docs/theory/identities.md.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[float] | Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[float] | Tensor,
    ) -> None:
        w = torch.as_tensor(weights, dtype=torch.float64)
        m = torch.as_tensor(means, dtype=torch.float64)
        s = torch.as_tensor(covariances, dtype=torch.float64)
        if w.ndim != 1 or not bool((w > 0).all()) or len(m) != len(w) or len(s) != len(w):
            raise ValueError("a mixture requires K positive weights, K means and K covariances")
        self._shape = tuple(m.shape[1:]) or (1,)
        m = m.reshape(len(w), -1)
        d = m.shape[1]
        matrices = s.ndim == 3 and s.shape[1:] == (d, d) and s.shape[1:] != self._shape
        axes = None
        if matrices:
            s, axes = torch.linalg.eigh(s)
            s = torch.where(s.abs() <= 1e-15 * s.abs().amax(1, keepdim=True), torch.zeros_like(s), s)
        elif s.reshape(len(w), -1).shape[1] not in (1, d):
            raise ValueError(f"covariances of shape {tuple(s.shape)} do not fit {d} dimensions")
        s = s.reshape(len(w), -1).expand(len(w), d)
        if bool((s < 0).any()):
            raise ValueError("a covariance has a negative eigenvalue")
        self._weights, self._means, self._variances, self._axes = w / w.sum(), m, s, axes

    @property
    def dimensions(self) -> int:
        """The number D of dimensions of an example."""
        return self._means.shape[1]

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        _, m, s, axes = self._at(x)
        alpha, sigma = self._columns(level, x)
        ratio = self._ratio(x, level)
        r = self.responsibilities(x, level, cond.get("label"))[..., None]
        x0 = (r * (m + self._back(alpha * s * ratio, axes))).sum(1)
        eps = (r * self._back(sigma * ratio, axes)).sum(1)
        return Estimate(level, x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def responsibilities(self, x: Tensor, level: Level, label: Tensor | None = None) -> Tensor:
        """Compute the probability of each component given x, and given its label.

        Args:
            x: Noisy data at `level`: (B, *S).
            level: The level of x.
            label: Components: (B,) long; other values (and None) mean the whole mixture.

        Returns:
            Probabilities: (B, K).
        """
        log = self._log_joint(x, level)
        if label is not None:
            k = torch.arange(len(self._weights), device=x.device)
            free = (label < 0) | (label >= len(k))
            log = log.masked_fill(~(free[:, None] | (label[:, None] == k)), -torch.inf)
        return torch.softmax(log, 1)

    def covariance(self, x: Tensor, level: Level) -> Tensor:
        """Compute sum_k r_k (V_k + mu_k mu_k^T) - x0* x0*^T. Identity E2 of docs/theory/identities.md."""
        _, m, s, axes = self._at(x)
        alpha, sigma = self._columns(level, x)
        v = alpha**2 * s + sigma**2
        each = torch.diag_embed(torch.where(v > 0, s * sigma**2 / torch.where(v > 0, v, 1.0), 0.0))
        if axes is not None:
            each = axes @ each @ axes.mT
        r = self.responsibilities(x, level)[..., None]
        mu = m + self._back(alpha * s * self._ratio(x, level), axes)
        away = mu - (r * mu).sum(1, keepdim=True)
        return (r[..., None] * (each + away[..., :, None] * away[..., None, :])).sum(1)

    def log_density(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        return torch.logsumexp(self._log_joint(x, level), 1)

    def entropy(self, level: Level = CLEAN) -> float:
        x, width = self._nodes(level)
        log = self.log_density(x, level)
        return -float((torch.exp(log) * log).nan_to_num(0.0).sum() * width)

    def uncertainty(self, level: Level) -> float:
        sigma = float(level.sigma)
        if sigma == 0.0:
            return self.dimensions / float(level.alpha) ** 2
        x, width = self._nodes(level)
        each = self.covariance(x, level)[:, 0, 0]
        return float((torch.exp(self.log_density(x, level)) * each).sum() * width) / sigma**2

    def flow(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """Compute F_s^-1(F_t(x)), since flows in one dimension are monotone. Identity E4 of
        docs/theory/identities.md.
        """
        self._one_dimension()
        wide = x.double().reshape(-1)
        out = transport(wide, self._weights.to(wide), *self._line(t, wide), *self._line(s, wide))
        return out.reshape(x.shape).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        k = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.dimensions, generator=generator, dtype=torch.float64) * self._variances[k].sqrt()
        if self._axes is not None:
            z = torch.einsum("bij,bj->bi", self._axes[k], z)
        return (self._means[k] + z).reshape(count, *self._shape)

    def _log_joint(self, x: Tensor, level: Level) -> Tensor:
        """Compute log w_k p_k(x): (B, K)."""
        w, m, s, axes = self._at(x)
        alpha, sigma = self._columns(level, x)
        v = (alpha**2 * s + sigma**2).clamp(min=1e-30)
        y = self._turn(x.to(working(x)).flatten(1)[:, None, :] - alpha * m, axes)
        return torch.log(w) - 0.5 * (y**2 / v + torch.log(v) + LOG_2PI).sum(-1)

    def _ratio(self, x: Tensor, level: Level) -> Tensor:
        """Compute (alpha^2 S_k + sigma^2)^-1 (x - alpha m_k) along the axes of S_k: (B, K, D)."""
        _, m, s, axes = self._at(x)
        alpha, sigma = self._columns(level, x)
        v = alpha**2 * s + sigma**2
        y = self._turn(x.to(working(x)).flatten(1)[:, None, :] - alpha * m, axes)
        return torch.where(v > 0, y / torch.where(v > 0, v, 1.0), 0.0)

    @staticmethod
    def _columns(level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, prepared to multiply (B, K, D)."""
        pair = (torch.as_tensor(column(c, x), device=x.device, dtype=working(x)) for c in (level.alpha, level.sigma))
        alpha, sigma = (c[:, None, :] if c.ndim else c.reshape(1, 1, 1) for c in pair)
        return alpha, sigma

    def _line(self, level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = float(level.alpha), float(level.sigma)
        variance = alpha**2 * self._variances[:, 0] + sigma**2
        return (alpha * self._means[:, 0]).to(x), variance.sqrt().to(x)

    def _nodes(self, level: Level) -> tuple[Tensor, float]:
        self._one_dimension()
        m, std = self._line(level, self._means)
        if float(std.min()) == 0.0:
            raise ValueError("a mixture with a point mass has no density at sigma = 0")
        low, high = float((m - 14.0 * std).min()), float((m + 14.0 * std).max())
        count = max(NODES, math.ceil(12.0 * (high - low) / float(std.min())))
        return torch.linspace(low, high, count, dtype=torch.float64)[:, None], (high - low) / (count - 1)

    def _one_dimension(self) -> None:
        if self.dimensions != 1:
            raise ValueError(f"the closed form exists for data of one dimension only, got {self.dimensions} dimensions")

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if x[0].numel() != self.dimensions:
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not have the {self.dimensions} dimensions of this mixture"
            )
        at = (x.device, working(x))
        axes = None if self._axes is None else self._axes.to(*at)
        return self._weights.to(*at), self._means.to(*at), self._variances.to(*at), axes

    @staticmethod
    def _turn(y: Tensor, axes: Tensor | None) -> Tensor:
        return y if axes is None else torch.einsum("bki,kij->bkj", y, axes)

    @staticmethod
    def _back(y: Tensor, axes: Tensor | None) -> Tensor:
        return y if axes is None else torch.einsum("bkj,kij->bki", y, axes)


ROUNDS = 200


def transport(x: Tensor, weights: Tensor, m: Tensor, std: Tensor, to_m: Tensor, to_std: Tensor) -> Tensor:
    """Find y with F_to(y) = F(x), F and F_to the distribution functions of two mixtures with the same weights.

    Solved for the logarithm of the smaller tail, by Newton's method inside a bracket that is bisected.

    Args:
        x: Points: (N,).
        weights: (K,), with sum 1.
        m: Means of the first mixture: (K,).
        std: Standard deviations of the first mixture: (K,).
        to_m: Means of the second mixture: (K,).
        to_std: Standard deviations of the second mixture: (K,).

    Returns:
        y: (N,).
    """
    z = (x[:, None] - m) / std
    upper = _log_tail(z, weights, -1.0) < _log_tail(z, weights, 1.0)
    side = torch.where(upper, -1.0, 1.0).to(x)[:, None]
    target = torch.logsumexp(weights.log() + torch.special.log_ndtr(side * z), 1)
    # y lies between the smallest and the largest result of a single pair of components.
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
