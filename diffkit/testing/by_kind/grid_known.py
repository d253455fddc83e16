"""Laws of grids with canonical names: their points."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject
from .grid import COUNTS


def _whole(subject: Subject, worst: Worst, point: Callable[[int, int, int], Fraction]) -> None:
    """The whole times on 1000 steps, by exact fractions, halves rounded up, then pushed apart."""
    schedule = families.discrete()
    T = 1000
    for n in COUNTS:
        exact = [point(T, n, j) for j in range(n)]
        want = _apart([math.floor(t + Fraction(1, 2)) for t in exact], T)
        got = subject.component.times(schedule, n)
        bad = [j for j in range(n) if j >= len(got) or abs(got[j] - want[j]) > 1e-9]
        at = bad[0] if bad else 0
        worst.note(float(len(bad)), f"n = {n}: t_{at} = {got[at] if at < len(got) else None}", f"{want[at]}")


def _apart(times: list[int], steps: int) -> list[int]:
    """Strictly falling whole times nearest to these: lowered from the noisy end, then raised from the clean one."""
    lowered: list[int] = []
    for t in times:
        lowered.append(min(t, steps if not lowered else lowered[-1] - 1))
    raised: list[int] = []
    for t in reversed(lowered):
        raised.append(max(t, 1 if not raised else raised[-1] + 1))
    return raised[::-1]


@law(
    "grid",
    statement="t_j = T - (T - 1) j / (n - 1), from T to 1",
    source="Ho et al. 2020 (arXiv:2006.11239)",
    tolerance=0.0,
    only=("linspace",),
)
def linspace_points(subject: Subject, worst: Worst) -> None:
    """Both ends included; on a curve without steps equal parts of the time."""
    _whole(subject, worst, lambda T, n, j: T - Fraction((T - 1) * j, max(1, n - 1)))
    times = subject.component.times(families.TRIG, 4)
    worst.holds(
        all(abs(a - b) < 1e-12 for a, b in zip(times, (1.0, 0.75, 0.5, 0.25), strict=True)),
        f"4 steps on t in [0, 1]: {times}",
        "1, 0.75, 0.5, 0.25",
    )
    last = subject.component.times(families.EXPLODING, 4)[-1]
    worst.holds(abs(last - 0.002) < 1e-9, f"4 steps on [0.002, 80] end at {last}", "0.002, which still holds noise")


@law(
    "grid",
    statement="t_j = T (1 - j / n)",
    source="Lin et al. 2023 (arXiv:2305.08891), sec. 3.3",
    tolerance=0.0,
    only=("trailing",),
)
def trailing_points(subject: Subject, worst: Worst) -> None:
    """Equal parts counted from the noisy end."""
    _whole(subject, worst, lambda T, n, j: Fraction(T * (n - j), n))


@law(
    "grid",
    statement="t_j = (n - 1 - j) floor(T / n) + 1",
    source="Song et al. 2021 (arXiv:2010.02502), code",
    tolerance=0.0,
    only=("leading",),
)
def leading_points(subject: Subject, worst: Worst) -> None:
    """Multiples of a whole stride; the noisy end is left out."""
    _whole(subject, worst, lambda T, n, j: Fraction((n - 1 - j) * (T // n) + 1))


@law(
    "grid",
    statement="t_j = 1 + (T - 1) ((n - 1 - j) / (n - 1))^2",
    source="Song et al. 2021 (arXiv:2010.02502), app. D.2",
    tolerance=0.0,
    only=("quadratic",),
)
def quadratic_points(subject: Subject, worst: Worst) -> None:
    """sqrt(t - 1) in equal parts."""
    if subject.options:
        raise Inapplicable("held at its defaults")
    _whole(subject, worst, lambda T, n, j: 1 + (T - 1) * (Fraction(n - 1 - j, n - 1) ** 2 if n > 1 else Fraction(1)))


@law(
    "grid",
    statement="the levels of karras hit both ends of the schedule, and sigma^(1/power) is in equal parts between",
    source="Karras et al. 2022 (arXiv:2206.00364), eq. 5",
    tolerance=1e-9,
    identities="A13",
    only=("karras",),
)
def karras_points(subject: Subject, worst: Worst) -> None:
    """sigma_i = (smax^(1/p) + i / (n - 1) (smin^(1/p) - smax^(1/p)))^p, then 0; p = 7 by default."""
    if subject.options:
        raise Inapplicable("held at its defaults")
    n = 9
    levels = subject.component.levels(families.EXPLODING, n)[:-1]
    roots = [(float(level.sigma) / float(level.alpha)) ** (1.0 / 7.0) for level in levels]
    for i, root in enumerate(roots):
        worst.compare(root, roots[0] + i / (n - 1) * (roots[-1] - roots[0]), f"sigma_{i}^(1/7) of {n}")
    worst.compare(roots[0] ** 7, 80.0, "sigma_0")
    worst.compare(roots[-1] ** 7, 0.002, f"sigma_{n - 1}", 0.002)


@law(
    "grid",
    statement="half_logsnr is in equal parts between the ends of the schedule",
    source="Lu et al. 2022 (arXiv:2206.00927), sec. 4.3",
    tolerance=1e-9,
    only=("uniform-logsnr",),
)
def logsnr_points(subject: Subject, worst: Worst) -> None:
    """Every step has the same h."""
    if subject.options:
        raise Inapplicable("held at its defaults")
    n = 9
    clocks = [float(level.half_logsnr) for level in subject.component.levels(families.EXPLODING, n)[:-1]]
    for i, clock in enumerate(clocks):
        worst.compare(clock, clocks[0] + i / (n - 1) * (clocks[-1] - clocks[0]), f"half_logsnr of level {i} of {n}")


@law(
    "grid",
    statement="on the straight path half_logsnr' = half_logsnr - log(shift), once however often it is asked",
    source="Esser et al. 2024 (arXiv:2403.03206), eq. 23",
    tolerance=1e-9,
    identities="A15",
    only=("shifted",),
)
def shifted_points(subject: Subject, worst: Worst) -> None:
    """t' = s t / (1 + (s - 1) t), for n equal parts of the schedule."""
    if subject.component.inner is not None:
        raise Inapplicable("around another grid")
    n = 9
    for _ in range(2):
        times = subject.component.times(families.RECTIFIED, n)
        for j in range(1, n):
            t, got = 1.0 - j / n, times[j]
            want = math.log((1.0 - t) / t) - math.log(subject.component.shift)
            worst.compare(math.log((1.0 - got) / got), want, f"half_logsnr of level {j} of {n}")
