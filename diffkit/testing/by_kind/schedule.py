"""Laws of every schedule."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor

from diffkit import transition
from diffkit.level import Level
from diffkit.schedule import Discrete, Schedule, sde

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, expit, for_variants, reference_of
from ..variants import in_turn, variants

KINGMA = "Kingma et al. 2021 (arXiv:2107.00630)"
HO = "Ho et al. 2020 (arXiv:2006.11239)"


def sample_times(case: Case) -> list[float]:
    """Return times to test, cleanest first: whole ones and some between them, without the clean end."""
    schedule: Schedule = case.component
    low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
    if schedule.steps is not None:
        T = schedule.steps
        whole = range(1, T + 1) if case.deep else (1, 2, 3, 10, T // 3, T // 2, T - 1, T)
        between = (0.37, 1.5, T / 2 + 0.37, T - 0.63)
        return sorted({float(t) for t in (*whole, *between) if 0 < t <= T})
    count = 257 if case.deep else 17
    return [low + span * (i / count) ** 1.5 for i in range(1, count + 1)]


def inner(case: Case) -> list[float]:
    """Return the times of `sample_times` without the ends, moved off whole steps, at which the curve bends."""
    schedule: Schedule = case.component
    if schedule.steps is not None:
        return [t + 0.5 for t in sample_times(case) if t + 0.5 < schedule.t_noise and t == int(t)] or [0.5]
    return sample_times(case)[:-1]


@law("schedule", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-7)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of t, fraction or steps, or a table {t: ...}: a pair (alpha, sigma); or a number, half_logsnr, which
    means a variance-preserving schedule.

    The errors of alpha and sigma are relative. A discrete schedule is compared at whole times.
    """
    schedule: Schedule = case.component
    stated = reference_of(case)
    low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
    if callable(stated):
        times = [t for t in sample_times(case) if schedule.steps is None or t == int(t)]
        values = {t: {"t": t, "fraction": (t - low) / span, "steps": schedule.steps} for t in times}
        points = {t: evaluate(stated, value) for t, value in values.items()}
    else:
        points = stated
    for t, want in points.items():
        level = schedule.level(float(t))
        pair = want if isinstance(want, tuple) else (expit(2.0 * want) ** 0.5, expit(-2.0 * want) ** 0.5)
        for name, value in zip(("alpha", "sigma"), pair, strict=True):
            got = float(getattr(level, name))
            result.note(abs(got - value) / max(abs(value), 1e-9), f"{name}({t:.6g}) = {got:.10g}", f"{value:.10g}")


@law(
    "schedule",
    statement="the signal-to-noise ratio falls strictly from t_clean to t_noise",
    source=f"{KINGMA}, sec. 3.1",
    tolerance=0.0,
    identities="A3",
)
def falls(case: Case, result: LawResult) -> None:
    """q(x_t | x_s) is a density only if the ratio falls: sigma_{t|s}^2 = sigma_t^2 (1 - SNR_t / SNR_s) > 0 for s <
    t.
    """
    schedule: Schedule = case.component
    steps = _rises(schedule)
    width = (schedule.t_noise - schedule.t_clean) / len(steps)
    bad = torch.nonzero(~(steps < 0)).flatten()
    at = schedule.t_clean + width * (int(bad[0]) if len(bad) else 0)
    result.note(float(len(bad)), f"t = {at:.6g} to {at + width:.6g}", "a smaller SNR at the later time")


def _rises(schedule: Schedule) -> Tensor:
    """Return by how much half_logsnr rises in each of many equal steps of t; all are negative in a schedule."""
    count = (schedule.steps or 512) * 2
    t = torch.linspace(schedule.t_clean, schedule.t_noise, count + 1, dtype=torch.float64)
    clock = torch.as_tensor(schedule.level(t).half_logsnr)
    return clock[1:] - clock[:-1]


@law(
    "schedule",
    statement="time(level(t)) = t, for levels of any scale, floats and tensors",
    source="the definition of Schedule.time",
    tolerance=1e-7,
    identities="A7",
)
def inverse(case: Case, result: LawResult) -> None:
    """The signal-to-noise ratio falls strictly, so it determines t; scaling x changes no ratio.

    With other values of the options level(time(level)) is compared with the level, as an end may be steep there. A
    combination of options with which the ratio does not fall is left out.
    """
    schedule: Schedule = case.component
    span = schedule.t_noise - schedule.t_clean
    for t in sample_times(case):
        level = schedule.level(t)
        for scale in (1.0, 3.7):
            got = schedule.time(Level(level.alpha * scale, level.sigma * scale))
            result.compare(got, t, f"time(level({t:.6g}) scaled by {scale})", span)
            if schedule.steps is not None and t == int(t):
                result.holds(float(got) == t, f"time(level({t:.0f})) = {got!r}", f"the whole number {t:.0f}")
    many = torch.tensor(sample_times(case), dtype=torch.float64)
    result.compare(schedule.time(schedule.level(many)), many, "time(level(t)) of a tensor", span)
    for one in in_turn(case, result, islice(variants(case), 1, None)):
        other: Schedule = one.component
        if bool((_rises(other) < 0).all()):
            for t in sample_times(one):
                level = other.level(t)
                again = other.level(other.time(Level(level.alpha * 3.7, level.sigma * 3.7)))
                result.compare(again.angle, level.angle, f"the angle of level(time(level({t:.6g})))")


@law(
    "schedule",
    statement="level(t) is the same for a float and for a tensor (B,), also for whole times, in float32 or float64",
    source="design.md, numerics",
    tolerance=1e-9,
    identities="A7",
)
def float_tensor(case: Case, result: LawResult) -> None:
    """Errors of alpha and sigma are relative."""
    schedule: Schedule = case.component
    times = sample_times(case)
    many = torch.tensor(times, dtype=torch.float64)
    got = schedule.level(many)
    cases = [(times, got)]
    if schedule.steps is not None:
        whole = [t for t in times if t == int(t)]
        cases.append((whole, schedule.level(torch.tensor(whole).long())))
    for which, level in cases:
        for name in ("alpha", "sigma"):
            values = torch.as_tensor(getattr(level, name))
            result.holds(
                values.dtype in (torch.float32, torch.float64) and values.shape == (len(which),),
                f"{name} of {len(which)} times is {values.dtype} {tuple(values.shape)}",
                "float32 or float64 of the same shape",
            )
            for t, value in zip(which, values.tolist(), strict=True):
                want = float(getattr(schedule.level(t), name))
                result.note(abs(value - want) / max(abs(want), 1e-12), f"{name}({t:.6g}) = {value!r}", f"{want!r}")


@law(
    "schedule",
    statement="levels are computed in float64: most have no float32 representation",
    source="tests/pains.md, 8; identities K, float32",
    tolerance=0.2,
    identities="A1",
)
def double(case: Case, result: LawResult) -> None:
    """Numbers from a float32 table always fit in float32; numbers computed in float64 fit with probability 2^-29."""
    schedule: Schedule = case.component
    times = sample_times(case)
    for form, levels in (
        ("float", [schedule.level(t) for t in times]),
        ("tensor", [schedule.level(torch.tensor([t], dtype=torch.float64)) for t in times]),
    ):
        for name in ("alpha", "sigma"):
            values = torch.tensor([float(getattr(level, name)) for level in levels], dtype=torch.float64)
            if bool((values == values[0]).all()):
                continue
            inner_values = values.double()[
                (values != 0) & (values != 1) & ~torch.isin(values, torch.tensor(times).double())
            ]
            short = inner_values == inner_values.float().double()
            if len(inner_values):
                result.note(float(short.double().mean()), f"{name} of {form} times that are float32 numbers", "few")


@law(
    "schedule",
    statement="clean = level(t_clean) without noise; noise = level(t_noise); 0 <= alpha, 0 <= sigma, both finite",
    source="the definition of Schedule",
    tolerance=0.0,
)
def ends(case: Case, result: LawResult) -> None:
    """Sampling starts at `noise` and ends at `clean`."""
    schedule: Schedule = case.component
    first, last = schedule.level(schedule.t_clean), schedule.level(schedule.t_noise)
    result.holds(schedule.t_clean < schedule.t_noise, f"t_clean = {schedule.t_clean}", f"< {schedule.t_noise}")
    result.holds(schedule.clean == Level(first.alpha, 0.0), f"clean = {schedule.clean}", f"alpha = {first.alpha}")
    result.holds(schedule.noise == last, f"noise = {schedule.noise}", f"{last}")
    for t in (schedule.t_clean, *sample_times(case)):
        level = schedule.level(t)
        for value in (level.alpha, level.sigma):
            fine = not isinstance(value, Tensor) and 0.0 <= value < math.inf
            result.holds(fine, f"level({t:.6g}) = {level}", "finite Python floats >= 0")
    if schedule.steps is not None:
        result.holds(first == Level(1.0, 0.0), f"level(0) = {first}", "clean data, alpha = 1 and sigma = 0")
        result.holds(schedule.t_noise == schedule.steps, f"t_noise = {schedule.t_noise}", f"T = {schedule.steps}")


@law(
    "schedule",
    statement="index(t) rises strictly, for floats and tensors; on discrete schedules it is t - 1",
    source=f"{HO}, code; identities K, off-by-one",
    tolerance=1e-9,
)
def index(case: Case, result: LawResult) -> None:
    """Papers count t = 1..T, networks count 0..T-1."""
    schedule: Schedule = case.component
    times = sample_times(case)
    values = [float(schedule.index(t)) for t in times]
    for t, a, b in zip(times, values, values[1:], strict=False):
        result.holds(b > a, f"index({t:.6g}) = {a}, then {b}", "a larger number")
    many = torch.as_tensor(schedule.index(torch.tensor(times, dtype=torch.float64)))
    result.compare(many, torch.tensor(values, dtype=torch.float64), "index of a tensor")
    if schedule.steps is not None:
        for t, value in zip(times, values, strict=True):
            result.compare(value, t - 1.0, f"index({t:.6g})")


@law(
    "schedule",
    statement="transitions compose: q(x_t|x_s) after q(x_s|x_r) is q(x_t|x_r); the posterior obeys Bayes' rule",
    source=f"{KINGMA}, app. A; {HO}, eq. 6, 7",
    tolerance=1e-9,
    identities="A4 A5 A14 B2 B3",
)
def composition(case: Case, result: LawResult) -> None:
    """Chapman-Kolmogorov on the variances, and the joint covariance of (x_s, x_t) given x0 conditioned on x_t."""
    schedule: Schedule = case.component
    times = [t for t in sample_times(case) if not schedule.level(t).is_noise][:: 1 if case.deep else 2]
    for r, s, t in zip(times, times[1:], times[2:], strict=False):
        R, S, N = schedule.level(r), schedule.level(s), schedule.level(t)
        at = f"r, s, t = {r:.4g}, {s:.4g}, {t:.4g}"
        down = float(transition.decay(N, S))
        result.compare(float(transition.decay(N, R)), down * float(transition.decay(S, R)), f"decay, {at}", 1e-3)
        variance = float(transition.spread(N, S)) ** 2
        scale = float(N.sigma) ** 2
        far = float(transition.spread(N, R)) ** 2
        result.compare(far, down**2 * float(transition.spread(S, R)) ** 2 + variance, f"sigma_t|r^2, {at}", scale)
        result.compare(variance, scale - (down * float(S.sigma)) ** 2, f"sigma_t|s^2, {at}", scale)
        result.compare(variance, scale - (float(N.alpha) / float(S.alpha) * float(S.sigma)) ** 2, at, scale)
        tilde = float(transition.posterior(N, S)) ** 2
        result.compare(tilde, float(S.sigma) ** 2 * variance / scale, f"beta tilde, {at}", float(S.sigma) ** 2)
        P, Q = (float(v) for v in transition.posterior_mean(N, S))
        result.compare(P * float(N.alpha) + Q, float(S.alpha), f"P alpha_t + Q, {at}", 1e-3)
        result.compare(P * scale, down * float(S.sigma) ** 2, f"P sigma_t^2 = Cov(x_s, x_t | x0), {at}", 1e-3)


@law(
    "schedule",
    statement="f = d log alpha / dt and g^2 = -2 sigma^2 d half_logsnr / dt, by automatic differentiation; g^2 > 0",
    source="Song et al. 2021 (arXiv:2011.13456), eq. 9-12",
    tolerance=2e-5,
    identities="A6 A12",
)
def sde_coefficients(case: Case, result: LawResult) -> None:
    """f and g^2 are compared with central differences; both follow from alpha and sigma."""
    schedule: Schedule = case.component
    times = [t for t in inner(case) if not schedule.level(t).is_noise]
    f, g2 = sde(schedule, torch.tensor(times, dtype=torch.float64))
    largest = 1e-5 * (1.0 if schedule.steps is not None else schedule.t_noise - schedule.t_clean)
    for t, drift, square in zip(times, f.tolist(), g2.tolist(), strict=True):
        d = min(largest, 1e-3 * (t - schedule.t_clean), 1e-3 * (schedule.t_noise - t))
        a, b, c = schedule.level(t - d), schedule.level(t), schedule.level(t + d)
        slope = (math.log(float(c.alpha)) - math.log(float(a.alpha))) / (2 * d)
        fall = (float(c.half_logsnr) - float(a.half_logsnr)) / (2 * d)
        result.compare(drift, slope, f"f({t:.6g})", 1e-2)
        result.compare(square, -2.0 * float(b.sigma) ** 2 * fall, f"g^2({t:.6g})", 1e-3)
        result.holds(square > 0, f"g^2({t:.6g}) = {square:.6g}", "> 0")


@law(
    "schedule",
    statement="alpha^2 = prod(1 - beta) and alpha^2 + sigma^2 = 1, also between whole steps",
    source=f"{HO}, sec. 2",
    tolerance=1e-12,
    identities="A1 A2",
)
def product(case: Case, result: LawResult) -> None:
    """The product is computed by an exact sum of logarithms; discrete schedules are variance preserving."""
    schedule = case.component
    if not isinstance(schedule, Discrete):
        raise NotApplicable("the schedule is not discrete")
    logs = [math.log1p(-float(beta)) if beta < 1 else -math.inf for beta in schedule.betas]
    for t in sample_times(case):
        level = schedule.level(t)
        result.compare(float(level.alpha) ** 2 + float(level.sigma) ** 2, 1.0, f"alpha^2 + sigma^2 at t = {t:.6g}")
        if t == int(t):
            total = math.fsum(logs[: int(t)])
            want = math.exp(total) if total > -math.inf else 0.0
            result.note(
                abs(float(level.alpha) ** 2 / want - 1.0) if want else float(level.alpha), f"alpha_bar({t:.0f})"
            )
            noise = -math.expm1(total)
            result.note(abs(float(level.sigma) ** 2 / noise - 1.0), f"1 - alpha_bar({t:.0f})", f"{noise:.17g}")
        else:
            around = [float(schedule.level(float(k)).angle) for k in (int(t), int(t) + 1)]
            want = around[0] + (t - int(t)) * (around[1] - around[0])
            result.compare(float(level.angle), want, f"angle({t:.6g}), linear between steps")


@law(
    "schedule",
    statement="coefficients for half-precision x are float32, and sigma is positive at every time",
    source="tests/pains.md, 8",
    tolerance=0.0,
)
def half_precision(case: Case, result: LawResult) -> None:
    """In bfloat16, with 8 bits, 1 - alpha_bar would round to 0 in the first steps."""
    schedule: Schedule = case.component
    t = torch.tensor(sample_times(case), dtype=torch.float64)
    like = schedule.level(t).like(torch.zeros(len(t), 1, dtype=torch.bfloat16))
    sigma = torch.as_tensor(like.sigma)
    result.holds(sigma.dtype == torch.float32, f"sigma for bfloat16 x is {sigma.dtype}", "torch.float32")
    result.holds(bool((sigma > 0).all()), f"least sigma for bfloat16 x: {float(sigma.min()):.3g}", "> 0")


@law(
    "schedule",
    statement="level and time store nothing: two calls return the same, and the argument is not changed",
    source="tests/pains.md, 18",
    tolerance=0.0,
)
def pure(case: Case, result: LawResult) -> None:
    """Several runs may share one schedule."""
    schedule: Schedule = case.component
    t = torch.tensor(sample_times(case), dtype=torch.float64)
    kept = t.clone()
    first, again = schedule.level(t), schedule.level(t)
    for name in ("alpha", "sigma"):
        result.compare(torch.as_tensor(getattr(again, name)), torch.as_tensor(getattr(first, name)), f"{name}, again")
    result.compare(t, kept, "t after level(t)")
