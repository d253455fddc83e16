"""Laws of the components of DDPM: schedules, predictions, the ancestral sampler, the losses and their weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffkit.denoiser import Model
from diffkit.level import Level
from diffkit.oracles import GaussianOracle, OracleNetwork
from diffkit.schedule import Discrete, Schedule
from diffkit.testing import Affine, Case, LawResult, NotApplicable, fixtures, law, probe
from diffkit.testing.affine import compare_steps, first_order, forward_variance, posterior_variance
from diffkit.testing.by_kind.objective import FixedRandomStreams, design, settings, uniforms
from diffkit.testing.by_kind.parameterization import compare_target
from diffkit.testing.by_kind.weighting import compare_weight, places, snr

HO = "Ho et al. 2020 (arXiv:2006.11239)"


def compare_betas(case: Case, root: float, result: LawResult) -> None:
    """Compare the betas of a schedule with those whose `root`-th power rises linearly from beta_start to beta_end.

    Args:
        case: the schedule.
        root: the power: 1 for linear betas, 1/2 for betas with a linear root.
        result: receives the errors.

    Raises:
        NotApplicable: the schedule is not discrete.
    """
    schedule = case.component
    if not isinstance(schedule, Discrete):
        raise NotApplicable("the schedule is not discrete")
    T = schedule.steps
    first, last = (float(getattr(schedule, f"beta_{end}")) ** root for end in ("start", "end"))
    for t in range(1, T + 1):
        want = (first + (last - first) * (t - 1) / max(1, T - 1)) ** (1.0 / root)
        result.note(
            abs(float(schedule.betas[t - 1]) / want - 1.0), f"beta_{t} = {schedule.betas[t - 1]}", f"{want:.17g}"
        )


@law(
    "schedule",
    statement="beta_t = beta_start + (beta_end - beta_start) (t - 1) / (T - 1)",
    source=f"{HO}, sec. 4",
    tolerance=1e-12,
    only=("linear",),
)
def linear_betas(case: Case, result: LawResult) -> None:
    """The betas are compared in float64."""
    compare_betas(case, 1.0, result)


@law(
    "schedule",
    statement="sqrt(beta_t) is linear from sqrt(beta_start) to sqrt(beta_end)",
    source="Rombach et al. 2022 (arXiv:2112.10752), code",
    tolerance=1e-12,
    only=("scaled-linear",),
)
def scaled_linear_betas(case: Case, result: LawResult) -> None:
    """The betas are compared in float64."""
    compare_betas(case, 0.5, result)


@law(
    "parameterization",
    statement="the target is eps",
    source=f"{HO}, eq. 11",
    tolerance=1e-10,
    identities="C",
    only=("eps",),
)
def eps_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""
    compare_target(case, result, lambda x0, eps, a, s: eps)


@law(
    "parameterization",
    statement="the target is x0",
    source=f"{HO}, sec. 3.2",
    tolerance=1e-10,
    identities="C",
    only=("x0",),
)
def x0_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""
    compare_target(case, result, lambda x0, eps, a, s: x0)


@law(
    "parameterization",
    statement="the target is the mean of q(x_{t-1} | x_t, x0)",
    source=f"{HO}, eq. 7",
    tolerance=1e-9,
    identities="B1",
    only=("mu",),
)
def mu_target(case: Case, result: LawResult) -> None:
    """c0 x0 + cx x_t, c0 = sqrt(abar_{t-1}) beta_t / (1 - abar_t), cx = sqrt(a_t) (1 - abar_{t-1}) / (1 - abar_t)."""
    p = case.component
    schedule = p.schedule
    betas = schedule.betas
    abar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)])
    x0, eps = case.normal(3, 2, stream="x0"), case.normal(3, 2, stream="eps")
    for t in (1, 2, 3, len(betas) // 2, len(betas)):
        beta, now, before = float(betas[t - 1]), float(abar[t]), float(abar[t - 1])
        level = schedule.level(float(t))
        x = level.add_noise(x0, eps)
        want = before**0.5 * beta / (1 - now) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * x
        result.compare(p.target(x0, eps, level), want, f"target at t = {t}")


@law(
    "sampler",
    statement="A, b, Q are those of the posterior mean with variance beta tilde, beta, or their geometric mean",
    source=f"{HO}, Algorithm 2 and sec. 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15",
    tolerance=1e-10,
    identities="B1 B2 D5 D6",
    only=("ancestral",),
)
def ancestral_law(case: Case, result: LawResult) -> None:
    """The mean is that of q(x_s | x_t, x0*) for every variance; the last step, to clean data, adds no noise."""
    variance_fraction = 0.3

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        small = posterior_variance(t, s)
        if s.is_clean:
            return first_order(oracle, t, s)
        large = forward_variance(t, s)
        variance = {
            "small": small,
            "large": large,
            "learned": math.exp(variance_fraction * math.log(large) + (1.0 - variance_fraction) * math.log(small)),
        }[case.component.variance]
        return first_order(oracle, t, s, math.sqrt(small), math.sqrt(variance))

    compare_steps(case, result, step, variance_fraction)


@law(
    "sampler",
    statement="variance `large` keeps N(0, I) exactly at every step; `small` is the posterior of one point",
    source=f"{HO}, sec. 3.2",
    tolerance=1e-10,
    identities="D6 D7",
    only=("ancestral",),
)
def ancestral_extremes(case: Case, result: LawResult) -> None:
    """The true reverse variance V_s beta / V_t is beta for data of unit variance, and beta tilde for one point."""
    sampler, variance = case.component, case.component.variance
    if variance not in ("small", "large"):
        raise NotApplicable("the variance is neither small nor large")
    large = variance == "large"
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    oracle = GaussianOracle(zero, 1.0 if large else 0.0)
    levels = fixtures.path(9, clean=False)
    run = probe(oracle, sampler, levels, 2)
    start, end = (eye if large else float(level.sigma) ** 2 * eye for level in (levels[0], levels[-1]))
    result.compare(run.A @ start @ run.A.T + run.Q, end, "covariance after 9 steps")


@law(
    "objective",
    statement="at the exact denoiser the loss is its minimum, E|target - y*|^2 / D",
    source="identities D3",
    tolerance=1e-5,
    identities="D3",
    only=("simple",),
)
def simple_value(case: Case, result: LawResult) -> None:
    """Without a weighting the loss is (det / sigma)^2 mmse, averaged over dimensions or, if `reduction` is sum,
    summed.
    """
    objective = case.component
    if objective.weighting is not None:
        raise NotApplicable("the objective has a weighting")
    x0, eps = design()
    oracle = fixtures.gaussian()
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            model = Model(OracleNetwork(fixtures.GaussianData(), schedule, p), p, schedule)
            loss = objective(model, x0, FixedRandomStreams(eps, uniform))
            want = oracle.minimum_loss(p, schedule.level(float(loss.t[0])))
            want = want / 2 if objective.reduction == "mean" else want
            result.note(abs(float(loss.mean) / want - 1.0), f"loss at t = {float(loss.t[0]):.5g}", f"{want:.9g}")


@law(
    "objective",
    statement="at the exact denoiser T L_{t-1} / D is T/2 mean(log(std^2 / beta tilde) + v / std^2 - 1)",
    source=f"{HO}, eq. 8; identities D10",
    tolerance=1e-4,
    identities="D7 D10 D10b",
    only=("vlb",),
)
def vlb_terms(case: Case, result: LawResult) -> None:
    """v = V_{t-1} beta_t / V_t is the true reverse variance; at t = 1 the term is that of the decoder's density."""
    objective = case.component
    x0, eps = design()
    s = fixtures.gaussian().variances
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            model = Model(OracleNetwork(fixtures.GaussianData(), schedule, p), p, schedule)
            loss = objective(model, x0, FixedRandomStreams(eps, uniform))
            t = int(loss.t[0])
            want = float(bound_term(schedule, t, s, objective.variance).mean())
            result.compare(float(loss.mean), want, f"T L at t = {t}, variance {objective.variance}", 1.0)


def bound_term(schedule: Schedule, t: int, s: Tensor, variance: str) -> Tensor:
    """Return T times the term t of the variational bound at the exact denoiser of Gaussian data.

    Args:
        schedule: a discrete schedule of T steps.
        t: the time, 1..T.
        s: (D,), the variances of the data.
        variance: the variance of the sampler: "small", "large", or "learned" for the geometric mean of both.

    Returns:
        (D,), in nats.
    """
    T = schedule.steps
    assert T is not None
    abar = [1.0, *(float(schedule.level(float(k)).alpha) ** 2 for k in range(1, max(t, 2) + 1))]
    beta = 1.0 - abar[t] / abar[t - 1]

    def tilde(k: int) -> float:
        return (1.0 - abar[k] / abar[k - 1]) * (1.0 - abar[k - 1]) / (1.0 - abar[k])

    small = tilde(max(t, 2))
    # A network that answers 0 for the fraction decodes to 1/2: the geometric mean.
    std2: float = {"small": small, "large": beta, "learned": (small * beta) ** 0.5}[variance]
    before, now = abar[t - 1] * s + 1.0 - abar[t - 1], abar[t] * s + 1.0 - abar[t]
    v: Tensor = before * beta / now
    if t == 1:
        return 0.5 * T * (math.log(2.0 * math.pi * std2) + v / std2)
    return 0.5 * T * (math.log(std2 / tilde(t)) + v / std2 - 1.0)


@law("weighting", statement="w = 1", source="the definition", tolerance=1e-12, only=("uniform",))
def uniform_formula(case: Case, result: LawResult) -> None:
    """The squared error of x0 is not weighted."""
    compare_weight(case, result, lambda level: torch.ones_like(torch.as_tensor(level.sigma)))


@law(
    "weighting",
    statement="w = snr",
    source=f"{HO}, eq. 14",
    tolerance=1e-9,
    identities="C4",
    only=("snr",),
)
def snr_formula(case: Case, result: LawResult) -> None:
    """w = snr on the error of x0 is a unit weight on the error of eps, as in L_simple."""
    compare_weight(case, result, snr)


@law(
    "weighting",
    statement="w = (snr_{t-1} - snr_t) / 2 for t > 1, 1 / (2 beta tilde_2) at t = 1; -(1/2) d snr / dt on curves",
    source="Kingma et al. 2021 (arXiv:2107.00630), eq. 13, 17",
    tolerance=1e-6,
    identities="C4 D13",
    only=("vlb",),
)
def vlb_formula(case: Case, result: LawResult) -> None:
    """w is the coefficient of |x0 - x0_hat|^2 in the KL terms with variance beta tilde."""
    for schedule, t in places(case):
        got = torch.as_tensor(case.component(schedule.level(t))).tolist()
        for at, w in zip(t.tolist(), got, strict=True):
            if schedule.steps is None:
                d = 1e-5 * (schedule.t_noise - schedule.t_clean)
                want = -0.25 * (float(schedule.level(at + d).snr) - float(schedule.level(at - d).snr)) / d
                result.note(0.01 * abs(w / want - 1.0), f"w({at:.4g}) = {w:.9g}", f"{want:.9g}")
                continue
            if at == 1:
                one, two = schedule.level(1.0), schedule.level(2.0)
                beta_tilde = float(one.sigma) ** 2 * (1.0 - float(two.snr) / float(one.snr))
                want = 0.5 / beta_tilde
            else:
                want = 0.5 * (float(schedule.level(at - 1.0).snr) - float(schedule.level(float(at)).snr))
            result.note(abs(w / want - 1.0), f"w({at}) = {w:.9g}", f"{want:.9g}")
