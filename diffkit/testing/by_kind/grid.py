"""Laws of every grid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from diffkit.errors import DiffkitError
from diffkit.grid import Grid
from diffkit.schedule import Schedule

from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject

COUNTS = (1, 2, 3, 4, 5, 7, 10, 13, 20, 31, 50, 61, 100, 103, 201, 333, 500, 501, 599, 600, 750, 999, 1000)


def schedules(grid: Grid) -> Iterator[tuple[str, Schedule]]:
    """Where a grid is tried: discrete schedules of several lengths, and curves that it says it can follow."""
    for steps in (1, 2, 12, 1000):
        yield f"{steps} steps", families.discrete(steps)
    if not grid.discrete_only:
        yield "edm", families.EXPLODING
        if grid.reaches_noise:
            yield "trig", families.TRIG
            yield "flow", families.RECTIFIED


def cases(subject: Subject) -> Iterator[tuple[str, Schedule, int]]:
    """Every schedule with step counts, smallest first: all of them for short schedules, and for all where deep."""
    for title, schedule in schedules(subject.component):
        top = schedule.steps or 64
        counts = range(1, top + 1) if top <= 64 or subject.deep else [n for n in COUNTS if n <= top]
        for n in counts:
            yield title, schedule, n


@law(
    "grid",
    statement="n steps have n + 1 levels of host floats, for every n from 1 to T",
    source="tests/pains.md, 2",
    tolerance=0.0,
)
def length(subject: Subject, worst: Worst) -> None:
    """A step is a pair of neighbours; spacing by a rounded stride yields one too many or too few."""
    for title, schedule, n in cases(subject):
        levels = subject.component.levels(schedule, n)
        worst.holds(len(levels) == n + 1, f"n = {n} on {title}: {len(levels)} levels", f"{n + 1}")
        floats = all(type(v) is float for level in levels for v in (level.alpha, level.sigma))
        worst.holds(floats, f"n = {n} on {title}: levels that are not Python floats", "floats, so that no step syncs")


@law(
    "grid",
    statement="the signal-to-noise ratio rises strictly along the levels",
    source="tests/pains.md, 1, 2; identities A3",
    tolerance=0.0,
    identities="A3",
)
def rises(subject: Subject, worst: Worst) -> None:
    """No level is visited twice, whatever rounding does to the times."""
    for title, schedule, n in cases(subject):
        levels = subject.component.levels(schedule, n)
        bad = [i for i, (a, b) in enumerate(pairwise(levels)) if not float(b.angle) < float(a.angle)]
        worst.note(float(len(bad)), f"n = {n} on {title}: levels {bad[:1]} and after", "a larger SNR after")


@law(
    "grid",
    statement="the last level is the schedule's clean one, no level before it is, and all times lie on the schedule",
    source="design.md, glossary of grids",
    tolerance=0.0,
)
def clean_end(subject: Subject, worst: Worst) -> None:
    """Sampling ends on data, not one step before it (K: final alpha)."""
    for title, schedule, n in cases(subject):
        levels = subject.component.levels(schedule, n)
        worst.holds(levels[-1] == schedule.clean, f"n = {n} on {title}: ends at {levels[-1]}", f"{schedule.clean}")
        times = subject.component.times(schedule, n)
        inside = schedule.t_clean <= min(times) and max(times) <= schedule.t_noise
        worst.holds(inside, f"n = {n} on {title}: times {min(times)!r}..{max(times)!r}", "within the schedule")
        early = [i for i, level in enumerate(levels[:-1]) if level.is_clean]
        worst.holds(not early, f"n = {n} on {title}: level {early[:1]} is clean", "noise in every level asked")


@law(
    "grid",
    statement="the first level is the schedule's noisiest, unless the grid declares a deficit",
    source="tests/pains.md, 3; Lin et al. 2023 (arXiv:2305.08891), sec. 3.3",
    tolerance=1e-9,
)
def noise_end(subject: Subject, worst: Worst) -> None:
    """Samples start from pure noise; the denoiser must be asked about it, or every mean is biased."""
    grid: Grid = subject.component
    deficits = []
    for title, schedule, n in cases(subject):
        first, noise = grid.levels(schedule, n)[0], schedule.noise
        gap = float(noise.angle) - float(first.angle)
        worst.holds(gap >= -1e-9, f"n = {n} on {title}: starts beyond the schedule, at {first}", f"{noise}")
        deficits.append((gap, f"n = {n} on {title}: starts at {first}", f"{noise}"))
    if not grid.declares_deficit:
        for gap, example, expected in deficits:
            worst.note(abs(gap), example, expected)


@law(
    "grid",
    statement="on a discrete schedule the levels are those of distinct whole times in 1..T; n = T visits every one",
    source="tests/pains.md, 1; identities K, rounding",
    tolerance=0.0,
    identities="A14",
)
def whole_times(subject: Subject, worst: Worst) -> None:
    """Between the points, networks were never trained."""
    for title, schedule, n in cases(subject):
        if schedule.steps is None:
            continue
        times = subject.component.times(schedule, n)
        fine = all(t == int(t) and 1 <= t <= schedule.steps for t in times) and len(set(times)) == n
        worst.holds(fine, f"n = {n} on {title}: times {times[:4]}...", "distinct whole times in 1..T")
        levels = subject.component.levels(schedule, n)
        same = fine and levels[:-1] == [schedule.level(t) for t in times]
        worst.holds(same, f"n = {n} on {title}: levels are not those of the times", "schedule.level(t)")
        if n == schedule.steps:
            every = [float(t) for t in range(n, 0, -1)]
            worst.holds(times == every, f"n = T = {n}: {times[:4]}...", "T, T - 1, ..., 1")


@law(
    "grid",
    statement="fewer than one step, more than T, or a schedule that the grid cannot follow is refused",
    source="tests/pains.md, 2; design.md, errors",
    tolerance=0.0,
)
def refuses(subject: Subject, worst: Worst) -> None:
    """With a message of the library, not an IndexError, and never with a wrong list."""
    grid: Grid = subject.component
    schedule = families.discrete(12)
    tries: list[tuple[Schedule, int]] = [(schedule, 0), (schedule, -1), (schedule, 13)]
    if grid.discrete_only:
        tries.append((families.EXPLODING, 4))
    for place, n in tries:
        try:
            made = grid.levels(place, n)
        except DiffkitError:
            worst.holds(True, f"n = {n}", "")
            continue
        worst.holds(False, f"n = {n} of T = {place.steps}: {len(made)} levels", "a DiffkitError")


@law(
    "grid",
    statement="asking twice gives the same levels",
    source="tests/pains.md, 17",
    tolerance=0.0,
)
def pure(subject: Subject, worst: Worst) -> None:
    """A grid is rebuilt from the schedule each time, so that no shift is applied twice."""
    for title, schedule in schedules(subject.component):
        n = min(7, schedule.steps or 7)
        first, again = (subject.component.levels(schedule, n) for _ in range(2))
        worst.holds(first == again, f"n = {n} on {title}: other levels the second time", "the same")


@law(
    "grid",
    statement="more steps fill the same range: the largest step in angle shrinks with n",
    source="the definition of a grid",
    tolerance=0.0,
)
def refines(subject: Subject, worst: Worst) -> None:
    """Without it no sampler converges on this grid."""
    if subject.component.declares_deficit:
        raise Inapplicable("the range of a grid with a deficit depends on n")
    for title, schedule in schedules(subject.component):
        if title == "edm" or (schedule.steps is not None and schedule.steps < 1000):
            continue
        widest = []
        for n in (5, 50, 500):
            levels = subject.component.levels(schedule, n)
            widest.append(max(float(a.angle) - float(b.angle) for a, b in pairwise(levels)))
        for n, coarse, fine in zip((50, 500), widest, widest[1:], strict=False):
            worst.holds(fine < 0.5 * coarse, f"n = {n} on {title}: widest step {fine:.3g}", f"< half of {coarse:.3g}")
