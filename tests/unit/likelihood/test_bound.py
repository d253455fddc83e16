"""The bound on a chain against closed forms of Gaussian data, in double and single precision."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, getcontext
from functools import cache
from itertools import accumulate, pairwise
from operator import mul

import pytest
import torch
from torch import Tensor

from diffkit import Discrete, Estimate, Level, Model, UsageError, build, transition
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.likelihood import (
    Bound,
    Categorical,
    Chain,
    Density,
    Discretised,
    Points,
    continuous_bound,
    fit_errors,
    gaussian_kl,
    interpolated,
    log_density,
    variational_bound,
)
from diffkit.oracles import OracleNetwork
from diffkit.testing import GaussianOracle
from diffkit.testing.fixtures import TRIG, GaussianData

F64 = torch.float64


def cosine() -> Discrete:
    """The schedule of Improved DDPM, from its formula."""
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    return Discrete([min(1 - b / a, 0.999) for a, b in pairwise(f)])


COSINE = cosine()
SCHEDULES = {"linear": Linear(), "cosine": COSINE}
SIGNS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=F64)


def product(oracle: GaussianOracle) -> tuple[Tensor, Tensor]:
    """x0 and eps over which the mean of a quadratic form is its expectation."""
    x0 = oracle.mean + SIGNS * oracle.variances.sqrt()
    return x0.repeat_interleave(4, 0), SIGNS.repeat(4, 1)


@cache
def alpha_bars(schedule: Discrete) -> list[Decimal]:
    getcontext().prec = 40
    return list(accumulate((1 - Decimal(beta) for beta in schedule.betas.tolist()), mul, initial=Decimal(1)))


def exact_terms(schedule: Discrete, times: list[int], s: Tensor, m: Tensor, variance: str) -> list[float]:
    """The prior and the terms of layers N..1 by 40-digit arithmetic, for uncorrelated Gaussian data."""
    abar = alpha_bars(schedule)
    data = [(Decimal(float(v)), Decimal(float(c))) for v, c in zip(s, m, strict=True)]
    count = Decimal(len(data))
    top = abar[times[0]]
    found = [sum(top * (v + c * c) - top - (1 - top).ln() for v, c in data) / count / 2]

    def beta_tilde(t: int, before: int) -> tuple[Decimal, Decimal]:
        beta = 1 - abar[t] / abar[before]
        return beta, beta * (1 - abar[before]) / (1 - abar[t])

    points = [*times, 0]
    for t, before in pairwise(points):
        beta, small = beta_tilde(t, before)
        floor = small if before else beta_tilde(points[-3], t)[1]
        std2 = {"small": floor, "large": beta, "learned": (floor * beta).sqrt()}.get(variance, Decimal(0))
        q = abar[before].sqrt() * beta / (1 - abar[t])
        errors = [v * (1 - abar[t]) / (abar[t] * v + 1 - abar[t]) for v, _ in data]
        if variance == "optimal":
            std2 = small + q * q * sum(errors) / count
        if before == 0:
            pi = Decimal("3.14159265358979323846264338327950288419716939937510582")
            found.append(sum((2 * pi * std2).ln() + e / std2 for e in errors) / count / 2)
        else:
            found.append(sum((std2 / small).ln() + (small + q * q * e) / std2 - 1 for e in errors) / count / 2)
    return [float(v) for v in found]


QUICK = [("linear", 1000, "learned"), ("cosine", 1000, "large"), ("linear", 1000, "optimal")]
EVERY = [(n, k, v) for n in SCHEDULES for k in (1000, 50, 7) for v in ("small", "large", "learned", "optimal")]


@pytest.mark.parametrize(
    ("name", "steps", "variance"),
    [pytest.param(*c, marks=[pytest.mark.slow] if c[1] == 1000 and c not in QUICK else []) for c in EVERY],
)
def test_every_term_is_the_closed_form(name: str, steps: int, variance: str) -> None:
    """Pitfall 1: KL terms near t = T are 1e-6 of their parts."""
    schedule = SCHEDULES[name]
    oracle = GaussianOracle(torch.tensor([0.2, -0.1], dtype=F64), torch.tensor([0.3, 0.05], dtype=F64))
    levels = tuple(build("grid", "trailing").levels(schedule, steps))
    times = [round(float(schedule.time(level))) for level in levels[:-1]]
    want = torch.tensor(exact_terms(schedule, times, oracle.variances, oracle.mean, variance), dtype=F64)
    x0, eps = product(oracle)
    chain = Chain(levels)
    if variance == "optimal":
        chain = chain.with_errors(fit_errors(oracle, chain, [(x0, lambda x: eps, {})]))
    else:
        chain = replace(chain, variance=variance)  # type: ignore[arg-type]

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        return oracle(x, level).with_aux(variance_fraction=torch.full_like(x, 0.5))

    for dtype, tolerance in ((F64, 1e-9), (torch.float32, 1e-4)):
        found = variational_bound(denoise, chain, x0.to(dtype), lambda x: eps.to(x.dtype), Density())
        got = torch.cat([found.prior.mean()[None], found.layers.mean(1).flip(0)])
        assert found.layers.dtype == F64
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
        assert bool((found.layers[1:] >= 0).all())


def test_a_sub_grid_has_its_own_betas() -> None:
    """Pitfall 3: the posterior between visited steps, not that of neighbours on the full chain."""
    levels = tuple(build("grid", "trailing").levels(Linear(), 10))
    chain = Chain(levels, "large")
    t, s = chain.level(5), chain.level(4)
    z, x0 = torch.tensor([[0.7]], dtype=F64), torch.tensor([[0.1]], dtype=F64)
    mean, std = chain.posterior(5, z, x0)
    a = float(t.alpha) / float(s.alpha)
    b = float(t.sigma) ** 2 - a**2 * float(s.sigma) ** 2
    precision = 1 / float(s.sigma) ** 2 + a**2 / b
    assert std == pytest.approx(precision**-0.5)
    assert float(mean) == pytest.approx((float(s.alpha) * 0.1 / float(s.sigma) ** 2 + a * 0.7 / b) / precision)
    oracle = GaussianOracle(0.0, 1.0)
    reverse, large = chain.reverse(5, oracle(z, t))
    assert large == pytest.approx(math.sqrt(b))
    p, q = transition.posterior_mean(t, s)
    assert float(reverse) == pytest.approx(float(p) * 0.7 + float(q) * float(oracle(z, t).x0))


def test_routes_agree_on_isotropic_data() -> None:
    """Bound with the optimal variance, MMSE integral, flow and exact density; identities D11, D12, G3."""
    schedule, oracle = Linear(), GaussianOracle(torch.tensor([0.3, -0.2], dtype=F64), 0.4)
    exact = oracle.entropy() / 2
    x0, eps = product(oracle)
    end = schedule.noise
    v = float(end.alpha) ** 2 * 0.4 + float(end.sigma) ** 2
    prior = 0.5 * float((v + (float(end.alpha) * oracle.mean) ** 2 - 1 - math.log(v)).mean())
    for chain in (Chain.full(schedule), Chain(tuple(build("grid", "trailing").levels(schedule, 20)))):
        fitted = chain.with_errors(fit_errors(oracle, chain, [(x0, lambda x: eps, {})]))
        found = variational_bound(oracle, fitted, x0, lambda x: eps, Density())
        assert float(found.total.mean()) - prior == pytest.approx(exact, abs=1e-9)
    clean = Level(1.0, 1e-5)
    points = Points.gauss_legendre(len(x0), 200)
    integral = continuous_bound(oracle, x0, clean, end, noise=lambda x: eps, points=points, decoder=Density())
    assert float(integral.total.mean()) - prior == pytest.approx(exact, abs=1e-8)
    flow = log_density(oracle, x0, clean, end, prior=oracle.log_density)
    assert -float(flow.log_density.mean()) / 2 == pytest.approx(exact, abs=1e-6)


def test_the_bound_of_correlated_data_lies_above_by_its_gap() -> None:
    """Isotropic reverse steps cannot follow two variances: the gap is a sum of closed-form divergences."""
    schedule = Linear()
    oracle = GaussianOracle(torch.tensor([0.2, -0.1], dtype=F64), torch.tensor([0.5, 0.02], dtype=F64))
    chain = Chain(tuple(build("grid", "trailing").levels(schedule, 30)))
    x0, eps = product(oracle)
    fitted = chain.with_errors(fit_errors(oracle, chain, [(x0, lambda x: eps, {})]))
    bound = variational_bound(oracle, fitted, x0, lambda x: eps, Density())
    gap = 0.0
    for i in range(1, len(chain) + 1):
        t, s = chain.level(i), chain.level(i - 1)
        # true p(z_{i-1} | z_i) is Gaussian with these variances; the model has their mean
        beta = float(t.sigma) ** 2 - (float(t.alpha) / float(s.alpha)) ** 2 * float(s.sigma) ** 2
        before, now = (float(k.alpha) ** 2 * oracle.variances + float(k.sigma) ** 2 for k in (s, t))
        true = before * beta / now
        gap += float(0.5 * (torch.log(true.mean()) - torch.log(true)).mean())
    end = schedule.noise
    v = float(end.alpha) ** 2 * oracle.variances + float(end.sigma) ** 2
    gap += 0.5 * float((v + (float(end.alpha) * oracle.mean) ** 2 - 1 - torch.log(v)).mean())
    assert gap > 0.05
    assert float(bound.total.mean()) - oracle.entropy() / 2 == pytest.approx(gap, abs=1e-9)


def test_three_first_variances_are_three_bounds() -> None:
    """Pitfall 2; the code of DDPM uses beta_tilde_2 in layer 1 for `large` too."""
    schedule = Linear()
    own, second = Chain.full(schedule, "large"), replace(Chain.full(schedule, "large"), first="second")
    small = Chain.full(schedule)
    oracle = GaussianOracle(0.0, 1.0)
    estimate = oracle(torch.zeros(1, 1), schedule.level(1.0))
    beta = schedule.betas
    tilde = float(beta[1] * beta[0] / (1 - (1 - beta[0]) * (1 - beta[1])))
    assert float(own.std(1, estimate)) ** 2 == pytest.approx(float(beta[0]))
    assert float(second.std(1, estimate)) ** 2 == pytest.approx(tilde)
    assert float(small.std(1, estimate)) ** 2 == pytest.approx(tilde)
    assert float(own.std(700, estimate)) ** 2 == pytest.approx(float(beta[699]))
    assert float(second.std(700, estimate)) == float(own.std(700, estimate))


def test_the_gap_of_small_tends_to_its_limit() -> None:
    """Pitfall 2: (1 - log 2)/2 + gamma/2 = 0.4420 nats for N(0, 1) with beta_tilde_2 in the first layer."""
    oracle, chain = GaussianOracle(0.0, 1.0), Chain.full(Discrete([1e-4] * 400))
    x0 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    eps = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    found = variational_bound(oracle, chain, x0, lambda x: eps, Density())
    limit = (1 - math.log(2)) / 2 + 0.5772156649 / 2
    assert float(found.total.mean()) - oracle.entropy() == pytest.approx(limit, abs=2e-3)


def test_kl_is_right_far_below_the_precision_of_its_parts() -> None:
    for excess in (0.0, 1e-9, 3e-5, 0.009, 0.011, 0.3, -0.4):
        found = float(gaussian_kl(torch.zeros(1, dtype=F64), 0.7, excess))
        want = sum((-2 * excess) ** k / math.factorial(k) for k in range(2, 25)) / 2
        assert found == pytest.approx(want, rel=1e-12, abs=0)
    moved = gaussian_kl(torch.tensor([0.3], dtype=F64), 0.5, math.log(2.0))
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(0.0, 0.5), normal(torch.tensor([0.3], dtype=F64), 1.0))
    torch.testing.assert_close(moved, exact)


@pytest.mark.parametrize("cdf", ["exact", "tanh"])
@pytest.mark.parametrize("bins", [2, 17, 256])
def test_bins_sum_to_one_and_the_table_is_the_probability(bins: int, cdf: str) -> None:
    """Identity G1, pitfall 4: open ends, no renormalising, also far outside of the data."""
    source = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(50, 2, generator=source, dtype=F64)
    std = torch.logspace(-4, 1, 50, dtype=F64)[:, None].expand(50, 2)
    decoder = Discretised(bins, cdf)  # type: ignore[arg-type]
    table = decoder.table(mean, std)
    torch.testing.assert_close(table.sum(-1), torch.ones(50, 2, dtype=F64), rtol=0, atol=1e-12)
    k = torch.randint(0, bins, (50, 2), generator=source)
    each = decoder.log_prob(k.double() * 2 / (bins - 1) - 1, mean, std).exp()
    torch.testing.assert_close(table.gather(-1, k[..., None])[..., 0], each, rtol=1e-6, atol=1e-14)


def test_the_decoder_in_the_tail_and_its_options() -> None:
    far = Discretised(256).log_prob(torch.tensor([[-0.5]], dtype=F64), torch.tensor([[0.9]], dtype=F64), 0.01)
    half = 1 / 255
    upper = torch.special.log_ndtr(torch.tensor((-1.4 + half) / 0.01, dtype=F64))
    assert float(far) == pytest.approx(float(upper), rel=1e-3)
    clamped = Discretised(256, "tanh", 1e-12).log_prob(torch.tensor([[-0.5]]), torch.tensor([[0.9]]), 0.01)
    assert float(clamped) == pytest.approx(math.log(1e-12))
    values = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    table = Categorical(5).log_prob(values, torch.full((5, 1), 0.1, dtype=F64), 0.4).exp()
    want = torch.exp(-0.5 * ((values - 0.1) / 0.4) ** 2)
    torch.testing.assert_close(table, want / want.sum())


def test_the_tanh_is_close_to_the_normal_distribution() -> None:
    """Hendrycks & Gimpel 2016 (arXiv:1606.08415): the cubic of the tanh keeps it within 5e-4 of the exact cdf."""
    mean, std = torch.zeros(1, 1, dtype=F64), 0.3
    tables = [Discretised(256, cdf=cdf).table(mean, std)[0, 0].cumsum(0) for cdf in ("exact", "tanh")]
    assert 1e-5 < float((tables[0] - tables[1]).abs().max()) < 5e-4


def test_images_have_the_same_bound_in_every_batch() -> None:
    """Pitfall 8, and batches joined by `cat`."""
    data, chain = GaussianData(), Chain(tuple(build("grid", "trailing").levels(Linear(), 5)))
    model = Model(OracleNetwork(data, Linear(), Eps()), Eps(), Linear())
    x0 = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))
    noises = [torch.randn(9, 2, generator=torch.Generator().manual_seed(i)) for i in range(5)]

    def of(rows: slice) -> Bound:
        left = iter(noises)
        return variational_bound(model, chain, x0[rows], lambda x: next(left)[rows], Density())

    whole, parts = of(slice(0, 9)), Bound.cat([of(slice(0, 1)), of(slice(1, 8)), of(slice(8, 9))])
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.squared_error, whole.squared_error)
    assert whole.standard_error == pytest.approx(float(whole.bits_per_dim.std()) / 3)


def test_rate_and_distortion_of_gaussian_data() -> None:
    """Identity G5: after z_i is received, the rate is I(x0; z_i) and the error is the minimum."""
    oracle, schedule = GaussianOracle(torch.zeros(2, dtype=F64), 0.4), Linear()
    x0, eps = product(oracle)
    chain = Chain.full(schedule)
    fitted = chain.with_errors(fit_errors(oracle, chain, [(x0, lambda x: eps, {})]))
    rate, error = variational_bound(oracle, fitted, x0, lambda x: eps, Density()).rate_distortion()
    assert rate.shape == error.shape == (1001,)
    for i in (900, 500, 100, 10):
        level, at = chain.level(i), len(chain) - i
        assert float(rate[at]) == pytest.approx(0.5 * math.log2(1 + 0.4 * float(level.snr)), abs=2e-5)
        assert float(error[at]) == pytest.approx(oracle.mmse(level) / 2, rel=1e-9)
    assert float(rate[-1]) == pytest.approx(oracle.entropy() / 2 / math.log(2), abs=2e-5)
    assert float(error[-1]) == 0.0


def test_encoding_and_decoding_follow_the_chain() -> None:
    """Encoded latents have the marginals of the forward process; decoding noise gives the data of an exact model."""
    chain = Chain(tuple(build("grid", "trailing").levels(Linear(), 200)), "large")
    source = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source, dtype=x.dtype)

    x0 = torch.full((20000, 1), 0.5, dtype=F64)
    latents = chain.encode(x0, noise)
    for i in (1, 60, 200):
        level = chain.level(i)
        assert float(latents[i - 1].mean()) == pytest.approx(0.5 * float(level.alpha), abs=0.03)
        assert float(latents[i - 1].std()) == pytest.approx(float(level.sigma), rel=0.03)
    correlation = torch.corrcoef(torch.cat([latents[58], latents[59]], 1).T)[0, 1]
    assert float(correlation) > 0.9
    decoded = chain.decode(GaussianOracle(0.5, 0.09), torch.randn(20000, 1, generator=source, dtype=F64), noise)
    assert float(decoded.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(decoded.std()) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("masses", [None, [1.0, 3.0, 0.5, 2.0]])
def test_points_integrate_without_bias(masses: list[float] | None) -> None:
    """Each point is uniform, or weighted by the inverse of its density: the mean over the offset is the integral."""
    offset = (torch.arange(20000, dtype=F64) + 0.5) / 20000
    points = Points.low_discrepancy(offset, 4) if masses is None else Points.importance(offset, 4, masses)
    for power in (0, 1, 2, 5):
        assert float((points.weight * points.u**power).sum(1).mean()) == pytest.approx(1 / (power + 1), rel=2e-4)
    one = Points.low_discrepancy(offset[:1], 4).u.sort().values[0]
    torch.testing.assert_close(one.diff(), torch.full((3,), 0.25, dtype=F64))


def test_the_continuous_bound_of_discrete_data() -> None:
    """With the decoder of VDM, on data of 5 values and the exact denoiser of each: a bound above the entropy."""
    oracle = GaussianOracle(0.0, 0.3)
    x0 = torch.linspace(-1, 1, 5)[:, None].repeat(40, 3)
    source = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source, dtype=x.dtype)

    points = Points.low_discrepancy(torch.rand(len(x0), generator=source), 16)
    clean, noisy = TRIG.level(0.05), TRIG.level(0.98)
    found = continuous_bound(oracle, x0, clean, noisy, noise=noise, points=points, decoder=Categorical(5))
    assert 0 < float(found.decoder.mean()) < 0.1
    assert float(found.bits_per_dim.mean()) > math.log2(5) * 0.9
    assert found.standard_error > 0


def test_learned_variances_reach_the_decoder_of_samples() -> None:
    chain = Chain(tuple(build("grid", "trailing").levels(Linear(), 10)), "learned")
    estimate = GaussianOracle(0.0, 1.0)(torch.ones(2, 1), chain.level(5)).with_aux(
        variance_fraction=torch.tensor([[0.0], [0.3]])
    )
    t, s = chain.level(5), chain.level(4)
    want = interpolated(
        float(transition.posterior(t, s)), float(transition.spread(t, s)), estimate.aux["variance_fraction"]
    )
    torch.testing.assert_close(torch.as_tensor(chain.std(5, estimate)).float(), want)


def test_mistakes_are_named() -> None:
    levels = tuple(build("grid", "trailing").levels(Linear(), 5))
    with pytest.raises(UsageError, match="noisiest first"):
        Chain(levels[::-1])
    with pytest.raises(UsageError, match="optimal requires the mean squared errors of 5 layers"):
        Chain(levels, "optimal")
    with pytest.raises(UsageError, match="continuous, so it has no full chain"):
        Chain.full(TRIG)
    oracle = GaussianOracle(0.0, 1.0)
    with pytest.raises(UsageError, match="requires data with the values") as caught:
        variational_bound(oracle, Chain(levels), torch.full((1, 1), 0.1234), torch.randn_like, Discretised(17))
    assert caught.value.code == "DK521"
    options = {"noise": torch.randn_like, "points": Points.gauss_legendre(1, 3), "decoder": Density()}
    with pytest.raises(UsageError, match="less noise at `clean`"):
        continuous_bound(oracle, torch.zeros(1, 1), TRIG.level(0.9), TRIG.level(0.1), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="requires variance_fraction"):
        variational_bound(oracle, Chain(levels, "learned"), torch.zeros(1, 1), torch.randn_like, Density())
    with pytest.raises(UsageError, match="a positive mass for each part"):
        Points.importance(torch.zeros(1), 4, [1.0, 0.0])
    with pytest.raises(UsageError, match="no example"):
        fit_errors(oracle, Chain(levels), [])
