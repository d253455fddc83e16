"""Checks of the equations of docs/theory/continuous-time.md."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from diffkit import build, sample, transition
from diffkit.likelihood import Adaptive, Density, Points, continuous_bound, log_density
from diffkit.schedule import sde
from diffkit.testing import GaussianOracle

from .equations import (
    GRID,
    LINEAR,
    MIXTURE,
    NODES,
    Sides,
    alpha_bar,
    beta,
    equation,
    gaussian,
    integral,
    level_of,
    normal,
    tensor,
)

VP = build("schedule", "vp")
FIRST, LAST = 0.1, 20.0
"""The beta(t) of `vp` is a line between these."""
TIMES = (0.05, 0.3, 0.8)
EXACT = Adaptive(rtol=1e-8, atol=1e-8)


def rate(t: float) -> float:
    return FIRST + (LAST - FIRST) * t


@equation("3.1", 1e-6)
def forward_equation() -> Sides:
    r"""dx = -\frac{1}{2} \beta(t) x dt + \sqrt{\beta(t)} dw"""
    f, g2 = sde(VP, torch.tensor(TIMES))
    for t, drift, noise in zip(TIMES, f.tolist(), g2.tolist(), strict=True):
        s, u = VP.level(t), VP.level(t + 1e-8)  # one step of a chain of 10^8 steps
        yield drift, -0.5 * rate(t)
        yield noise, rate(t)
        yield np.expm1(0.5 * np.log1p(-rate(t) * 1e-8)) * 1e8, drift
        yield float(transition.spread(u, s)) ** 2 * 1e8, noise


@equation("3.2")
def signal() -> Sides:
    r"""\bar\alpha(t) = \exp \left( -\int_0^t \beta(u) du \right)"""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    for t in TIMES:
        _, g2 = sde(VP, torch.from_numpy(0.5 * t * (nodes + 1.0)))
        yield VP.level(t).alpha ** 2, math.exp(-0.5 * t * float(weights @ g2.numpy()))


def at(t: float) -> tuple[Tensor, Tensor]:
    """Points x: (B, 1) and times (B,), both with gradients."""
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None].requires_grad_()
    return x, torch.full((9,), t, dtype=torch.float64, requires_grad=True)


def slope(value: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), of, create_graph=True)
    return found


@equation("3.3")
def fokker_planck() -> Sides:
    r"""\frac{\partial p_t}{\partial t} = \frac{1}{2} \beta \nabla \cdot (x p_t) + \frac{1}{2} \beta \nabla^2 p_t"""
    for time in TIMES:
        x, t = at(time)
        p = MIXTURE.log_density(x, VP.level(t)).exp()
        right = 0.5 * rate(time) * (slope(x[:, 0] * p, x) + slope(slope(p, x), x))
        yield slope(p, t), right[:, 0]


@equation("3.4", 1e-6)
def probability_flow() -> Sides:
    r"""\frac{dx}{dt} = -\frac{1}{2} \beta(t) \left( x + \nabla \log p_t(x) \right)"""
    for time in TIMES:
        x, t = at(time)
        log_p = MIXTURE.log_density(x, VP.level(t))
        v = -0.5 * rate(time) * (x + slope(log_p, x))
        yield slope(log_p.exp(), t), -slope(v[:, 0] * log_p.exp(), x)[:, 0]
        start, h = x.detach(), 1e-4
        ahead, back = (MIXTURE.flow(start, VP.level(time), VP.level(time + d)) for d in (h, -h))
        yield (ahead - back) / (2.0 * h), v


@equation("3.5")
def reverse_family() -> Sides:
    r"""dx = \left( -\frac{1}{2} \beta x - \frac{1}{2} (1 + \eta^2) \beta \nabla \log p_t(x) \right) dt
    + \eta \sqrt{\beta} d\bar w"""
    for time, eta in itertools.product(TIMES, (0.0, 0.5, 1.0, 2.0)):
        x, t = at(time)
        log_p = MIXTURE.log_density(x, VP.level(t))
        drift = -0.5 * rate(time) * (x + (1.0 + eta**2) * slope(log_p, x))
        p = log_p.exp()
        right = -slope(drift[:, 0] * p, x) - 0.5 * eta**2 * rate(time) * slope(slope(p, x), x)
        yield slope(p, t), right[:, 0]


@equation("3.6", 1e-6)
def flow_of_normal_data() -> Sides:
    r"""x_s = \sqrt{\bar\alpha(s)} m + \sqrt{V_s / V_t} \left( x_t - \sqrt{\bar\alpha(t)} m \right)"""
    m, v, s, t = 0.4, 0.3, VP.level(0.05), VP.level(0.7)
    x = tensor([-1.0, 0.2, 2.0])
    latent = log_density(GaussianOracle(m, v), x, s, t, solver=EXACT).latent
    ends = [level.alpha**2 * v + level.sigma**2 for level in (s, t)]
    yield x, s.alpha * m + math.sqrt(ends[0] / ends[1]) * (latent - t.alpha * m)


@equation("3.7", 1e-6)
def change_of_density() -> Sides:
    r"""\log p_s(x_s) = \log p_t(x_t) + \int_s^t \nabla \cdot v(x_u, u) du"""
    s, t, x = VP.level(0.05), VP.level(0.7), tensor([-1.0, 0.2, 2.0])
    for oracle in (MIXTURE, gaussian(0.3)):
        found = log_density(oracle, x, s, t, prior=oracle.log_density, solver=EXACT)
        yield oracle.log_density(x, s), found.log_density
    nodes, weights = np.polynomial.legendre.leggauss(40)
    times = 0.05 + 0.325 * (nodes + 1.0)
    sizes = [VP.level(u).alpha ** 2 * 0.3 + VP.level(u).sigma ** 2 for u in times]
    change = 0.325 * weights @ [-0.5 * rate(u) * (1.0 - 1.0 / size) for u, size in zip(times, sizes, strict=True)]
    oracle, latent = gaussian(0.3), gaussian(0.3).flow(x, s, t)
    yield oracle.log_density(x, s), oracle.log_density(latent, t) + change


PAIRS = ((1000.0, 800.0), (600.0, 250.0), (50.0, 1.0))
X0 = 0.7


@equation("3.8")
def ddim_family() -> Sides:
    r"""x_s = \sqrt{\bar\alpha_s} x_0 + \sqrt{1 - \bar\alpha_s - \rho^2}
    \frac{x_t - \sqrt{\bar\alpha_t} x_0}{\sqrt{1 - \bar\alpha_t}} + \rho z"""
    oracle, x, z = gaussian(0.3), tensor([-1.0, 0.2, 2.0]), tensor([0.4, -1.1, 0.3])
    for t, s in PAIRS:
        a, b = alpha_bar(int(t)), alpha_bar(int(s))
        x0 = oracle(x, LINEAR.level(t)).x0
        for share in (0.0, 0.4, 0.95):
            rho = share * math.sqrt(1.0 - b)
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1.0 - a)
            right = math.sqrt(b) * x0 + math.sqrt(1.0 - b - rho**2) * eps + rho * z
            yield oracle(x, LINEAR.level(t)).step_to(LINEAR.level(s), rho, z), right


@equation("3.9", 1e-9)
def marginals_are_kept() -> Sides:
    r"""\int q_\rho(x_s \mid x_t, x_0) q(x_t \mid x_0) dx_t = q(x_s \mid x_0)"""
    for t, s in PAIRS[:2]:
        a, b = alpha_bar(int(t)), alpha_bar(int(s))
        forward = normal(GRID, math.sqrt(a) * X0, 1.0 - a)
        for share, x in itertools.product((0.3, 0.9), (-1.0, 0.4)):
            rho = share * math.sqrt(1.0 - b)
            mean = math.sqrt(b) * X0 + math.sqrt(1.0 - b - rho**2) * (GRID - math.sqrt(a) * X0) / math.sqrt(1.0 - a)
            yield integral(normal(x, mean, rho**2) * forward), normal(x, math.sqrt(b) * X0, 1.0 - b)


@equation("3.10")
def ddpm_is_a_member() -> Sides:
    r"""\sqrt{1 - \bar\alpha_{t-1} - \tilde\beta_t}
    = \frac{\sqrt{1 - \beta_t} (1 - \bar\alpha_{t-1})}{\sqrt{1 - \bar\alpha_t}}"""
    x, z = tensor(NODES), tensor(NODES[::-1].copy())
    for t in (2, 3, 100, 700, 1000):
        at_t, at_s = LINEAR.level(float(t)), LINEAR.level(t - 1.0)
        left = math.sqrt(at_s.sigma**2 - float(transition.posterior(at_t, at_s)) ** 2)
        yield left, math.sqrt(1.0 - beta(t)) * (1.0 - alpha_bar(t - 1)) / math.sqrt(1.0 - alpha_bar(t))
        pair = (build("sampler", "ancestral"), build("sampler", "ddim", eta=1.0))
        ddpm, ddim = (sample(gaussian(0.3), one, [at_t, at_s], x, noise=lambda _: z) for one in pair)
        yield ddpm, ddim


@equation("3.11")
def ddim_is_euler() -> Sides:
    r"""\frac{x_s}{\sqrt{\bar\alpha_s}} = \frac{x_t}{\sqrt{\bar\alpha_t}}
    + (\varrho_s - \varrho_t) \epsilon_\theta(x_t, t)"""
    x = tensor([-1.0, 0.2, 2.0])
    for t, s in PAIRS:
        a, b = alpha_bar(int(t)), alpha_bar(int(s))
        at_t, at_s = LINEAR.level(t), LINEAR.level(s)
        found = sample(MIXTURE, build("sampler", "ddim"), [at_t, at_s], x)
        change = math.sqrt(1.0 / b - 1.0) - math.sqrt(1.0 / a - 1.0)
        yield found / math.sqrt(b), x / math.sqrt(a) + change * MIXTURE(x, at_t).eps


@equation("3.12", 1e-6)
def flow_in_other_coordinates() -> Sides:
    r"""\frac{d}{d \varrho} \frac{x}{\sqrt{\bar\alpha}} = -\sqrt{1 - \bar\alpha} \nabla \log p_t(x)
    = E[\epsilon \mid x]"""
    for time in TIMES:
        x, t = at(time)
        level = VP.level(t)
        score = slope(MIXTURE.log_density(x, level), x)
        ratio = slope(level.sigma / level.alpha, t)
        # The product rule, with the velocity (3.4) and d alpha / dt by automatic differentiation.
        v = -0.5 * rate(time) * (x + score)
        moved = v / level.alpha[:, None] - x * (slope(level.alpha, t) / level.alpha**2)[:, None]
        yield moved / ratio[:, None], -level.sigma[:, None] * score
        yield -level.sigma[:, None] * score, MIXTURE(x, level).eps


CLEAN, NOISY = level_of(0.99), level_of(0.01)
LIMITS = (0.01 / 0.99, 0.99 / 0.01)


@equation("3.13", 1e-6)
def continuous_time_bound() -> Sides:
    r"""\sum_{t=2}^T L_{t-1} \to \frac{1}{2} \int_{\mathrm{snr}_T}^{\mathrm{snr}_1} E \lVert x_0 - \hat x_0 \rVert^2
    d \mathrm{snr} = \int_{\lambda_T}^{\lambda_1} E \lVert \epsilon - \hat\epsilon \rVert^2 d \lambda,
    \qquad \lambda = \frac{1}{2} \log \mathrm{snr}"""
    low, high = (float(level.half_logsnr) for level in (NOISY, CLEAN))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    lam = low + 0.5 * (high - low) * (nodes + 1.0)
    error = np.array([MIXTURE.mmse(level_of(1.0 / (1.0 + math.exp(-2.0 * one)))) for one in lam])
    of_eps = 0.5 * (high - low) * float(weights @ (error * np.exp(2.0 * lam)))
    # The integral over snr is the difference of the information I(x0; x_t) = h(x_t) - h(sigma eps).
    h_clean, h_noisy = (MIXTURE.entropy(level) - math.log(level.sigma) for level in (CLEAN, NOISY))
    yield h_clean - h_noisy, of_eps
    # The layers of three chains between these ends, for normal data; extrapolation removes the errors of first order.
    exact, sums = 0.5 * math.log((1.0 + 0.3 * LIMITS[1]) / (1.0 + 0.3 * LIMITS[0])), []
    for count in (400, 800, 1600):
        ratio = np.exp(2.0 * np.linspace(low, high, count + 1))
        error = np.array([gaussian(0.3).mmse(level_of(one / (1.0 + one))) for one in ratio[:-1]])
        sums.append(0.5 * (np.diff(ratio) * error).sum())
    once = [2.0 * fine - coarse for coarse, fine in itertools.pairwise(sums)]
    yield (4.0 * once[1] - once[0]) / 3.0, exact
    signs = tensor([1.0, -1.0, 1.0, -1.0])
    x0 = math.sqrt(0.3) * tensor([1.0, 1.0, -1.0, -1.0])
    points = Points.gauss_legendre(4, 30)
    found = continuous_bound(gaussian(0.3), x0, CLEAN, NOISY, noise=lambda _: signs, points=points, decoder=Density())
    yield found.diffusion.mean(), exact


@equation("3.14", 1e-9)
def bound_of_normal_data() -> Sides:
    r"""\frac{1}{2} \int_{\mathrm{snr}_T}^{\mathrm{snr}_1} E \lVert x_0 - \hat x_0 \rVert^2 d \mathrm{snr}
    = \sum_i \frac{1}{2} \log \frac{1 + s_i \mathrm{snr}_1}{1 + s_i \mathrm{snr}_T}"""
    variances = torch.tensor([1.5, 0.3, 0.02], dtype=torch.float64)
    oracle = GaussianOracle(torch.zeros(3, dtype=torch.float64), variances)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    exact = sum(0.5 * math.log((1.0 + s * LIMITS[1]) / (1.0 + s * LIMITS[0])) for s in variances.tolist())
    for schedule in (VP, build("schedule", "rectified")):  # two curves between the same ends
        first, last = (float(schedule.time(level)) for level in (CLEAN, NOISY))
        times = torch.from_numpy(first + 0.5 * (last - first) * (nodes + 1.0)).requires_grad_()
        level = schedule.level(times)
        change = slope((level.alpha / level.sigma) ** 2, times).detach().numpy()
        error = [oracle.mmse(schedule.level(t)) for t in times.tolist()]
        yield -0.25 * (last - first) * float(weights @ (change * error)), exact
