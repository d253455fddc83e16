"""Laws of the components of Song et al. 2021: three curves, the score, and exact steps of the reverse SDE."""

from __future__ import annotations

import math

import torch

from diffkit.level import Level
from diffkit.oracles import GaussianOracle
from diffkit.schedule import Schedule
from diffkit.testing import Affine, Case, LawResult, NotApplicable, law
from diffkit.testing.affine import compare_steps, first_order, forward_variance
from diffkit.testing.by_kind.parameterization import compare_target
from diffkit.testing.by_kind.schedule import sample_times
from diffkit.testing.by_kind.weighting import places

SONG = "Song et al. 2021 (arXiv:2011.13456)"


@law(
    "schedule",
    statement="alpha^2 + sigma^2 = 1 and -2 log alpha is a quadratic in t, 0 at t = 0: beta is linear",
    source=f"{SONG}, eq. 32, 33",
    tolerance=1e-9,
    identities="A2 A6",
    only=("vp",),
)
def vp_curve(case: Case, result: LawResult) -> None:
    """B = int beta = b0 t + (b1 - b0) t^2 / 2; alpha = exp(-B / 2), sigma = sqrt(1 - exp(-B))."""
    schedule: Schedule = case.component
    compare_quadratic(schedule, result)
    for t in sample_times(case):
        level = schedule.level(t)
        result.compare(float(level.alpha) ** 2 + float(level.sigma) ** 2, 1.0, f"alpha^2 + sigma^2 at {t:.4g}")


@law(
    "schedule",
    statement="sigma = 1 - alpha^2, and -2 log alpha is a quadratic in t",
    source=f"{SONG}, eq. 29",
    tolerance=1e-9,
    identities="A6",
    only=("sub-vp",),
)
def sub_vp_curve(case: Case, result: LawResult) -> None:
    """sigma is 1 - exp(-B), not its square root."""
    schedule: Schedule = case.component
    compare_quadratic(schedule, result)
    for t in sample_times(case):
        level = schedule.level(t)
        result.compare(float(level.sigma), -math.expm1(2.0 * math.log(float(level.alpha))), f"sigma at {t:.4g}", 1e-6)


@law(
    "schedule",
    statement="alpha = 1, and log sigma is linear in t",
    source=f"{SONG}, eq. 30, 31",
    tolerance=1e-9,
    identities="A6",
    only=("ve",),
)
def ve_curve(case: Case, result: LawResult) -> None:
    """Variance exploding: the signal is not scaled."""
    schedule: Schedule = case.component
    low, high = (math.log(float(schedule.level(t).sigma)) for t in (schedule.t_clean, schedule.t_noise))
    for t in sample_times(case):
        level, u = schedule.level(t), (t - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)
        result.compare(float(level.alpha), 1.0, f"alpha({t:.4g})")
        result.compare(math.log(float(level.sigma)), low + u * (high - low), f"log sigma({t:.4g})")


def compare_quadratic(schedule: Schedule, result: LawResult) -> None:
    low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
    t = torch.tensor([low + span * u for u in (0.1, 0.3, 0.5, 0.8, 1.0)], dtype=torch.float64)
    level = schedule.level(t)
    B = -2.0 * torch.log(torch.as_tensor(level.alpha))
    basis = torch.stack([t, t * t], 1)
    fit = basis @ torch.linalg.lstsq(basis, B[:, None]).solution
    result.compare(fit[:, 0], B, "-2 log alpha, as b t + c t^2")


@law(
    "parameterization",
    statement="the target is -eps / sigma",
    source=SONG,
    tolerance=1e-10,
    identities="C",
    only=("score",),
)
def score_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""
    compare_target(case, result, lambda x0, eps, a, s: -eps / s)


def _score_step(oracle: GaussianOracle, t: Level, keep: float, gain: float, variance: float) -> Affine:
    """x -> keep x + gain score(x) + noise, score = -S_t^-1 (x - alpha m)."""
    a, s = float(t.alpha), float(t.sigma)
    eye = torch.eye(oracle.dimensions, dtype=torch.float64)
    inverse = torch.linalg.inv(a**2 * oracle.matrix + s**2 * eye)
    return Affine(keep * eye - gain * inverse, gain * a * inverse @ oracle.mean, variance * eye)


def _reverse_step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
    """x -> (2 - a) x + b^2 score + b z, a = alpha_{t|s}, b = sigma_{t|s}; to clean data x0*."""
    if s.is_clean:
        return first_order(oracle, t, s)
    return _score_step(oracle, t, 2.0 - float(t.alpha) / float(s.alpha), forward_variance(t, s), forward_variance(t, s))


@law(
    "sampler",
    statement="x_s = (2 - a) x + b^2 score + b z, where x_t = a x_s + b z",
    source=f"{SONG}, eq. 46",
    tolerance=1e-10,
    identities="D5",
    only=("reverse-diffusion",),
)
def reverse_diffusion_law(case: Case, result: LawResult) -> None:
    """The step is the forward step reversed to first order; the last step returns x0* without noise."""
    compare_steps(case, result, _reverse_step)


@law(
    "sampler",
    statement="x_s = x - x int f + score int g^2 + z sqrt(int g^2)",
    source=f"{SONG}, eq. 6",
    tolerance=1e-9,
    identities="D5 D15",
    only=("euler-maruyama",),
)
def euler_maruyama_law(case: Case, result: LawResult) -> None:
    """On variance-preserving levels int f = -int beta / 2 and int g^2 = int beta = 2 log(alpha_s / alpha_t)."""

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        if s.is_clean:
            return first_order(oracle, t, s)
        total = 2.0 * math.log(float(s.alpha) / float(t.alpha))
        return _score_step(oracle, t, 1.0 + 0.5 * total, total, total)

    compare_steps(case, result, step)


@law(
    "sampler",
    statement="annealed Langevin steps are x + d score + sqrt(2 d) z at the new level, d = 2 (snr sigma)^2",
    source=f"{SONG}, Algorithms 4 and 5",
    tolerance=1e-9,
    identities="F6",
    only=("predictor-corrector",),
)
def langevin_law(case: Case, result: LawResult) -> None:
    """On N(m, S) the stationary variance of Langevin steps is S_s / (1 - d / (2 S_s)): the factor of the noise is
    sqrt(2 d).
    """
    sampler = case.component
    if sampler.corrector != "annealed":
        raise NotApplicable("the size of a step depends on the noise")
    if sampler.predictor is None:
        raise NotApplicable("there is no predictor")

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        whole = _reverse_step(oracle, t, s)
        d = 2.0 * (sampler.ratio * float(s.sigma)) ** 2
        for _ in range(0 if s.is_clean else sampler.rounds):
            whole = whole.then(_score_step(oracle, s, 1.0, d, 2.0 * d))
        return whole

    compare_steps(case, result, step)


@law(
    "weighting",
    statement="w = -d snr / dt = g^2 snr / sigma^2",
    source="Song et al. 2021 (arXiv:2101.09258), theorem 1",
    tolerance=1e-5,
    identities="D13 D14",
    only=("likelihood",),
)
def likelihood_formula(case: Case, result: LawResult) -> None:
    """-d snr / dt is compared with a central difference of snr."""
    for schedule, t in places(case):
        got = torch.as_tensor(case.component(schedule.level(t))).tolist()
        if schedule.steps is not None:
            continue
        for at, w in zip(t.tolist(), got, strict=True):
            d = 1e-5 * (at - schedule.t_clean)
            want = -0.5 * (float(schedule.level(at + d).snr) - float(schedule.level(at - d).snr)) / d
            result.note(abs(w / want - 1.0), f"w({at:.4g}) = {w:.9g}", f"{want:.9g}")
