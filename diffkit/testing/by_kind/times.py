"""Laws of training times."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit.schedule import Schedule
from diffkit.times import Times

from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law

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


def evenly_spread(count: int) -> Tensor:
    """Return the midpoints of `count` equal parts of [0, 1], in a fixed random order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
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
    statement="evenly spread uniform numbers give at least 5 distinct times, or all whole times if there are fewer",
    source="the definition of Times",
    tolerance=0.0,
)
def varies(case: Case, result: LawResult) -> None:
    """A batch must contain several levels."""
    for title in SCHEDULES:
        schedule = SCHEDULES[title]
        t = fresh(case).draw(evenly_spread(4096), schedule).double()
        distinct = len(set(t.tolist()))
        want = min(5, schedule.steps or 5)
        result.holds(distinct >= want, f"{title}: {distinct} distinct times of 4096", f"at least {want}")


@law(
    "times",
    statement="E[correction(t) f(t)] is the mean of f over uniform times",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), sec. 3.3",
    tolerance=2e-2,
)
def unbiased(case: Case, result: LawResult) -> None:
    """Importance sampling changes the variance of a loss, not its mean."""
    for title in SCHEDULES:
        schedule, times = SCHEDULES[title], _learned(case, SCHEDULES[title])
        t = times.draw(evenly_spread(16384), schedule)
        factor = times.correction(t, schedule)
        if factor is None:
            continue
        low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
        u = (t.double() - low) / span
        flat = torch.arange(1, (schedule.steps or 4096) + 1).double() / (schedule.steps or 4096)
        for power in (0, 1, 2):
            got, want = float((factor.double() * u**power).mean()), float((flat**power).mean())
            result.compare(got, want, f"{title}: E[correction t^{power}]")
    if not result.checks:
        raise NotApplicable("the times have no correction")


@law(
    "times",
    statement="the frequency of a whole time matches its correction: T p(t) = 1 / correction(t)",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), sec. 3.3",
    tolerance=3e-2,
)
def frequencies(case: Case, result: LawResult) -> None:
    """Frequencies are counted over evenly spread uniform numbers; errors are relative to 1 / T."""
    for title in ("short", "discrete"):
        schedule = SCHEDULES[title]
        times = _learned(case, schedule)
        T = schedule.steps
        assert T is not None
        every = torch.arange(1, T + 1)
        factor = times.correction(every, schedule)
        if factor is None:
            raise NotApplicable("the times have no correction")
        t = times.draw(evenly_spread(131072), schedule)
        share = torch.bincount(t, minlength=T + 2)[1 : T + 1].double() * T / len(t)
        result.compare(share, 1.0 / factor.double(), f"{title}: T p(t)")


def _learned(case: Case, schedule: Schedule) -> Times:
    """Return a copy that was updated with losses that grow with noise."""
    times = fresh(case)
    for _ in range(12):
        t = times.draw(evenly_spread(512), schedule)
        times.update(t, 0.1 + t.double() / schedule.t_noise)
    return times
