"""Laws of the components of rectified flow: the straight path, velocities, and shifted grids."""

from __future__ import annotations

import math

from diffkit.schedule import Schedule
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law
from diffkit.testing.by_kind.parameterization import compare_target
from diffkit.testing.by_kind.schedule import sample_times


@law(
    "schedule",
    statement="alpha = 1 - t, sigma = t",
    source="Liu et al. 2023 (arXiv:2209.03003), eq. 1",
    tolerance=1e-12,
    identities="A6",
    only=("rectified",),
)
def rectified_curve(case: Case, result: LawResult) -> None:
    """The path is the straight line from data (t = 0) to noise (t = 1); options may change its time."""
    schedule: Schedule = case.component
    for t in sample_times(case):
        level = schedule.level(t)
        result.compare(float(level.alpha) + float(level.sigma), 1.0, f"alpha + sigma at {t:.4g}")
        if not case.options:
            result.compare(float(level.sigma), t, f"sigma({t:.4g})")


@law(
    "parameterization",
    statement="the target is (alpha eps - sigma x0) / hypot(alpha, sigma)",
    source="Salimans & Ho 2022 (arXiv:2202.00512), app. D",
    tolerance=1e-10,
    identities="C",
    only=("v",),
)
def v_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""
    compare_target(case, result, lambda x0, eps, a, s: (a * eps - s * x0) / (a * a + s * s) ** 0.5)


@law(
    "parameterization",
    statement="the target is eps - x0",
    source="Liu et al. 2023 (arXiv:2209.03003), eq. 1",
    tolerance=1e-10,
    identities="C",
    only=("flow",),
)
def flow_target(case: Case, result: LawResult) -> None:
    """The target is a x0 + b eps with the coefficients (a, b) of the paper, at every level and scale."""
    compare_target(case, result, lambda x0, eps, a, s: eps - x0)


@law(
    "grid",
    statement="on the straight path half_logsnr' = half_logsnr - log(shift), applied once",
    source="Esser et al. 2024 (arXiv:2403.03206), eq. 23",
    tolerance=1e-9,
    identities="A15",
    only=("shifted",),
)
def shifted_points(case: Case, result: LawResult) -> None:
    """t' = s t / (1 + (s - 1) t), for n equal parts of the schedule."""
    if case.component.inner is not None:
        raise NotApplicable("the grid wraps another grid")
    n = 9
    for _ in range(2):
        times = case.component.times(fixtures.RECTIFIED, n)
        for j in range(1, n):
            t, got = 1.0 - j / n, times[j]
            want = math.log((1.0 - t) / t) - math.log(case.component.shift)
            result.compare(math.log((1.0 - got) / got), want, f"half_logsnr of level {j} of {n}")
