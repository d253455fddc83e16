"""Laws of training times."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.schedule import Schedule
from diffkit.times import Times

from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, level_values, names_of, reference_of

_P7 = np.polynomial.legendre.Legendre.basis(7)
_INNER = np.sort(_P7.deriv().roots().real)
NODES = torch.tensor([-1.0, *_INNER, 1.0], dtype=torch.float64)
WEIGHTS = 2.0 / (56.0 * torch.from_numpy(_P7(NODES.numpy())) ** 2)
"""The quadrature of Gauss and Lobatto on [-1, 1] with 8 nodes: it includes both ends, so that it misses no kink."""
SCHEDULES: Mapping[str, Schedule] = {
    "discrete": fixtures.discrete(),
    "short": fixtures.discrete(7),
    "curve": fixtures.TRIG,
    "edm": fixtures.EXPLODING,
}


def fresh(case: Case) -> Times:
    """Return a copy without learned state."""
    times: Times = copy.deepcopy(case.component)
    return times


def evenly_spread(count: int, seed: int = 1) -> Tensor:
    """Return the midpoints of `count` equal parts of [0, 1], in a random order that depends on the seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[order]


@law(
    "times",
    statement="times are integers in 1..T, or float64 in (t_clean, t_noise]; one for each uniform number",
    source="design.md, numerics",
    tolerance=0.0,
)
def in_range(case: Case, result: LawResult) -> None:
    """Uniform numbers may be 0, and as close to 1 as float32 allows."""
    for title in SCHEDULES:
        schedule = SCHEDULES[title]
        for uniform in (torch.tensor([0.0]), torch.tensor([1.0 - 2.0**-24]), torch.rand(64)):
            t = fresh(case).draw(uniform, schedule)
            result.holds(t.shape == uniform.shape, f"{title}: {tuple(t.shape)} times", f"{tuple(uniform.shape)}")
            low, high = float(t.min()), float(t.max())
            if schedule.steps is not None:
                result.holds(not t.is_floating_point(), f"{title}: times are {t.dtype}", "an integer type")
                result.holds(low >= 1 and high <= schedule.steps, f"{title}: times {low}..{high}", "1..T")
            else:
                result.holds(t.dtype == torch.float64, f"{title}: times are {t.dtype}", "float64")
                inside = schedule.t_clean <= low and high <= schedule.t_noise * (1 + 1e-12)
                result.holds(inside, f"{title}: times {low:.6g}..{high:.6g}", "in (t_clean, t_noise]")
                noisy = float(torch.as_tensor(schedule.level(t).sigma).min()) > 0
                result.holds(noisy, f"{title}: a time with sigma = 0", "some noise")


@law(
    "times",
    statement="times depend on the uniform numbers only, and no other randomness is used",
    source="design.md, randomness",
    tolerance=0.0,
)
def counted(case: Case, result: LawResult) -> None:
    """Resumed runs and runs on more devices draw the same times."""
    for title in SCHEDULES:
        uniform = torch.rand(32, generator=case.generator("times"))
        kept, before = uniform.clone(), torch.random.get_rng_state()
        first = fresh(case).draw(uniform, SCHEDULES[title])
        result.compare(uniform, kept, f"{title}: the numbers drawn")
        result.holds(
            torch.equal(before, torch.random.get_rng_state()), f"{title}: torch's generator moved", "untouched"
        )
        result.compare(fresh(case).draw(uniform, SCHEDULES[title]), first, f"{title}: times again")


@law(
    "times",
    statement="evenly spread uniform numbers give at least 5 distinct times, or 2 of 7",
    source="the definition of Times",
    tolerance=0.0,
)
def varies(case: Case, result: LawResult) -> None:
    """A batch must contain several levels."""
    for title in SCHEDULES:
        schedule = SCHEDULES[title]
        t = fresh(case).draw(evenly_spread(4096), schedule).double()
        distinct = len(set(t.tolist()))
        want = 2 if title == "short" else 5
        result.holds(distinct >= want, f"{title}: {distinct} distinct times of 4096", f"at least {want}")


@law(
    "times",
    statement="correction(t) p(t) is the probability of uniform times, for every t, by quadrature",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), sec. 3.3",
    tolerance=1e-9,
)
def unbiased(case: Case, result: LawResult) -> None:
    """Importance sampling changes the variance of a loss, not its mean: E[correction(t) f(t)] is the mean of f.

    On whole times p(t) is the length of the set of uniform numbers that give t. On others the integrals of
    correction(t) f(t) over the uniform numbers are compared, for f = 1, u and u^2.
    """
    for title, schedule in SCHEDULES.items():
        times = learned(case, schedule)
        if times.correction(times.draw(evenly_spread(8), schedule), schedule) is None:
            raise NotApplicable("the times have no correction")
        draw, together = time_of(times, schedule)
        if schedule.steps is not None and (together or schedule.steps < 10):
            every = torch.arange(1, schedule.steps + 1)
            share = probabilities(draw, schedule.steps, 1 << 14 if together else 256) * schedule.steps
            factor = _correction(times, every, schedule)
            result.compare(share * factor, torch.ones_like(share), f"{title}: T p(t) correction(t)")
        elif schedule.steps is None and together:

            def moments(u: Tensor, times: Times = times, schedule: Schedule = schedule) -> Tensor:
                t = times.draw(u, schedule)
                x = fraction_of(t, schedule)
                return _correction(times, t, schedule) * torch.stack([torch.ones_like(x), x, x * x])

            for power, got in enumerate(integral(moments).tolist()):
                result.compare(got, 1.0 / (power + 1), f"{title}: E[correction u^{power}]")


def _correction(times: Times, t: Tensor, schedule: Schedule) -> Tensor:
    factor = times.correction(t, schedule)
    assert factor is not None
    return factor.double()


@law("times", name="reference", statement=STATEMENT, source=SOURCE, tolerance=3e-4)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """The density p of `fraction`, `t`, `half_logsnr`, `logsnr` or `ratio`, whichever its parameter names.

    The probability between two quantiles of the times drawn is the integral of p between them. Times at the very ends
    of the schedule are left out, since levels beyond are clamped to them. A table {fraction: probability of less}.
    """
    stated, count = reference_of(case), 1 << 14
    for title, schedule in SCHEDULES.items():
        times = fresh(case)
        draw, together = time_of(times, schedule)
        u = evenly_spread(count if together else 1 << 9)
        t = torch.sort(draw(u).double()).values
        if not callable(stated):
            for place, want in stated.items():
                if schedule.steps is None:
                    got = float((fraction_of(t, schedule) <= place + 1e-12).double().mean())
                    result.compare(got, want, f"{title}: probability of a fraction up to {place}")
            continue
        if schedule.steps is None:
            rows = torch.linspace(0, len(t) - 1, 33).round().long().tolist()
            inside = [i for i in rows if schedule.t_clean < float(t[i]) < schedule.t_noise * (1 - 1e-12)]
            room = 0.0 if together else 4.0 / len(t)
            for a, b in pairwise(inside):
                got, want = (b - a) / len(t), _probability(stated, schedule, float(t[a]), float(t[b]))
                where = f"{title}: probability of {float(t[a]):.5g} < t <= {float(t[b]):.5g}"
                result.note(max(0.0, abs(got - want) - room), f"{where}: {got:.6g}", f"{want:.6g}")
        elif together:
            T = schedule.steps
            for a, b in pairwise(sorted({1, 2, 3, max(1, T // 4), T // 2, max(1, T - 2), T - 1})):
                if a < b:
                    got = float(((t > a) & (t <= b)).double().mean())
                    bounds = [_probability(stated, schedule, a + shift, b + shift) for shift in (0.0, 0.25, 0.5)]
                    excess = max(0.0, min(bounds) - got, got - max(bounds))
                    result.note(excess, f"{title}: probability of {a} < t <= {b}: {got:.6g}", f"{bounds[0]:.6g}")


def _probability(density: Callable[..., Any], schedule: Schedule, low: float, high: float) -> float:
    """Integrate a density over low < t <= high, by quadrature in the variable that it names."""
    (name,) = names_of(density) or ("",)
    start, end = (_variables(t, schedule).get(name, math.nan) for t in (low, high))

    def along(x: Tensor) -> Tensor:
        return torch.tensor([[evaluate(density, {name: start + (end - start) * one}) for one in x.tolist()]])

    return abs(end - start) * float(integral(along, 4, 1e-6 / max(abs(end - start), 1e-6)))


def _variables(t: float, schedule: Schedule) -> dict[str, float]:
    values = level_values(schedule.level(t))
    names = ("half_logsnr", "logsnr", "ratio")
    span = schedule.t_noise - schedule.t_clean
    return {"t": t, "fraction": (t - schedule.t_clean) / span, **{name: values[name] for name in names}}


@law(
    "times",
    statement="a batch of any size has, over many batches, the distribution of times that are drawn alone",
    source="Kingma et al. 2021 (arXiv:2107.00630), app. I.1",
    tolerance=5e-3,
)
def batches(case: Case, result: LawResult) -> None:
    """Stratified, antithetic or shared numbers lower the variance of a batch, and each time keeps its distribution."""
    rows = 512
    for title in ("curve", "short"):
        schedule = SCHEDULES[title]
        times = fresh(case)
        draw, together = time_of(times, schedule)
        if together:
            raise NotApplicable("each time depends on its own number only")
        alone = fraction_of(torch.cat([draw(u[None]) for u in evenly_spread(rows)]), schedule)
        for size in (2, 3, 8, 64):
            columns = [evenly_spread(rows, seed=k) for k in range(size)]
            pooled = torch.cat([times.draw(u, schedule) for u in torch.stack(columns, 1)])
            gap = distance(fraction_of(pooled, schedule), alone)
            result.note(
                max(0.0, gap - 2.0 / rows), f"{title}: distance of the distributions, B = {size}: {gap:.3g}", "0"
            )


@law(
    "times",
    statement="the levels do not depend on how a schedule numbers its times, nor on the scale of its levels",
    source="identities A8",
    tolerance=1e-6,
    identities="A8",
)
def any_clock(case: Case, result: LawResult) -> None:
    """t' = 5 + 2 t and levels of 3 times the scale describe the same training: the fractions drawn are the same."""
    uniform = evenly_spread(256)
    want = fraction_of(fresh(case).draw(uniform, fixtures.TRIG), fixtures.TRIG)
    for title, schedule in (
        ("t' = 5 + 2 t", fixtures.Reclocked(fixtures.TRIG, 5.0, 2.0)),
        ("x' = 3 x", fixtures.Reclocked(fixtures.TRIG, scale=3.0)),
    ):
        got = fraction_of(fresh(case).draw(uniform, schedule), schedule)
        result.compare(got, want, f"fraction of the schedule for {title}")


@law(
    "times",
    statement="on a discrete schedule the distribution is that on the curve through its levels, to one step",
    source="the definition of Times",
    tolerance=2e-4,
)
def discrete_continuous(case: Case, result: LawResult) -> None:
    """Whole times are the nearest, or the next, of those on the curve."""
    whole = SCHEDULES["discrete"]
    curve = fixtures.Reclocked(whole)
    T = whole.t_noise
    uniform = evenly_spread(1 << 13)
    got = torch.sort(fresh(case).draw(uniform, whole).double()).values
    want = torch.sort(fresh(case).draw(uniform, curve).double()).values
    for k in (1, 2, 5, 50, 250, 500, 750, 950, 995, int(T) - 1):
        share, low, high = (
            float((t <= k + 1e-9 + more).double().mean()) for t, more in ((got, 0.0), (want, 0.0), (want, 0.5))
        )
        excess = max(0.0, low - share, share - high)
        result.note(excess, f"probability of t <= {k}: {share:.6g}", f"{low:.6g} to {high:.6g}")


@law(
    "times",
    statement="the first and the last step are not rarer than their neighbours lead one to expect",
    source="identities K, off-by-one",
    tolerance=0.0,
)
def both_ends(case: Case, result: LawResult) -> None:
    """An index range that is one step too short leaves out an end. Half of a step is allowed, for rounded times."""
    schedule = SCHEDULES["discrete"]
    T = int(schedule.t_noise)
    count = torch.bincount(fresh(case).draw(evenly_spread(1 << 17), schedule), minlength=T + 1).double()
    for end, after, next_one in ((1, 2, 3), (T, T - 1, T - 2)):
        if float(count[after]) >= 50:
            trend = min(1.0, float(count[after]) / max(1.0, float(count[next_one])))
            result.holds(
                float(count[end]) >= 0.4 * trend**3 * float(count[after]),
                f"t = {end} drawn {int(count[end])} times, t = {after} {int(count[after])} times",
                "about as often",
            )


def time_of(times: Times, schedule: Schedule) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Return the time of a number that is drawn alone, as a function (B,) -> (B,), and whether batches agree with it.

    Args:
        times: the distribution.
        schedule: the schedule.

    Returns:
        The function, which makes one call per number if the times of a batch depend on each other; and whether they
        do not.
    """

    def one_by_one(u: Tensor) -> Tensor:
        return torch.cat([times.draw(one[None], schedule) for one in u])

    probe = evenly_spread(16)
    together = torch.equal(times.draw(probe, schedule), one_by_one(probe))
    return (lambda u: times.draw(u, schedule)) if together else one_by_one, together


def fraction_of(t: Tensor, schedule: Schedule) -> Tensor:
    """Return (t - t_clean) / (t_noise - t_clean)."""
    return (t.double() - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of the distribution functions of two sets of numbers, of Kolmogorov and Smirnov."""
    places = torch.cat([a, b]) + 1e-9
    shares = [torch.searchsorted(torch.sort(x).values, places, right=True).double() / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def probabilities(draw: Callable[[Tensor], Tensor], steps: int, cells: int) -> Tensor:
    """Compute p(t) for t = 1..steps, to rounding: the lengths of the intervals of u that give t.

    Args:
        draw: the whole times of uniform numbers.
        steps: T.
        cells: the number of cells of [0, 1] in which a change of t is looked for, and then found by bisection.

    Returns:
        The probabilities: (T,).
    """
    low = torch.linspace(0, 1, cells + 1, dtype=torch.float64)[:-1]
    share = torch.zeros(steps + 2, dtype=torch.float64)
    high = torch.cat([low[1:], torch.ones(1, dtype=torch.float64)])
    last = torch.cat([low[1:], torch.full_like(low[:1], 1.0 - 2.0**-53)])
    while len(low):
        first, other = draw(low), draw(last)
        before, after = low.clone(), last.clone()
        changes = torch.nonzero(first != other).flatten()
        for _ in range(50 if len(changes) else 0):
            middle = 0.5 * (before[changes] + after[changes])
            same = draw(middle) == first[changes]
            before[changes] = torch.where(same, middle, before[changes])
            after[changes] = torch.where(same, after[changes], middle)
        ends = high.clone()
        ends[changes] = after[changes]
        share.index_add_(0, first.long().clamp(0, steps + 1), ends - low)
        low, last, high = after[changes], last[changes], high[changes]
    return share[1 : steps + 1]


def integral(function: Callable[[Tensor], Tensor], panels: int = 32, error: float = 1e-13) -> Tensor:
    """Integrate a piecewise smooth function (B,) -> (K, B) over [0, 1], halving the intervals that hold a kink.

    Args:
        function: the function.
        panels: the number of equal intervals at the beginning.
        error: the error of one interval that needs no halving.

    Returns:
        The integrals: (K,).
    """
    edges = torch.linspace(0, 1, panels + 1, dtype=torch.float64)
    low, high = edges[:-1], edges[1:]
    total: Tensor | float = 0.0
    whole = _panels(function, low, high)
    for _ in range(44):
        middle = 0.5 * (low + high)
        left, right = _panels(function, low, middle), _panels(function, middle, high)
        rough = (left + right - whole).abs().amax(0) > error
        total = total + (left + right)[:, ~rough].sum(1)
        low, high = torch.cat([low[rough], middle[rough]]), torch.cat([middle[rough], high[rough]])
        whole = torch.cat([left[:, rough], right[:, rough]], 1)
        if not len(low):
            break
    return total + whole.sum(1)


def _panels(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    half = 0.5 * (high - low)
    u = (0.5 * (low + high)[:, None] + half[:, None] * NODES).clamp(max=1.0 - 2.0**-53)
    values = function(u.flatten())
    return (values.reshape(len(values), *u.shape) * WEIGHTS).sum(2) * half


def learned(case: Case, schedule: Schedule) -> Times:
    """Return a copy that was updated with losses that grow with noise."""
    times = fresh(case)
    for _ in range(12):
        t = times.draw(evenly_spread(512), schedule)
        times.update(t, 0.1 + t.double() / schedule.t_noise)
    return times
