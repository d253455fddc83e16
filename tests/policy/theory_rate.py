"""Checks of the equations of docs/theory/rate-distortion.md."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize

from diffkit.likelihood import Chain, Density, variational_bound
from diffkit.testing import GaussianOracle

from .equations import MIXTURE, SHORT, Array, Sides, column, equation, gaussian, level_of, normal, tensor
from .theory_bound import CHAIN, STEPS, X0, bound_of_the_chain, divergence, half, layer, paths

SNRS = (0.02, 0.5, 3.0, 70.0)
SPECTRA = (np.array([1.5, 0.4, 0.02]), np.full(5, 0.3), np.arange(1.0, 65.0) ** -2.0)


def rate(s: Array, snr: float) -> float:
    """(4.5)."""
    return float(0.5 * np.log1p(s * snr).sum())


def distortion(s: Array, snr: float) -> float:
    """(4.6)."""
    return float((s / (1.0 + s * snr)).mean())


def water(s: Array, delta: float) -> float:
    """The theta of (4.7): D delta is at most k theta plus the D - k least variances, and equal to it for one k."""
    s = np.sort(s)[::-1]
    return float(((len(s) * delta - s.sum() + s.cumsum()) / np.arange(1, len(s) + 1)).max())


def optimum(s: Array, delta: float) -> float:
    """The right side of (4.7)."""
    return float(0.5 * np.log(s / np.minimum(water(s, delta), s)).sum())


@equation("4.1")
def partial_sums() -> Sides:
    r"""R_t = \mathrm{KL} \left( q(x_T \mid x_0) \parallel p(x_T) \right) + \sum_{s=t+1}^T E_q \mathrm{KL} \left(
    q(x_{s-1} \mid x_s, x_0) \parallel p_\theta(x_{s-1} \mid x_s) \right)"""
    end = SHORT.level(float(STEPS))
    total = float(divergence(end.alpha * X0, end.sigma, 0.0, 1.0))
    found = bound_of_the_chain().rate_distortion()[0] * math.log(2.0)
    yield found[0], total
    for s in range(STEPS, 1, -1):
        gain, variance = layer(s)
        x = torch.from_numpy(paths()[:, s])
        mean, std = CHAIN.posterior(s, x, torch.full_like(x, X0))
        total += float(divergence(mean, std, gain * x, math.sqrt(variance)).mean())
        yield found[STEPS - s + 1], total
    yield found[-1], bound_of_the_chain().total.mean()


@equation("4.2")
def squared_error() -> Sides:
    r"""\Delta_t = \frac{1}{D} E \lVert x_0 - \hat x_0(x_t) \rVert^2"""
    found = bound_of_the_chain().rate_distortion()[1]
    for t in range(STEPS, 0, -1):
        x0 = half(tensor(paths()[:, t]), SHORT.level(float(t))).x0
        yield found[STEPS - t], np.mean((X0 - column(x0)) ** 2)
    yield found[-1], 0.0


@equation("4.3")
def information() -> Sides:
    r"""R_t = I(x_0; x_t, x_{t+1}, ..., x_T) = I(x_0; x_t)"""
    keep = np.sqrt(1.0 - SHORT.betas.numpy())
    joint = np.eye(STEPS + 1)  # data of variance 1, for which x_T is standard normal: Cov(x_i, x_j) is a product
    for i in range(STEPS + 1):
        for j in range(i):
            joint[i, j] = joint[j, i] = keep[j:i].prod()
    x0, signs = tensor([1.0, 1.0, -1.0, -1.0]), tensor([1.0, -1.0, 1.0, -1.0])
    errors = [gaussian(1.0).mmse(SHORT.level(float(t))) for t in range(1, STEPS + 1)]
    exact = Chain.full(SHORT).with_errors(errors)
    found = variational_bound(gaussian(1.0), exact, x0, lambda _: signs, Density()).rate_distortion()[0]
    for t in range(1, STEPS + 1):
        later, one = [np.r_[0, t : STEPS + 1], np.r_[0, t]]
        left, right = (0.5 * np.linalg.slogdet(joint[np.ix_(at[1:], at[1:])])[1] for at in (later, one))
        left, right = (a - 0.5 * np.linalg.slogdet(joint[np.ix_(b, b)])[1] for a, b in ((left, later), (right, one)))
        yield left, right
        yield found[STEPS - t] * math.log(2.0), right


@equation("4.4", 1e-5)
def slope_of_information() -> Sides:
    r"""\frac{d}{d \mathrm{snr}} I(x_0; x_t) = \frac{1}{2} E \lVert x_0 - E[x_0 \mid x_t] \rVert^2"""
    for oracle in (MIXTURE, gaussian(0.3)):
        for snr in SNRS:
            levels = [level_of(one / (1.0 + one)) for one in (0.999 * snr, 1.001 * snr)]
            low, high = (oracle.entropy(level) - math.log(level.sigma) for level in levels)
            yield (high - low) / (0.002 * snr), 0.5 * oracle.mmse(level_of(snr / (1.0 + snr)))


@equation("4.5")
def rate_of_normal_data() -> Sides:
    r"""R_t = \sum_{i=1}^D \frac{1}{2} \log(1 + s_i \mathrm{snr}_t)"""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    covariance = turn @ np.diag(SPECTRA[0]) @ turn.T
    for snr in SNRS:
        level = level_of(snr / (1.0 + snr))
        noisy = level.alpha**2 * covariance + level.sigma**2 * np.eye(3)
        yield 0.5 * np.linalg.slogdet(noisy)[1] - 3.0 * math.log(level.sigma), rate(SPECTRA[0], snr)


@equation("4.6")
def distortion_of_normal_data() -> Sides:
    r"""\Delta_t = \frac{1}{D} \sum_{i=1}^D \frac{s_i}{1 + s_i \mathrm{snr}_t}"""
    for s in SPECTRA:
        oracle = GaussianOracle(torch.zeros(len(s), dtype=torch.float64), torch.from_numpy(s))
        for snr in SNRS:
            level = level_of(snr / (1.0 + snr))
            yield oracle.mmse(level) / len(s), distortion(s, snr)
            gain = level.alpha * s / (level.alpha**2 * s + level.sigma**2)
            yield (s - gain * level.alpha * s).mean(), distortion(s, snr)


def least_information(variance: float, slope: float) -> tuple[float, float]:
    """Distortion and rate of normal data at a slope of the optimal curve, by the iteration of Blahut and Arimoto."""
    x = np.linspace(-5.0, 5.0, 161) * math.sqrt(variance)
    p = normal(x, 0.0, variance)
    p, q = p / p.sum(), np.full(len(x), 1.0 / len(x))
    error = (x[:, None] - x) ** 2
    factor = np.exp(-slope * error)
    for _ in range(400):
        channel = factor * q / (factor @ q)[:, None]
        q = p @ channel
    return float(p @ (channel * error).sum(1)), float(p @ (channel * np.log(channel / q)).sum(1))


@equation("4.7", 1e-3)
def water_filling() -> Sides:
    r"""R(\Delta) = \min_{E \lVert x_0 - y \rVert^2 \le D \Delta} I(x_0; y) = \sum_{i=1}^D \frac{1}{2} \log
    \frac{s_i}{\min(\theta, s_i)}, \qquad \frac{1}{D} \sum_{i=1}^D \min(\theta, s_i) = \Delta"""
    delta, least = least_information(0.8, 3.0)
    yield least, optimum(np.array([0.8]), delta)
    # The minimum over the channels of independent axes is one over the distortions of the axes.
    s = SPECTRA[0]
    for delta in (0.01, 0.1, 0.4):
        fits = {"type": "eq", "fun": lambda d, delta=delta: d.mean() - delta}
        limits = [(1e-9, one) for one in s]
        found = minimize(lambda d: 0.5 * np.log(s / d).sum(), 0.5 * s, bounds=limits, constraints=fits)
        assert found.success
        yield found.fun, optimum(s, delta)
        yield np.minimum(water(s, delta), s).mean(), delta


@equation("4.8")
def equal_variances() -> Sides:
    r"""R_t = \frac{D}{2} \log \frac{s}{\Delta_t} = R(\Delta_t)"""
    s = SPECTRA[1]
    for snr in SNRS:
        delta = distortion(s, snr)
        yield rate(s, snr), len(s) / 2.0 * math.log(s[0] / delta)
        yield rate(s, snr), optimum(s, delta)


@equation("4.9")
def excess() -> Sides:
    r"""0 \le R_t - R(\Delta_t) \le \sum_{i=1}^D \frac{1}{2} \log \left( 1 + \frac{\min(s_i, n)}{\max(s_i, n)} \right)
    \le \frac{D}{2} \log 2"""
    for s in SPECTRA:
        for snr in np.geomspace(1e-4, 1e6, 60):
            n = 1.0 / snr
            steps = [0.0, rate(s, snr) - optimum(s, distortion(s, snr))]
            steps += [0.5 * np.log1p(np.minimum(s, n) / np.maximum(s, n)).sum(), len(s) / 2.0 * math.log(2.0)]
            yield np.minimum(np.diff(steps), 0.0), np.zeros(3)


@equation("4.10")
def largest_excess() -> Sides:
    r"""\max_t \frac{R_t - R(\Delta_t)}{D \log 2} = 0.0688"""
    s = SPECTRA[2]
    each = [(rate(s, snr) - optimum(s, distortion(s, snr)), rate(s, snr)) for snr in np.geomspace(1e-4, 1e6, 1001)]
    largest, at = (one / (len(s) * math.log(2.0)) for one in max(each))
    yield round(largest, 4), 0.0688
    yield round(at, 1), 0.7
