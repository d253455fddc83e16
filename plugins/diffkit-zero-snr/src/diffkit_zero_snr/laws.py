"""Laws of the components of Lin et al. 2024: zero terminal SNR and rescaled guidance."""

from __future__ import annotations

from dataclasses import replace

from diffkit.schedule import Schedule
from diffkit.testing import Case, LawResult, fixtures, law
from diffkit.testing.by_kind.guidance import LABEL, inputs


@law(
    "schedule",
    statement="alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T), so alpha'_T = 0",
    source="Lin et al. 2024 (arXiv:2305.08891), Algorithm 1",
    tolerance=1e-9,
    identities="A10",
    only=("zero-snr",),
)
def zero_snr_curve(case: Case, result: LawResult) -> None:
    """The last beta becomes 1, and x_T contains no signal."""
    schedule = case.component
    inner: Schedule = schedule.inner
    T = inner.steps
    assert T is not None
    first, last = (float(inner.level(t).alpha) for t in (1.0, float(T)))
    for t in (1, 2, T // 2, T - 1, T):
        want = (float(inner.level(float(t)).alpha) - last) * first / (first - last)
        result.compare(float(schedule.level(float(t)).alpha), want, f"alpha_{t}", 1e-3)
    result.holds(schedule.noise.is_noise, f"alpha_T = {schedule.noise.alpha}", "0, exactly")


@law(
    "guidance",
    statement="the standard deviation of x0 is phi times that without guidance, plus 1 - phi times that with guidance",
    source="Lin et al. 2024 (arXiv:2305.08891), eq. 15, 16",
    tolerance=1e-9,
    only=("rescale",),
)
def rescale_formula(case: Case, result: LawResult) -> None:
    """Standard deviations are over the dimensions of one example; x0 keeps the direction of the guided estimate."""
    guidance, source = case.component, fixtures.classes()
    for level, x in inputs(case):
        got = guidance(source)(x, level, label=LABEL).x0
        plain, guided = source(x, level, label=LABEL).x0, guidance.inner(source)(x, level, label=LABEL).x0
        ratio = plain.std(1, correction=0) / guided.std(1, correction=0)
        want = (guidance.phi * ratio + 1.0 - guidance.phi)[:, None] * guided
        result.compare(got, want, f"x0 at {level}")
        a, s = (float(c) for c in (level.alpha, level.sigma))
        got = replace(guidance, of="output")(source)(x, level, label=LABEL).eps
        plain, guided = ((x - a * x0) / s for x0 in (plain, guided))
        ratio = plain.std(1, correction=0) / guided.std(1, correction=0)
        want = (guidance.phi * ratio + 1.0 - guidance.phi)[:, None] * guided
        result.compare(got, want, f"eps at {level}, of: output, parameterization eps", float(want.abs().max()))
