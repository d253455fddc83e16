"""Checks of the equations of docs/theory/bound.md."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffkit import Estimate, Level, build
from diffkit.likelihood import Bound, Chain, Density, Discretised, fit_errors, variational_bound
from diffkit.testing import GaussianOracle

from .equations import (
    GRID,
    LINEAR,
    NODES,
    SHORT,
    WEIGHTS,
    Array,
    Sides,
    alpha_bar,
    equation,
    gaussian,
    integral,
    normal,
    snr,
    tensor,
)

X, LOAD, NOISE, GUESS, WIDTH = 1.1, 0.8, 0.5, 0.2, 0.6
"""A VAE: z ~ N(0, 1), x ~ N(LOAD z, NOISE) and q(z | X) = N(GUESS, WIDTH)."""
Z = GUESS + math.sqrt(WIDTH) * NODES


def log_normal(x: Array | float, mean: Array | float, variance: float) -> Array:
    found: Array = norm.logpdf(x, mean, math.sqrt(variance))
    return found


def divergence(mean: float | Tensor, std: float | Tensor, other: float | Tensor, wide: float | Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(other, wide^2)) by PyTorch, in float64."""
    m, s, n, w = (torch.as_tensor(one, dtype=torch.float64) for one in (mean, std, other, wide))
    return kl_divergence(Normal(m, s), Normal(n, w))


def vae_bound() -> float:
    each = log_normal(X, LOAD * Z, NOISE) + log_normal(Z, 0.0, 1.0) - log_normal(Z, GUESS, WIDTH)
    return float(WEIGHTS @ each)


@equation("2.1")
def evidence() -> Sides:
    r"""\log p(x) = E_q \left[ \log \frac{p(x, z)}{q(z \mid x)} \right]
    + \mathrm{KL} \left( q(z \mid x) \parallel p(z \mid x) \right)"""
    precision = 1.0 + LOAD**2 / NOISE
    gap = float(divergence(GUESS, math.sqrt(WIDTH), LOAD * X / NOISE / precision, precision**-0.5))
    yield log_normal(X, 0.0, LOAD**2 + NOISE), vae_bound() + gap
    yield np.log(integral(normal(X, LOAD * GRID, NOISE) * normal(GRID, 0.0, 1.0))), vae_bound() + gap


@equation("2.2")
def reconstruction_and_cost() -> Sides:
    r"""E_q \left[ \log \frac{p(x, z)}{q(z \mid x)} \right] = E_q \left[ \log p(x \mid z) \right]
    - \mathrm{KL} \left( q(z \mid x) \parallel p(z) \right)"""
    cost = float(divergence(GUESS, math.sqrt(WIDTH), 0.0, 1.0))
    yield vae_bound(), WEIGHTS @ log_normal(X, LOAD * Z, NOISE) - cost


@equation("2.3")
def divergence_of_normals() -> Sides:
    r"""\mathrm{KL} \left( \mathcal N(\mu_1, \sigma_1^2) \parallel \mathcal N(\mu_2, \sigma_2^2) \right)
    = \frac{(\mu_1 - \mu_2)^2}{2 \sigma_2^2} + \frac{1}{2} \left( \frac{\sigma_1^2}{\sigma_2^2} - 1
    - \log \frac{\sigma_1^2}{\sigma_2^2} \right)"""
    for (m, v), (n, w) in itertools.permutations([(0.3, 0.5), (-0.4, 1.2), (0.0, 0.9)], 2):
        p = normal(GRID, m, v)
        left = integral(p * (log_normal(GRID, m, v) - log_normal(GRID, n, w)))
        yield left, (m - n) ** 2 / (2.0 * w) + 0.5 * (v / w - 1.0 - math.log(v / w))


@equation("2.4")
def reparameterisation() -> Sides:
    r"""E_{z \sim \mathcal N(\mu, \sigma^2)} f(z) = E_{\epsilon \sim \mathcal N(0, 1)} f(\mu + \sigma \epsilon)"""
    for f in (np.sin, np.square, np.exp):
        yield integral(normal(GRID, 0.4, 0.7**2) * f(GRID)), WEIGHTS @ f(0.4 + 0.7 * NODES)


def half(x: Tensor, level: Level) -> Estimate:
    """A linear network that is not exact: eps_theta = x / 2."""
    return Estimate(level, (1.0 - 0.5 * level.sigma) / level.alpha * x, 0.5 * x)


CHAIN = Chain.full(SHORT, "large")
STEPS = len(CHAIN)
X0 = 0.7


def layer(t: int) -> tuple[float, float]:
    """Gain and variance of p(x_{t-1} | x_t) for the network `half`."""
    mean, std = CHAIN.reverse(t, half(torch.ones(1, 1, dtype=torch.float64), CHAIN.level(t)))
    return float(mean), float(std) ** 2


def joint_of_the_model() -> Array:
    """The covariance of (x_0, ..., x_T) under the model, by its linear map of independent noises."""
    map_ = np.zeros((STEPS + 1, STEPS + 1))
    map_[STEPS, STEPS] = 1.0
    for t in range(STEPS, 0, -1):
        gain, variance = layer(t)
        map_[t - 1] = gain * map_[t]
        map_[t - 1, t - 1] = math.sqrt(variance)
    found: Array = map_ @ map_.T
    return found


def log_model(x: Array) -> float:
    """log p(x_0, ..., x_T) as the product of the layers."""
    found = float(log_normal(x[STEPS], 0.0, 1.0))
    for t in range(1, STEPS + 1):
        gain, variance = layer(t)
        found += float(log_normal(x[t - 1], gain * x[t], variance))
    return found


def log_forward(x: Array) -> float:
    """log q(x_1, ..., x_T | x_0) as the product of the steps."""
    betas = SHORT.betas.tolist()
    return sum(float(log_normal(x[t], math.sqrt(1.0 - b) * x[t - 1], b)) for t, b in enumerate(betas, start=1))


def paths() -> Array:
    """Paths (x_0, ..., x_T) for all signs of the noises: their mean is the expectation of every quadratic function."""
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=STEPS):
        path = [X0]
        for b, z in zip(SHORT.betas.tolist(), signs, strict=True):
            path.append(math.sqrt(1.0 - b) * path[-1] + math.sqrt(b) * z)
        found.append(path)
    return np.array(found)


def bound_of_the_chain() -> Bound:
    """The bound of diffkit at x_0; its terms are quadratic in the noise, so the two signs give the expectation."""
    x0, signs = tensor([X0, X0]), tensor([1.0, -1.0])
    return variational_bound(half, CHAIN, x0, lambda _: signs, Density())


@equation("2.5")
def joint() -> Sides:
    r"""p_\theta(x_{0:T}) = p(x_T) \prod_{t=1}^T p_\theta(x_{t-1} \mid x_t)"""
    law = multivariate_normal(np.zeros(STEPS + 1), joint_of_the_model())
    for path in paths():
        yield law.logpdf(path), log_model(path)


@equation("2.6")
def both_directions() -> Sides:
    r"""q(x_{1:T} \mid x_0) = \prod_{t=1}^T q(x_t \mid x_{t-1})
    = q(x_T \mid x_0) \prod_{t=2}^T q(x_{t-1} \mid x_t, x_0)"""
    end = SHORT.level(float(STEPS))
    for path in paths():
        backwards = float(log_normal(path[STEPS], end.alpha * X0, end.sigma**2))
        for t in range(2, STEPS + 1):
            mean, std = CHAIN.posterior(t, tensor([path[t]]), tensor([X0]))
            backwards += float(log_normal(path[t - 1], float(mean), std**2))
        yield log_forward(path), backwards


@equation("2.7")
def evidence_of_the_chain() -> Sides:
    r"""-\log p_\theta(x_0) = L - \mathrm{KL} \left( q(x_{1:T} \mid x_0) \parallel p_\theta(x_{1:T} \mid x_0) \right),
    \qquad L = E_q \left[ \log \frac{q(x_{1:T} \mid x_0)}{p_\theta(x_{0:T})} \right]"""
    model = joint_of_the_model()
    gain = model[1:, 0] / model[0, 0]
    mean, covariance = gain * X0, model[1:, 1:] - np.outer(gain, model[0, 1:])
    found = paths()[:, 1:]
    spread = np.cov(found.T, bias=True)
    away, precision = found.mean(0) - mean, np.linalg.inv(covariance)
    logs = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(spread)[1]
    gap = 0.5 * (np.trace(precision @ spread) + away @ precision @ away - STEPS + logs)
    total = np.mean([log_forward(path) - log_model(path) for path in paths()])
    assert gap > 0.01
    yield -log_normal(X0, 0.0, model[0, 0]), total - gap
    yield bound_of_the_chain().total.mean(), total


@equation("2.8")
def three_kinds() -> Sides:
    r"""L = \mathrm{KL} \left( q(x_T \mid x_0) \parallel p(x_T) \right) + \sum_{t=2}^T E_q \mathrm{KL} \left(
    q(x_{t-1} \mid x_t, x_0) \parallel p_\theta(x_{t-1} \mid x_t) \right) - E_q \log p_\theta(x_0 \mid x_1)"""
    end, found = SHORT.level(float(STEPS)), bound_of_the_chain()
    prior = divergence(end.alpha * X0, end.sigma, 0.0, 1.0)
    gain, variance = layer(1)
    terms = [-np.mean([log_normal(X0, gain * path[1], variance) for path in paths()])]
    for t in range(2, STEPS + 1):
        gain, variance = layer(t)
        x = torch.from_numpy(paths()[:, t])
        mean, std = CHAIN.posterior(t, x, torch.full_like(x, X0))
        terms.append(float(divergence(mean, std, gain * x, math.sqrt(variance)).mean()))
    yield found.prior.mean(), prior
    yield found.layers.mean(1), terms
    yield np.mean([log_forward(path) - log_model(path) for path in paths()]), float(prior) + sum(terms)


@equation("2.9", 1e-12)
def prior_term() -> Sides:
    r"""L_T = \frac{1}{2} \left( \bar\alpha_T x_0^2 - \bar\alpha_T - \log(1 - \bar\alpha_T) \right)"""
    for schedule, a in ((LINEAR, alpha_bar(1000)), (SHORT, 0.9 * 0.8 * 0.7 * 0.5)):
        x0 = tensor([-1.0, 0.2, 3.0])
        exact = divergence(math.sqrt(a) * x0, math.sqrt(1.0 - a), 0.0, 1.0)[:, 0]
        yield Chain.full(schedule).prior(x0), exact
        yield exact, 0.5 * (a * x0[:, 0] ** 2 - a - math.log(1.0 - a))


@equation("2.10")
def layer_by_snr() -> Sides:
    r"""L_{t-1} = \frac{\lVert \tilde\mu_t - \mu_\theta \rVert^2}{2 \tilde\beta_t} = \frac{1}{2} \left(
    \mathrm{snr}_{t-1} - \mathrm{snr}_t \right) \lVert x_0 - \hat x_0(x_t) \rVert^2"""
    chain, x0 = Chain.full(LINEAR), tensor([X0, -0.2, 1.4])
    eps = tensor([0.5, -1.0, 2.0])
    found = variational_bound(half, chain, x0, lambda _: eps, Density())
    for t in (2, 3, 500, 970, 1000):
        level = LINEAR.level(float(t))
        x = level.add_noise(x0, eps)
        (mean, std), (guess, _) = chain.posterior(t, x, x0), chain.reverse(t, half(x, level))
        yield found.layers[t - 1], ((mean - guess) ** 2 / (2.0 * std**2))[:, 0]
        error = (x0 - half(x, level).x0)[:, 0] ** 2
        yield found.layers[t - 1], 0.5 * (snr(t - 1) - snr(t)) * error


@equation("2.11", 1e-12)
def decoder() -> Sides:
    r"""p_\theta(x_0 = x_k \mid x_1) = \Phi \left( \frac{x_k + h - \hat x_0}{\sigma_1} \right)
    - \Phi \left( \frac{x_k - h - \hat x_0}{\sigma_1} \right)"""
    values = 2.0 * np.arange(17) / 16.0 - 1.0
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2.0, [np.inf]])
    for mean in (-0.9, 0.03, 1.2):
        expected = np.diff(norm.cdf(edges, mean, 0.3))
        yield Discretised(17).log_prob(tensor(values), tensor([mean] * 17), 0.3).exp()[:, 0], expected
        yield Discretised(17).table(tensor([mean]), 0.3).sum(), 1.0


@equation("2.12", 1e-3)
def bits_of_a_bin() -> Sides:
    r"""-\frac{1}{D} \log_2 P(x_0) = -\frac{1}{D} \log_2 p(x_0) + \log_2 \frac{n - 1}{2}"""
    x0 = tensor(2.0 * np.array([40, 100, 180]) / 255.0 - 1.0)
    mean = torch.zeros_like(x0)
    inside, density = (one.log_prob(x0, mean, 0.4) / math.log(2.0) for one in (Discretised(256), Density()))
    yield -inside, -density + math.log2(255 / 2)


@equation("2.13", 1e-9)
def optimal_variance() -> Sides:
    r"""\sigma_t^2 = \tilde\beta_t + \left( \frac{\sqrt{\bar\alpha_{t-1}} \beta_t}{1 - \bar\alpha_t} \right)^2 e^2"""
    s = 0.3
    x0, eps = tensor(math.sqrt(s) * np.array([1.0, 1.0, -1.0, -1.0])), tensor([1.0, -1.0, 1.0, -1.0])
    chain = Chain.full(SHORT)
    chain = chain.with_errors(fit_errors(gaussian(s), chain, [(x0, lambda _: eps, {})]))
    for t in range(2, STEPS + 1):
        a, before, b = SHORT.level(float(t)), SHORT.level(t - 1.0), float(SHORT.betas[t - 1])
        error = s / (1.0 + s * float(a.snr))
        small = before.sigma**2 / a.sigma**2 * b
        right = small + (before.alpha * b / a.sigma**2) ** 2 * error
        yield float(chain.std(t, gaussian(s)(x0, a))) ** 2, right
        yield right, b * (before.alpha**2 * s + before.sigma**2) / (a.alpha**2 * s + a.sigma**2)
        variance = torch.tensor(right, dtype=torch.float64, requires_grad=True)
        term = 0.5 * ((right - small) / variance + small / variance + torch.log(variance))
        yield torch.autograd.grad(term, variance)[0], 0.0


def exact_bound(chain: Chain, variances: list[float]) -> Bound:
    """The bound of the exact denoiser of normal data; four combinations of signs give the mean of every term."""
    s = torch.tensor(variances, dtype=torch.float64)
    x0, eps = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None] * s.sqrt(), tensor([1.0, -1.0, 1.0, -1.0]).expand(4, len(s))
    return variational_bound(GaussianOracle(torch.zeros_like(s), s), chain, x0, lambda _: eps, Density())


@equation("2.14", 1e-9)
def gap() -> Sides:
    r"""E[L] = H(x_0) + \mathrm{KL} \left( q(x_T) \parallel p(x_T) \right) + \sum_{t=1}^T \sum_{i=1}^D \frac{1}{2}
    \left( \frac{v_{t,i}}{\sigma_t^2} - 1 - \log \frac{v_{t,i}}{\sigma_t^2} \right)"""
    for s in ([0.3, 0.3], [1.5, 0.4, 0.02]):
        levels = build("grid", "trailing").levels(LINEAR, 20)
        v = np.array(s)
        sizes = np.array([level.alpha**2 * v + level.sigma**2 for level in reversed(levels)])
        ratios = np.array([(t.alpha / u.alpha) ** 2 for t, u in itertools.pairwise(levels)])[::-1]
        true = (sizes[1:] - ratios[:, None] * sizes[:-1]) * sizes[:-1] / sizes[1:]
        prior = 0.5 * (sizes[-1] - 1.0 - np.log(sizes[-1])).sum()
        entropy = 0.5 * np.log(2.0 * math.pi * math.e * v).sum()
        plain = Chain(levels)
        errors = [(v * level.sigma**2 / size).mean() for level, size in zip(reversed(levels), sizes, strict=True)][1:]
        for chain in (plain, Chain(levels, "large"), plain.with_errors(errors)):
            estimate = gaussian(0.3)(tensor([0.0]), levels[0])
            std = np.array([float(chain.std(t, estimate)) for t in range(1, 21)])
            ratio = true / std[:, None] ** 2
            right = entropy + prior + 0.5 * (ratio - 1.0 - np.log(ratio)).sum()
            yield len(s) * exact_bound(chain, s).total.mean(), right


@equation("2.15", 1e-6)
def gap_of_small() -> Sides:
    r"""\sum_{k=1}^\infty \frac{1}{2} \left( \frac{1}{k} - \log \left( 1 + \frac{1}{k} \right) \right)
    = \frac{\gamma}{2} = 0.2886"""
    k = np.arange(1.0, 1e6)
    yield 0.5 * (1.0 / k - np.log1p(1.0 / k)).sum(), np.euler_gamma / 2.0
    yield round(np.euler_gamma / 2.0, 4), 0.2886
    # The sum over t >= 2 for data of variance 1 and beta / 1000 in each of a million steps of equal size.
    rise = -np.expm1(np.log1p(-1e-6) * np.arange(1.0, 1e6 + 1))
    ratio = rise[1:] / rise[:-1]
    assert abs(0.5 * (ratio - 1.0 - np.log(ratio)).sum() - np.euler_gamma / 2.0) < 1e-3
