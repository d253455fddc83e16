"""Checks of the equations of docs/theory/ddpm.md."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from diffkit import Estimate, Level, build, sample, transition
from diffkit.likelihood import Chain

from .equations import (
    ALPHA_BAR,
    BETA,
    GRID,
    LINEAR,
    MIXTURE,
    NODES,
    WEIGHTS,
    Sides,
    alpha_bar,
    beta,
    column,
    conditioned,
    draws_of_mixture,
    equation,
    gaussian,
    integral,
    mixture_density,
    normal,
    snr,
    step_covariance,
    tensor,
)

STEPS = (2, 3, 100, 700, 1000)


@equation("1.1")
def forward_step() -> Sides:
    r"""x_t = \sqrt{1 - \beta_t} x_{t-1} + \sqrt{\beta_t} z_t, \qquad z_t \sim \mathcal N(0, I)"""
    generator = torch.Generator().manual_seed(0)
    x, *noise = torch.randn(1001, 3, 2, generator=generator, dtype=torch.float64)
    draws = iter(noise)
    latents = Chain.full(LINEAR).encode(x, lambda _: next(draws))
    for b, z, latent in zip(BETA, noise, latents, strict=True):
        x = (1.0 - b) ** 0.5 * x + b**0.5 * z
        yield latent, x


@equation("1.2")
def variance_of_a_step() -> Sides:
    r"""\mathrm{Var} x_t - 1 = (1 - \beta_t) \left( \mathrm{Var} x_{t-1} - 1 \right)"""
    x0, eps, weight = draws_of_mixture()

    def excess(t: int) -> float:
        level = LINEAR.level(float(t))
        x = level.alpha * 2.0 * x0 + level.sigma * eps  # data of variance 4
        return float((weight * x**2).sum() - (weight * x).sum() ** 2 - 1.0)

    for t in (1, 2, 100, 500, 1000):
        yield excess(t), (1.0 - beta(t)) * excess(t - 1)


@equation("1.3")
def variances_add() -> Sides:
    r"""(1 - \beta_t)(1 - \bar\alpha_{t-1}) + \beta_t = 1 - \bar\alpha_t,
    \qquad \bar\alpha_t = \prod_{i=1}^t (1 - \beta_i)"""
    variance = np.array([LINEAR.level(float(t)).sigma ** 2 for t in range(1001)])
    yield (1.0 - BETA) * variance[:-1] + BETA, variance[1:]
    yield [LINEAR.level(float(t)).alpha ** 2 for t in range(1001)], ALPHA_BAR


@equation("1.4")
def closed_form() -> Sides:
    r"""x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon, \qquad \epsilon \sim \mathcal N(0, I)"""
    signal, noise = 1.0, np.zeros(1000)  # coefficients of x0 and of z_1, ..., z_T
    for t, b in enumerate(BETA, start=1):
        signal, noise = np.sqrt(1.0 - b) * signal, np.sqrt(1.0 - b) * noise
        noise[t - 1] = np.sqrt(b)
        level = LINEAR.level(float(t))
        yield (level.alpha, level.sigma), (signal, np.linalg.norm(noise))


@equation("1.5")
def bayes() -> Sides:
    r"""q(x_{t-1} \mid x_t, x_0) = \frac{q(x_t \mid x_{t-1}) q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}"""
    chain, x0 = Chain.full(LINEAR), 0.7
    for t in STEPS:
        a, b, step, spread = np.sqrt([alpha_bar(t), alpha_bar(t - 1), 1.0 - beta(t), beta(t)])
        x = a * x0 + 0.8 * np.sqrt(1.0 - a**2)
        mean, std = chain.posterior(t, tensor([x]), tensor([x0]))
        before = float(mean) + std * NODES
        prior, likelihood = norm.logpdf(before, b * x0, np.sqrt(1.0 - b**2)), norm.logpdf(x, step * before, spread)
        yield norm.logpdf(before, float(mean), std), likelihood + prior - norm.logpdf(x, a * x0, np.sqrt(1.0 - a**2))


@equation("1.6")
def posterior_variance() -> Sides:
    r"""\frac{1}{\tilde\beta_t} = \frac{1 - \beta_t}{\beta_t} + \frac{1}{1 - \bar\alpha_{t-1}},
    \qquad \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t"""
    for t in STEPS:
        found = float(transition.posterior(LINEAR.level(float(t)), LINEAR.level(t - 1.0))) ** 2
        yield 1.0 / found, (1.0 - beta(t)) / beta(t) + 1.0 / (1.0 - alpha_bar(t - 1))
        yield found, (1.0 - alpha_bar(t - 1)) / (1.0 - alpha_bar(t)) * beta(t)
        yield found, conditioned(step_covariance(t, 0.3), 1, [0, 2])[1]


@equation("1.7")
def posterior_mean() -> Sides:
    r"""\tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}} \beta_t}{1 - \bar\alpha_t} x_0
    + \frac{\sqrt{1 - \beta_t} (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} x_t"""
    for t in STEPS:
        of_x0 = np.sqrt(alpha_bar(t - 1)) * beta(t) / (1.0 - alpha_bar(t))
        of_x = np.sqrt(1.0 - beta(t)) * (1.0 - alpha_bar(t - 1)) / (1.0 - alpha_bar(t))
        yield conditioned(step_covariance(t, 0.3), 1, [0, 2])[0], (of_x0, of_x)
        yield transition.posterior_mean(LINEAR.level(float(t)), LINEAR.level(t - 1.0)), (of_x, of_x0)


@equation("1.8")
def posterior_mean_by_noise() -> Sides:
    r"""\tilde\mu_t = \frac{1}{\sqrt{1 - \beta_t}} \left( x_t
    - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}} \epsilon \right)"""
    x0, eps = 0.7, NODES
    for t in STEPS:
        x = np.sqrt(alpha_bar(t)) * x0 + np.sqrt(1.0 - alpha_bar(t)) * eps
        gain, _ = conditioned(step_covariance(t, 1.7), 1, [0, 2])
        right = (x - beta(t) / np.sqrt(1.0 - alpha_bar(t)) * eps) / np.sqrt(1.0 - beta(t))
        yield gain[0] * x0 + gain[1] * x, right


def predict(x: torch.Tensor, level: Level) -> Estimate:
    """A network that is not exact: eps_theta = sin(x)."""
    eps = torch.sin(x)
    return Estimate(level, (x - level.sigma * eps) / level.alpha, eps)


@equation("1.9")
def model_mean() -> Sides:
    r"""p_\theta(x_{t-1} \mid x_t) = \mathcal N(\mu_\theta, \sigma_t^2 I), \qquad \mu_\theta
    = \frac{1}{\sqrt{1 - \beta_t}} \left( x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}
    \epsilon_\theta(x_t, t) \right)"""
    chain = Chain.full(LINEAR, "large")
    for t in STEPS:
        mean, std = chain.reverse(t, predict(tensor(NODES), LINEAR.level(float(t))))
        slope = beta(t) / np.sqrt(1.0 - alpha_bar(t))
        yield column(mean), (NODES - slope * np.sin(NODES)) / np.sqrt(1.0 - beta(t))
        yield std, np.sqrt(beta(t))


@equation("1.10")
def reverse_variance() -> Sides:
    r"""\mathrm{Var}[x_{t-1} \mid x_t] = \frac{V_{t-1}}{V_t} \beta_t"""
    for t in STEPS:
        for s in (0.0, 0.3, 1.0, 4.0):
            before, after = (alpha_bar(u) * s + 1.0 - alpha_bar(u) for u in (t - 1, t))
            yield conditioned(step_covariance(t, s), 1, [2])[1], before / after * beta(t)
        one, small = (conditioned(step_covariance(t, s), 1, [2])[1] for s in (1.0, 0.0))
        levels = LINEAR.level(float(t)), LINEAR.level(t - 1.0)
        yield (one, small), (transition.spread(*levels) ** 2, transition.posterior(*levels) ** 2)


@equation("1.11")
def term_by_noise() -> Sides:
    r"""L_{t-1} = w_t \lVert \epsilon - \epsilon_\theta(x_t, t) \rVert^2 + \frac{D}{2} \left(
    \frac{\tilde\beta_t}{\sigma_t^2} - 1 - \log \frac{\tilde\beta_t}{\sigma_t^2} \right),
    \qquad w_t = \frac{\beta_t^2}{2 \sigma_t^2 (1 - \beta_t)(1 - \bar\alpha_t)}"""
    x0, eps = torch.full((40, 2), 0.7, dtype=torch.float64), torch.from_numpy(np.stack([NODES, NODES[::-1]], 1))
    for variance in ("small", "large"):
        chain = Chain.full(LINEAR, variance)
        for t in STEPS:
            level = LINEAR.level(float(t))
            x = level.add_noise(x0, eps)
            (mean, std), (guess, wide) = chain.posterior(t, x, x0), chain.reverse(t, predict(x, level))
            ratio = std**2 / float(wide) ** 2
            weight = beta(t) ** 2 / (2.0 * float(wide) ** 2 * (1.0 - beta(t)) * (1.0 - alpha_bar(t)))
            error = (eps - torch.sin(x)).square().sum(1)
            right = weight * error + 2 / 2 * (ratio - 1.0 - np.log(ratio))
            yield kl_divergence(Normal(mean, std), Normal(guess, wide)).sum(1), right


@equation("1.12")
def weight_of_the_bound() -> Sides:
    r"""w_t = \frac{\beta_t}{2 (1 - \beta_t)(1 - \bar\alpha_{t-1})} = \frac{1}{2} \left(
    \frac{\mathrm{snr}_{t-1}}{\mathrm{snr}_t} - 1 \right)"""
    for t in STEPS:
        small = conditioned(step_covariance(t, 0.3), 1, [0, 2])[1]
        weight = beta(t) ** 2 / (2.0 * small * (1.0 - beta(t)) * (1.0 - alpha_bar(t)))
        yield weight, beta(t) / (2.0 * (1.0 - beta(t)) * (1.0 - alpha_bar(t - 1)))
        yield weight, 0.5 * (LINEAR.level(t - 1.0).snr / LINEAR.level(float(t)).snr - 1.0)


@equation("1.13")
def simple_loss() -> Sides:
    r"""L_\mathrm{simple} = E_{t, x_0, \epsilon} \left\lVert \epsilon - \epsilon_\theta \left(
    \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon, t \right) \right\rVert^2"""
    s, oracle = 0.3, gaussian(0.3)
    a, b = np.meshgrid(NODES, NODES, indexing="ij")
    weight, each = np.outer(WEIGHTS, WEIGHTS), []
    for t in range(1, 1001, 37):
        level = LINEAR.level(float(t))
        x = level.add_noise(tensor(np.sqrt(s) * a), tensor(b))
        each.append((weight.ravel() * (b.ravel() - column(oracle(x, level).eps)) ** 2).sum())
        yield oracle.minimum_loss(build("parameterization", "eps"), level), each[-1]
    yield np.mean(each), np.mean([s * snr(t) / (1.0 + s * snr(t)) for t in range(1, 1001, 37)])


@equation("1.14")
def score_of_the_closed_form() -> Sides:
    r"""\nabla \log q(x_t \mid x_0) = -\frac{x_t - \sqrt{\bar\alpha_t} x_0}{1 - \bar\alpha_t}
    = -\frac{\epsilon}{\sqrt{1 - \bar\alpha_t}}"""
    for t in STEPS:
        level, x0 = LINEAR.level(float(t)), tensor(np.full(40, 0.7))
        x = level.add_noise(x0, tensor(NODES)).requires_grad_()
        (slope,) = torch.autograd.grad(Normal(level.alpha * x0, level.sigma).log_prob(x).sum(), x)
        yield slope, -(x - np.sqrt(alpha_bar(t)) * x0) / (1.0 - alpha_bar(t))
        yield column(slope), -NODES / np.sqrt(1.0 - alpha_bar(t))


def posterior_moment(x: float, t: int) -> float:
    """E[x0 | x_t = x] for the mixture, by integration over x0."""
    joint = mixture_density(GRID) * normal(x, np.sqrt(alpha_bar(t)) * GRID, 1.0 - alpha_bar(t))
    return integral(GRID * joint) / integral(joint)


@equation("1.15", 1e-9)
def score_of_the_marginal() -> Sides:
    r"""\nabla \log p_t(x) = E \left[ \nabla \log q(x \mid x_0) \mid x_t = x \right]
    = -\frac{E[\epsilon \mid x_t = x]}{\sqrt{1 - \bar\alpha_t}}"""
    for t in (100, 300, 700):
        level, x = LINEAR.level(float(t)), torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None].requires_grad_()
        (slope,) = torch.autograd.grad(MIXTURE.log_density(x, level).sum(), x)
        a = np.sqrt(alpha_bar(t))
        mean = np.array([-(one - a * posterior_moment(one, t)) / (1.0 - a**2) for one in column(x)])
        yield column(slope), mean
        yield column(-MIXTURE(x, level).eps / np.sqrt(1.0 - a**2)), mean


@equation("1.16", 1e-9)
def denoising_score_matching() -> Sides:
    r"""E \lVert s(x_t) - \nabla \log q(x_t \mid x_0) \rVert^2 = E \lVert s(x_t) - \nabla \log p_t(x_t) \rVert^2 + C,
    \qquad C = E \lVert \nabla \log q(x_t \mid x_0) \rVert^2 - E \lVert \nabla \log p_t(x_t) \rVert^2"""
    x0, eps, weight = draws_of_mixture()
    for t in (300, 700):
        level = LINEAR.level(float(t))
        x, noise = level.alpha * x0 + level.sigma * eps, -eps / level.sigma
        density = np.exp(column(MIXTURE.log_density(tensor(GRID), level)))
        score = column(MIXTURE.score(tensor(GRID), level))
        constant = (weight * noise**2).sum() - integral(density * score**2)
        for s in (np.sin, lambda y: -1.3 * y, lambda y: 0.0 * y):
            right = integral(density * (s(GRID) - score) ** 2) + constant
            yield (weight * (s(x) - noise) ** 2).sum(), right


@equation("1.17", 1e-9)
def tweedie() -> Sides:
    r"""E[x_0 \mid x_t] = \frac{x_t + (1 - \bar\alpha_t) \nabla \log p_t(x_t)}{\sqrt{\bar\alpha_t}}"""
    for t in (100, 300, 700):
        for x in (-1.5, 0.1, 0.9):
            score = float(MIXTURE.score(tensor([x]), LINEAR.level(float(t))))
            yield posterior_moment(x, t), (x + (1.0 - alpha_bar(t)) * score) / np.sqrt(alpha_bar(t))


@equation("1.18")
def gradient_of_algorithm_1() -> Sides:
    r"""\frac{d}{dk} E(\epsilon - k x_t)^2 = 2 \left( k V_t - \sqrt{1 - \bar\alpha_t} \right)"""
    s, (a, b) = 0.3, np.meshgrid(NODES, NODES, indexing="ij")
    weight = torch.from_numpy(np.outer(WEIGHTS, WEIGHTS))
    for t in STEPS:
        level, k = LINEAR.level(float(t)), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        x, eps = level.add_noise(torch.from_numpy(np.sqrt(s) * a), torch.from_numpy(b)), torch.from_numpy(b)
        (slope,) = torch.autograd.grad((weight * (eps - k * x) ** 2).sum(), k)
        spread = alpha_bar(t) * s + 1.0 - alpha_bar(t)
        yield slope, 2.0 * (0.2 * spread - np.sqrt(1.0 - alpha_bar(t)))
        best = np.sqrt(1.0 - alpha_bar(t)) / spread
        yield gaussian(s)(tensor([1.0]), level).eps, best


@equation("1.19", 1e-9)
def algorithm_2() -> Sides:
    r"""x_{t-1} = \frac{1}{\sqrt{1 - \beta_t}} \left( x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}
    \epsilon_\theta(x_t, t) \right) + \sigma_t z, \qquad z \sim \mathcal N(0, I)"""
    generator = torch.Generator().manual_seed(1)
    x, *noise = torch.randn(1000, 3, 1, generator=generator, dtype=torch.float64)
    levels, draws = Chain.full(LINEAR).levels, iter(noise)
    found = sample(predict, build("sampler", "ancestral", variance="large"), levels, x, noise=lambda _: next(draws))
    for t, z in zip(range(1000, 0, -1), [*noise, torch.zeros_like(x)], strict=True):
        slope = beta(t) / np.sqrt(1.0 - alpha_bar(t))
        x = (x - slope * torch.sin(x)) / np.sqrt(1.0 - beta(t)) + np.sqrt(beta(t)) * z
    yield found, x
