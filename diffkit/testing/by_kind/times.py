"""Laws of training times."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from diffkit.schedule import Schedule
from diffkit.times import Times

from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject

SCHEDULES = ("discrete", "short", "curve", "edm")


def _schedule(title: str) -> Schedule:
    return {
        "discrete": families.discrete(),
        "short": families.discrete(7),
        "curve": families.TRIG,
        "edm": families.EXPLODING,
    }[title]


def _fresh(subject: Subject) -> Times:
    """One that has learned nothing, as drawing may depend on memory."""
    times: Times = copy.deepcopy(subject.component)
    return times


def _even(count: int) -> Tensor:
    """Uniform numbers without chance: the middles of equal parts, in scrambled order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[order]


@law(
    "times",
    statement="times lie in 1..T, of an integer type, or in (t_clean, t_noise], of float64; one for each number drawn",
    source="design.md, numerics",
    tolerance=0.0,
)
def in_range(subject: Subject, worst: Worst) -> None:
    """Uniform numbers may be 0 and may be as near to 1 as float32 allows."""
    for title in SCHEDULES:
        schedule = _schedule(title)
        for uniform in (torch.tensor([0.0]), torch.tensor([1.0 - 2.0**-24]), torch.rand(64)):
            t = _fresh(subject).draw(uniform, schedule)
            worst.holds(t.shape == uniform.shape, f"{title}: {tuple(t.shape)} times", f"{tuple(uniform.shape)}")
            low, high = float(t.min()), float(t.max())
            if schedule.steps is not None:
                worst.holds(not t.is_floating_point(), f"{title}: times are {t.dtype}", "an integer type")
                worst.holds(low >= 1 and high <= schedule.steps, f"{title}: times {low}..{high}", "1..T")
            else:
                worst.holds(t.dtype == torch.float64, f"{title}: times are {t.dtype}", "float64")
                inside = schedule.t_clean <= low and high <= schedule.t_noise * (1 + 1e-12)
                worst.holds(inside, f"{title}: times {low:.6g}..{high:.6g}", "in (t_clean, t_noise]")
                noisy = float(torch.as_tensor(schedule.level(t).sigma).min()) > 0
                worst.holds(noisy, f"{title}: a time with sigma = 0", "some noise")


@law(
    "times",
    statement="times are a function of the uniform numbers: the same twice, and no other randomness is used",
    source="design.md, randomness",
    tolerance=0.0,
)
def counted(subject: Subject, worst: Worst) -> None:
    """Resumed runs and other world sizes draw the same times."""
    for title in SCHEDULES:
        uniform = torch.rand(32, generator=subject.generator("times"))
        kept, before = uniform.clone(), torch.random.get_rng_state()
        first = _fresh(subject).draw(uniform, _schedule(title))
        worst.compare(uniform, kept, f"{title}: the numbers drawn")
        worst.holds(torch.equal(before, torch.random.get_rng_state()), f"{title}: torch's generator moved", "untouched")
        worst.compare(_fresh(subject).draw(uniform, _schedule(title)), first, f"{title}: times again")


@law(
    "times",
    statement="more even numbers give more even times: every part of the law is reached, whatever the row",
    source="the definition of Times",
    tolerance=0.0,
)
def varies(subject: Subject, worst: Worst) -> None:
    """A batch is spread over levels, and over the rows of a batch alike."""
    for title in SCHEDULES:
        schedule = _schedule(title)
        t = _fresh(subject).draw(_even(4096), schedule).double()
        distinct = len(set(t.tolist()))
        want = min(5, schedule.steps or 5)
        worst.holds(distinct >= want, f"{title}: {distinct} distinct times of 4096", f"at least {want}")


@law(
    "times",
    statement="weights and density agree: E[correction(t) f(t)] is the mean of f over uniform times",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), sec. 3.3",
    tolerance=2e-2,
)
def unbiased(subject: Subject, worst: Worst) -> None:
    """Importance sampling changes the variance of a loss, never its mean."""
    for title in SCHEDULES:
        schedule, times = _schedule(title), _learned(subject, _schedule(title))
        t = times.draw(_even(16384), schedule)
        factor = times.correction(t, schedule)
        if factor is None:
            continue
        low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
        u = (t.double() - low) / span
        flat = torch.arange(1, (schedule.steps or 4096) + 1).double() / (schedule.steps or 4096)
        for power in (0, 1, 2):
            got, want = float((factor.double() * u**power).mean()), float((flat**power).mean())
            worst.compare(got, want, f"{title}: E[correction t^{power}]")
    if not worst.checks:
        raise Inapplicable("its law is meant as it is: no correction")


@law(
    "times",
    statement="each whole time is drawn as often as its correction says: T p(t) = 1 / correction(t)",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), sec. 3.3",
    tolerance=3e-2,
)
def frequencies(subject: Subject, worst: Worst) -> None:
    """Counted over evenly spread uniform numbers; the error is relative to a uniform share."""
    for title in ("short", "discrete"):
        schedule = _schedule(title)
        times = _learned(subject, schedule)
        T = schedule.steps
        assert T is not None
        every = torch.arange(1, T + 1)
        factor = times.correction(every, schedule)
        if factor is None:
            raise Inapplicable("its law is meant as it is: no correction")
        t = times.draw(_even(131072), schedule)
        share = torch.bincount(t, minlength=T + 2)[1 : T + 1].double() * T / len(t)
        worst.compare(share, 1.0 / factor.double(), f"{title}: T p(t)")


def _learned(subject: Subject, schedule: Schedule) -> Times:
    """One that has seen losses that grow with noise."""
    times = _fresh(subject)
    for _ in range(12):
        t = times.draw(_even(512), schedule)
        times.update(t, 0.1 + t.double() / schedule.t_noise)
    return times


@law(
    "times",
    statement="drawn from uniform numbers, all times are alike: t / T has the moments of a uniform number",
    source="Ho et al. 2020 (arXiv:2006.11239), Algorithm 1",
    tolerance=2e-3,
    only=("uniform", "stratified"),
)
def uniform_law(subject: Subject, worst: Worst) -> None:
    """Each of the T steps equally often."""
    uniform = torch.rand(4096, generator=subject.generator("u")) if subject.name == "stratified" else _even(4096 * 7)
    for title in ("short", "curve"):
        schedule = _schedule(title)
        t = _fresh(subject).draw(uniform, schedule).double()
        if schedule.steps is None:
            for power in (1, 2, 3):
                worst.compare(float((t**power).mean()), 1.0 / (power + 1), f"{title}: E[t^{power}]")
            continue
        for k in range(1, schedule.steps + 1):
            share = float((t == k).double().mean())
            worst.compare(share, 1.0 / schedule.steps, f"{title}: share of t = {k}")


@law(
    "times",
    statement="a batch of B has one time in each of B equal parts of the schedule",
    source="Kingma et al. 2021 (arXiv:2107.00630), app. I.1",
    tolerance=0.0,
    only=("stratified",),
)
def strata(subject: Subject, worst: Worst) -> None:
    """Less variance than independent times, and the same mean."""
    for B in (1, 2, 5, 64):
        t = _fresh(subject).draw(torch.rand(B, generator=subject.generator("u", B)), families.TRIG)
        parts = torch.sort(torch.clamp(((1.0 - t) * B).floor(), 0, B - 1)).values
        hit = torch.equal(parts, torch.arange(B, dtype=parts.dtype))
        worst.holds(hit, f"B = {B}: parts {parts.tolist()[:8]}", "each once")
