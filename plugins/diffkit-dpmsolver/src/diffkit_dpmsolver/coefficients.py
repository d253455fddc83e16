"""The coefficients of exponential integrators: a polynomial through known x0, integrated exactly.

With h = half_logsnr(s) - half_logsnr(t) and tau in [0, 1] the part of the step that is done, the flow is
x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^1 h exp(-h (1 - tau)) x0(tau) dtau. With noise, H takes the place of h
(identity F4b). All is computed on the host, in Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffkit import Level, scalar, transition

SERIES = 1.0
"""Below this length of a step the recursion of the moments cancels, and their series is summed instead."""


def moments(length: float, count: int) -> list[float]:
    """M_k = int_0^1 H exp(-H (1 - tau)) tau^k dtau, k < count, H = `length`: 1 - exp(-H), then M_k = 1 - k M_{k-1} / H.

    M_1 is phi_2 and M_2 = 2 (1/2 - phi_2 / H) in the notation of DPM-Solver++. Source: Lu et al. 2022
    (arXiv:2211.01095), app. A.
    """
    if length >= SERIES:
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
    """The w_i for which sum_i w_i f(nodes_i) is the integral of the polynomial through f there.

    `integrals` are those of tau^k. Each w_i is that of a Lagrange polynomial, prod_{j != i} (tau - r_j) / (r_i - r_j).
    """
    found = []
    for i, own in enumerate(nodes):
        polynomial = [1.0]
        for other in (*nodes[:i], *nodes[i + 1 :]):
            shifted = [0.0, *polynomial]
            polynomial = [(a - other * b) / (own - other) for a, b in zip(shifted, [*polynomial, 0.0])]
        found.append(sum(c * m for c, m in zip(polynomial, integrals)))
    return found


def shares(t: Level, s: Level, keep: float, levels: Sequence[Level], integrals: Sequence[float]) -> list[float]:
    """The factors of the outputs at `levels`, the newest first, in x_s = keep x_t + sum_i shares_i x0_i.

    Outputs at infinite half_logsnr lie on no polynomial, and are left out; in a step of infinite h the newest x0 is
    taken as it is. There may be fewer than `levels`.
    """
    h = float(transition.step(t, s))
    if not math.isfinite(h):
        return [float(s.alpha) - keep * float(t.alpha)]
    origin = float(t.half_logsnr)
    clocks = [float(level.half_logsnr) for level in levels]
    nodes = [(clock - origin) / h for clock in clocks if math.isfinite(clock)][: len(integrals)]
    return [float(s.alpha) * weight for weight in weights(integrals[: len(nodes)], nodes)]


def stretched(t: Level, s: Level, eta: float) -> tuple[float, float]:
    """(rho, H): the noise of the step, rho = eta sigma_s sqrt(1 - exp(-2h)), and the length of its noise-free part.

    H = h + log(sigma_s / sqrt(sigma_s^2 - rho^2)) is h where eta = 0 and 2h where eta = 1: the step keeps the share
    exp(h - H) of eps. Identities F4b and F9.
    """
    h = float(transition.step(t, s))
    if eta == 0.0:
        return 0.0, h
    kept = 1.0 + eta**2 * math.expm1(-2.0 * h)
    return eta * float(transition.posterior(t, s)), h - 0.5 * float(scalar.log(kept))
