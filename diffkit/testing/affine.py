"""Affine steps: with an affine denoiser every linear sampler is x -> A x + b + Q^1/2 z, and its law is exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import scalar, transition
from diffkit.level import Level

from ..oracles.gaussian import GaussianOracle


@dataclass(frozen=True)
class Normal:
    """N(mean, covariance); mean: (D,), covariance: (D, D), float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Affine:
    """x -> A x + b + noise of covariance Q; A, Q: (D, D), b: (D,), float64."""

    A: Tensor
    b: Tensor
    Q: Tensor

    def then(self, after: Affine) -> Affine:
        """This step, and `after` it another."""
        return Affine(after.A @ self.A, after.A @ self.b + after.b, after.A @ self.Q @ after.A.T + after.Q)

    def push(self, law: Normal) -> Normal:
        """The law of the result where x has law `law`: (M, C) -> (A M + b, A C A^T + Q)."""
        return Normal(self.A @ law.mean + self.b, self.A @ law.covariance @ self.A.T + self.Q)

    def error(self, other: Affine) -> float:
        """The largest difference of an entry, relative to the largest entry or 1."""
        pairs = ((self.A, other.A), (self.b, other.b), (self.Q, other.Q))
        return max(float((p - q).abs().max()) / max(1.0, float(q.abs().max())) for p, q in pairs)


def first_order(oracle: GaussianOracle, t: Level, s: Level, rho: float = 0.0, std: float | None = None) -> Affine:
    """The step alpha_s x0* + sqrt(sigma_s^2 - rho^2) eps* + (std or rho) z from t to s. Identity D5.

    With G = alpha_t S S_t^-1 and k = sqrt(sigma_s^2 - rho^2) / sigma_t: A = (alpha_s - k alpha_t) G + k I,
    b = (alpha_s - k alpha_t) (m - alpha_t G m), Q = (std or rho)^2 I.
    """
    a_t, s_t, a_s, s_s = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    S, eye = oracle.matrix, torch.eye(oracle.dimensions, dtype=torch.float64)
    G = a_t * S @ torch.linalg.inv(a_t**2 * S + s_t**2 * eye)
    k = float(scalar.sqrt(scalar.maximum(s_s**2 - rho**2, 0.0))) / s_t
    lead = a_s - k * a_t
    spread = rho if std is None else std
    return Affine(lead * G + k * eye, lead * (oracle.mean - a_t * G @ oracle.mean), spread**2 * eye)


def posterior_kernel(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
    """q(x_s | x_t) of the data itself: gain K = alpha_{t|s} S_s S_t^-1, covariance sigma_{t|s}^2 S_s S_t^-1.

    Identity B6.
    """
    eye = torch.eye(oracle.dimensions, dtype=torch.float64)
    at, after = (float(v.alpha) ** 2 * oracle.matrix + float(v.sigma) ** 2 * eye for v in (t, s))
    gain = after @ torch.linalg.inv(at)
    K = float(transition.decay(t, s)) * gain
    mean = float(s.alpha) * oracle.mean - float(t.alpha) * K @ oracle.mean
    return Affine(K, mean, float(transition.spread(t, s)) ** 2 * gain)
