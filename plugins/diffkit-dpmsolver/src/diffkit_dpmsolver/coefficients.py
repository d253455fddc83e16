"""The coefficients of exponential integrators: a polynomial through known x0, integrated exactly.

With h = half_logsnr(s) - half_logsnr(t) and the fraction tau in [0, 1] of the step, the flow is
x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^1 h exp(-h (1 - tau)) x0(tau) dtau. With noise, H replaces h
(identity F4b of docs/theory/identities.md). All functions compute on the host, in Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffkit import Level, scalar, transition

MIN_RECURSION_LENGTH = 1.0
"""For shorter steps the recursion of the moments cancels, so that `moments` sums a series instead."""


def moments(length: float, count: int) -> list[float]:
    """Compute M_k = int_0^1 H exp(-H (1 - tau)) tau^k dtau, k < count, H = `length`.

    M_0 = 1 - exp(-H), M_k = 1 - k M_{k-1} / H. M_1 is phi_2 and M_2 = 2 (1/2 - phi_2 / H) in the notation of
    DPM-Solver++. Source: Lu et al. 2022 (arXiv:2211.01095), app. A.
    """
    if length >= MIN_RECURSION_LENGTH:
        found = [-math.expm1(-length)]
        for k in range(1, count):
            found.append(1.0 - k / length * found[-1])
        return found
    found = []
    for k in range(count):
        term, total = length * math.exp(-length), 0.0
        for j in range(24):
            total += term / (j + k + 1)
            term *= length / (j + 1)
        found.append(total)
    return found


def weights(integrals: Sequence[float], nodes: Sequence[float]) -> list[float]:
    """Compute w_i such that sum_i w_i f(nodes_i) is the integral of the polynomial through f at the nodes r_i.

    `integrals` are those of tau^k. Each w_i integrates a Lagrange polynomial, prod_{j != i} (tau - r_j) / (r_i - r_j).
    """
    found = []
    for i, own in enumerate(nodes):
        polynomial = [1.0]
        for other in (*nodes[:i], *nodes[i + 1 :]):
            shifted = [0.0, *polynomial]
            polynomial = [(a - other * b) / (own - other) for a, b in zip(shifted, [*polynomial, 0.0])]
        found.append(sum(c * m for c, m in zip(polynomial, integrals)))
    return found


def output_factors(t: Level, s: Level, keep: float, levels: Sequence[Level], integrals: Sequence[float]) -> list[float]:
    """Compute the factors of the outputs in x_s = keep x_t + sum_i factors_i x0_i.

    Outputs at infinite half_logsnr lie on no polynomial and are left out; a step of infinite h uses the newest x0
    alone.

    Args:
        t: the level before the step.
        s: the level after the step.
        keep: factor of x_t.
        levels: levels of the outputs, the newest first.
        integrals: integrals of tau^k over the step, one for each output that may be used.

    Returns:
        The factors, the newest first; there may be fewer than `levels`.
    """
    h = float(transition.step(t, s))
    if not math.isfinite(h):
        return [float(s.alpha) - keep * float(t.alpha)]
    origin = float(t.half_logsnr)
    clocks = [float(level.half_logsnr) for level in levels]
    nodes = [(clock - origin) / h for clock in clocks if math.isfinite(clock)][: len(integrals)]
    return [float(s.alpha) * weight for weight in weights(integrals[: len(nodes)], nodes)]


def noisy_step(t: Level, s: Level, eta: float) -> tuple[float, float]:
    """Compute the noise rho of a step and the length H of its noise-free part.

    rho = eta sigma_s sqrt(1 - exp(-2h)); H = h + log(sigma_s / sqrt(sigma_s^2 - rho^2)) is h for eta = 0 and 2h for
    eta = 1: the step keeps the fraction exp(h - H) of eps. Identities F4b and F9 of docs/theory/identities.md.

    Args:
        t: the level before the step.
        s: the level after the step.
        eta: 0 for the flow, 1 for the SDE.

    Returns:
        (rho, H).
    """
    h = float(transition.step(t, s))
    if eta == 0.0:
        return 0.0, h
    kept = 1.0 + eta**2 * math.expm1(-2.0 * h)
    return eta * float(transition.posterior(t, s)), h - 0.5 * float(scalar.log(kept))
