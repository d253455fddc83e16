"""Laws of every grid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from diffkit.errors import DiffkitError
from diffkit.grid import Grid, push_apart, round_half_up
from diffkit.schedule import Schedule

from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, reference_of

COUNTS = (1, 2, 3, 4, 5, 7, 10, 13, 20, 31, 50, 61, 100, 103, 201, 333, 500, 501, 599, 600, 750, 999, 1000)


def schedules(grid: Grid) -> Iterator[tuple[str, Schedule]]:
    """Yield discrete schedules of several lengths, and continuous ones if the grid supports them, with titles."""
    for steps in (1, 2, 12, 1000) if grid.ends_clean else (2, 12, 1000):
        yield f"{steps} steps", fixtures.discrete(steps)
    if not grid.discrete_only:
        yield "edm", fixtures.EXPLODING
        if grid.reaches_noise:
            yield "trig", fixtures.TRIG
            yield "flow", fixtures.RECTIFIED


def settings(case: Case) -> Iterator[tuple[str, Schedule, int]]:
    """Yield every schedule with numbers of steps, smallest first: all numbers for short schedules or if deep."""
    for title, schedule in schedules(case.component):
        top = 64 if schedule.steps is None else schedule.steps - (not case.component.ends_clean)
        counts = range(1, top + 1) if top <= 64 or case.deep else [n for n in COUNTS if n <= top]
        for n in counts:
            yield title, schedule, n


@law("grid", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-7)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of schedule and n, the times without the clean one, noisiest first; or a table {n: times}, T = 1000.

    On a discrete schedule the stated times are rounded, halves upwards, and made distinct, unless `rounding` is none.
    """
    stated = reference_of(case)
    if callable(stated):
        cases = [(*one, evaluate(stated, {"schedule": one[1], "n": one[2]})) for one in settings(case)]
    else:
        cases = [("1000 steps", fixtures.discrete(), n, times) for n, times in stated.items()]
    for title, schedule, n, want in cases:
        got, times = case.component.times(schedule, n), [float(t) for t in want]
        if schedule.steps is not None and case.component.rounding != "none":
            times = [float(t) for t in push_apart([round_half_up(t) for t in times], schedule.steps)]
        result.holds(len(times) == n, f"n = {n} on {title}: law_reference has {len(times)} times", f"{n}")
        span = schedule.t_noise - schedule.t_clean
        for j, (t, value) in enumerate(zip(got, times, strict=False)):
            result.note(abs(t - value) / span, f"n = {n} on {title}: t_{j} = {t:.9g}", f"{value:.9g}")


@law(
    "grid",
    statement="the levels do not depend on how a schedule numbers its times, nor on the scale of its levels",
    source="identities A8",
    tolerance=1e-9,
    identities="A8",
)
def any_clock(case: Case, result: LawResult) -> None:
    """t' = 5 + 2 t and levels of 3 times the scale describe the same sampling: the levels have the same angles."""
    grid: Grid = case.component
    if grid.discrete_only:
        raise NotApplicable("the grid requires a discrete schedule")
    for inner in (fixtures.EXPLODING, *((fixtures.TRIG,) if grid.reaches_noise else ())):
        for title, schedule in (
            ("t' = 5 + 2 t", fixtures.Reclocked(inner, 5.0, 2.0)),
            ("x' = 3 x", fixtures.Reclocked(inner, scale=3.0)),
        ):
            for n in (1, 2, 9):
                pairs = zip(grid.levels(schedule, n), grid.levels(inner, n), strict=True)
                for j, (got, want) in enumerate(pairs):
                    result.compare(float(got.angle), float(want.angle), f"{title}: angle of level {j} of {n}")


@law(
    "grid",
    statement="n steps have n + 1 levels of Python floats, for every n from 1 to T",
    source="tests/pains.md, 2",
    tolerance=0.0,
)
def length(case: Case, result: LawResult) -> None:
    """A step is a pair of neighbouring levels; a rounded stride would give one too many or too few."""
    for title, schedule, n in settings(case):
        levels = case.component.levels(schedule, n)
        result.holds(len(levels) == n + 1, f"n = {n} on {title}: {len(levels)} levels", f"{n + 1}")
        floats = all(type(v) is float for level in levels for v in (level.alpha, level.sigma))
        result.holds(floats, f"n = {n} on {title}: levels that are not Python floats", "floats, so that no step syncs")


@law(
    "grid",
    statement="the signal-to-noise ratio rises strictly along the levels",
    source="tests/pains.md, 1, 2; identities A3",
    tolerance=0.0,
    identities="A3",
)
def rises(case: Case, result: LawResult) -> None:
    """No level is visited twice, even if times are rounded."""
    for title, schedule, n in settings(case):
        levels = case.component.levels(schedule, n)
        bad = [i for i, (a, b) in enumerate(pairwise(levels)) if not float(b.angle) < float(a.angle)]
        result.note(float(len(bad)), f"n = {n} on {title}: levels {bad[:1]} and after", "a larger SNR afterwards")


@law(
    "grid",
    statement="the last level is clean, or t = 1 if `ends_clean` is unset; no earlier level is clean",
    source="design.md, glossary of grids",
    tolerance=0.0,
)
def clean_end(case: Case, result: LawResult) -> None:
    """Sampling ends on clean data, not one step before it (identities K, final alpha), and all times are on it."""
    for title, schedule, n in settings(case):
        levels = case.component.levels(schedule, n)
        end = schedule.clean if case.component.ends_clean else schedule.level(1.0)
        result.holds(levels[-1] == end, f"n = {n} on {title}: ends at {levels[-1]}", f"{end}")
        times = case.component.times(schedule, n)
        inside = schedule.t_clean <= min(times) and max(times) <= schedule.t_noise
        result.holds(inside, f"n = {n} on {title}: times {min(times)!r}..{max(times)!r}", "within the schedule")
        early = [i for i, level in enumerate(levels[:-1]) if level.is_clean]
        result.holds(not early, f"n = {n} on {title}: level {early[:1]} is clean", "noise in every earlier level")


@law(
    "grid",
    statement="the first level is the noisiest of the schedule, unless the grid sets declares_deficit",
    source="tests/pains.md, 3; Lin et al. 2023 (arXiv:2305.08891), sec. 3.3",
    tolerance=1e-9,
)
def noise_end(case: Case, result: LawResult) -> None:
    """Samples start from pure noise; if the denoiser is not evaluated there, the mean of the samples is biased."""
    grid: Grid = case.component
    deficits = []
    for title, schedule, n in settings(case):
        first, noise = grid.levels(schedule, n)[0], schedule.noise
        gap = float(noise.angle) - float(first.angle)
        result.holds(gap >= -1e-9, f"n = {n} on {title}: starts beyond the schedule, at {first}", f"{noise}")
        deficits.append((gap, f"n = {n} on {title}: starts at {first}", f"{noise}"))
    if not grid.declares_deficit:
        for gap, example, expected in deficits:
            result.note(abs(gap), example, expected)


@law(
    "grid",
    statement="on a discrete schedule the levels are those of distinct whole times in 1..T; n = T visits all of them",
    source="tests/pains.md, 1; identities K, rounding",
    tolerance=0.0,
    identities="A14",
)
def whole_times(case: Case, result: LawResult) -> None:
    """Networks are not trained between whole times."""
    if case.component.rounding == "none":
        raise NotApplicable("the grid declares times between the steps of a schedule")
    for title, schedule, n in settings(case):
        if schedule.steps is None:
            continue
        times = case.component.times(schedule, n)
        fine = all(t == int(t) and 1 <= t <= schedule.steps for t in times) and len(set(times)) == n
        result.holds(fine, f"n = {n} on {title}: times {times[:4]}...", "distinct whole times in 1..T")
        levels = case.component.levels(schedule, n)
        same = fine and levels[:-1] == [schedule.level(t) for t in times]
        result.holds(same, f"n = {n} on {title}: levels are not those of the times", "schedule.level(t)")
        if n == schedule.steps - (not case.component.ends_clean):
            every = [float(t) for t in range(schedule.steps, schedule.steps - n, -1)]
            result.holds(times == every, f"n = T = {n}: {times[:4]}...", "T, T - 1, ..., 1")


@law(
    "grid",
    statement="fewer than one step, more than T steps, or an unsuitable schedule raises a DiffkitError",
    source="tests/pains.md, 2; design.md, errors",
    tolerance=0.0,
)
def refuses(case: Case, result: LawResult) -> None:
    """The error has a message of the library; an IndexError or a wrong list of levels breaks the law."""
    grid: Grid = case.component
    schedule = fixtures.discrete(12)
    tries: list[tuple[Schedule, int]] = [(schedule, 0), (schedule, -1), (schedule, 13 - (not grid.ends_clean))]
    if grid.discrete_only:
        tries.append((fixtures.EXPLODING, 4))
    for place, n in tries:
        try:
            made = grid.levels(place, n)
        except DiffkitError:
            result.holds(True, f"n = {n}", "")
            continue
        result.holds(False, f"n = {n} of T = {place.steps}: {len(made)} levels", "a DiffkitError")


@law(
    "grid",
    statement="two calls return the same levels",
    source="tests/pains.md, 17",
    tolerance=0.0,
)
def pure(case: Case, result: LawResult) -> None:
    """A shift is not applied a second time."""
    for title, schedule in schedules(case.component):
        n = min(6, schedule.steps or 6) - (schedule.steps == 2 and not case.component.ends_clean)
        first, again = (case.component.levels(schedule, n) for _ in range(2))
        result.holds(first == again, f"n = {n} on {title}: other levels the second time", "the same")


@law(
    "grid",
    statement="more steps divide the same range: the largest step in angle shrinks with n",
    source="the definition of a grid",
    tolerance=0.0,
)
def refines(case: Case, result: LawResult) -> None:
    """A sampler converges only if the steps of its grid become small."""
    if case.component.declares_deficit:
        raise NotApplicable("declares_deficit is set, so the first level depends on n")
    for title, schedule in schedules(case.component):
        if title == "edm" or (schedule.steps is not None and schedule.steps < 1000):
            continue
        widest = []
        for n in (5, 50, 500):
            levels = case.component.levels(schedule, n)
            widest.append(max(float(a.angle) - float(b.angle) for a, b in pairwise(levels)))
        for n, coarse, fine in zip((50, 500), widest, widest[1:], strict=False):
            result.holds(fine < 0.5 * coarse, f"n = {n} on {title}: widest step {fine:.3g}", f"< half of {coarse:.3g}")
