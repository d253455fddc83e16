"""Laws of schedules with canonical names: their closed forms."""

from __future__ import annotations

import math

import torch

from diffkit.schedule import Discrete, Schedule

from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject
from .schedule import moments


def _ends(subject: Subject, root: float, worst: Worst) -> None:
    schedule = subject.component
    if not isinstance(schedule, Discrete):
        raise Inapplicable("not a discrete schedule")
    T = schedule.steps
    first, last = (float(getattr(schedule, f"beta_{end}")) ** root for end in ("start", "end"))
    for t in range(1, T + 1):
        want = (first + (last - first) * (t - 1) / max(1, T - 1)) ** (1.0 / root)
        worst.note(
            abs(float(schedule.betas[t - 1]) / want - 1.0), f"beta_{t} = {schedule.betas[t - 1]}", f"{want:.17g}"
        )


@law(
    "schedule",
    statement="beta_t = beta_start + (beta_end - beta_start) (t - 1) / (T - 1)",
    source="Ho et al. 2020 (arXiv:2006.11239), sec. 4",
    tolerance=1e-12,
    only=("linear",),
)
def linear_betas(subject: Subject, worst: Worst) -> None:
    """The definition, in float64."""
    _ends(subject, 1.0, worst)


@law(
    "schedule",
    statement="sqrt(beta_t) is linear from sqrt(beta_start) to sqrt(beta_end)",
    source="Rombach et al. 2022 (arXiv:2112.10752), code",
    tolerance=1e-12,
    only=("scaled-linear",),
)
def scaled_linear_betas(subject: Subject, worst: Worst) -> None:
    """The definition, in float64."""
    _ends(subject, 0.5, worst)


@law(
    "schedule",
    statement="alpha_bar_t = f(t/T) / f(0), f(u) = cos^2((u + s) / (1 + s) pi / 2), for t < T; only beta_T is clipped",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17",
    tolerance=1e-9,
    identities="A9",
    only=("cosine",),
)
def cosine_curve(subject: Subject, worst: Worst) -> None:
    """The product of the betas telescopes until the clip at 0.999."""
    schedule: Schedule = subject.component
    if subject.options or schedule.steps is None:
        raise Inapplicable("held at its defaults")
    T, s = schedule.steps, 0.008

    def f(u: float) -> float:
        return math.cos((u + s) / (1.0 + s) * math.pi / 2.0) ** 2

    for t in (1, 2, T // 2, T - 2, T - 1):
        worst.compare(float(schedule.level(float(t)).alpha) ** 2, f(t / T) / f(0.0), f"alpha_bar_{t}", 1e-6)
    ratio = float(schedule.level(float(T)).alpha) ** 2 / float(schedule.level(T - 1.0).alpha) ** 2
    worst.compare(ratio, 0.001, "1 - beta_T", 1e-3)


@law(
    "schedule",
    statement="alpha^2 + sigma^2 = 1 and -2 log alpha is a quadratic in t, 0 at t = 0: beta is linear",
    source="Song et al. 2021 (arXiv:2011.13456), eq. 32, 33",
    tolerance=1e-9,
    identities="A2 A6",
    only=("vp",),
)
def vp_curve(subject: Subject, worst: Worst) -> None:
    """B = int beta = b0 t + (b1 - b0) t^2 / 2; alpha = exp(-B / 2), sigma = sqrt(1 - exp(-B))."""
    schedule: Schedule = subject.component
    _quadratic(schedule, worst)
    for t in moments(subject):
        level = schedule.level(t)
        worst.compare(float(level.alpha) ** 2 + float(level.sigma) ** 2, 1.0, f"alpha^2 + sigma^2 at {t:.4g}")


@law(
    "schedule",
    statement="sigma = 1 - alpha^2, a standard deviation, and -2 log alpha is a quadratic in t",
    source="Song et al. 2021 (arXiv:2011.13456), eq. 29",
    tolerance=1e-9,
    identities="A6",
    only=("sub-vp",),
)
def sub_vp_curve(subject: Subject, worst: Worst) -> None:
    """sigma = 1 - exp(-B), not its square root."""
    schedule: Schedule = subject.component
    _quadratic(schedule, worst)
    for t in moments(subject):
        level = schedule.level(t)
        worst.compare(float(level.sigma), -math.expm1(2.0 * math.log(float(level.alpha))), f"sigma at {t:.4g}", 1e-6)


@law(
    "schedule",
    statement="alpha = 1, sigma geometric in t",
    source="Song et al. 2021 (arXiv:2011.13456), eq. 30, 31",
    tolerance=1e-9,
    identities="A6",
    only=("ve",),
)
def ve_curve(subject: Subject, worst: Worst) -> None:
    """Variance exploding: the signal is never scaled, and log sigma is linear in t."""
    schedule: Schedule = subject.component
    low, high = (math.log(float(schedule.level(t).sigma)) for t in (schedule.t_clean, schedule.t_noise))
    for t in moments(subject):
        level, u = schedule.level(t), (t - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)
        worst.compare(float(level.alpha), 1.0, f"alpha({t:.4g})")
        worst.compare(math.log(float(level.sigma)), low + u * (high - low), f"log sigma({t:.4g})")


@law(
    "schedule",
    statement="alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T): so alpha'_T = 0",
    source="Lin et al. 2024 (arXiv:2305.08891), Algorithm 1",
    tolerance=1e-9,
    identities="A10",
    only=("zero-snr",),
)
def zero_snr_curve(subject: Subject, worst: Worst) -> None:
    """The last beta becomes 1, and nothing of the data is left at T."""
    schedule = subject.component
    inner: Schedule = schedule.inner
    T = inner.steps
    assert T is not None
    first, last = (float(inner.level(t).alpha) for t in (1.0, float(T)))
    for t in (1, 2, T // 2, T - 1, T):
        want = (float(inner.level(float(t)).alpha) - last) * first / (first - last)
        worst.compare(float(schedule.level(float(t)).alpha), want, f"alpha_{t}", 1e-3)
    worst.holds(schedule.noise.is_noise, f"alpha_T = {schedule.noise.alpha}", "0, exactly")


@law(
    "schedule",
    statement="alpha = 1 - t, sigma = t",
    source="Liu et al. 2023 (arXiv:2209.03003), eq. 1",
    tolerance=1e-12,
    identities="A6",
    only=("rectified",),
)
def rectified_curve(subject: Subject, worst: Worst) -> None:
    """The straight line from data (t = 0) to noise (t = 1), up to its reparametrised time."""
    schedule: Schedule = subject.component
    for t in moments(subject):
        level = schedule.level(t)
        worst.compare(float(level.alpha) + float(level.sigma), 1.0, f"alpha + sigma at {t:.4g}")
        if not subject.options:
            worst.compare(float(level.sigma), t, f"sigma({t:.4g})")


def _quadratic(schedule: Schedule, worst: Worst) -> None:
    low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
    t = torch.tensor([low + span * u for u in (0.1, 0.3, 0.5, 0.8, 1.0)], dtype=torch.float64)
    level = schedule.level(t)
    B = -2.0 * torch.log(torch.as_tensor(level.alpha))
    basis = torch.stack([t, t * t], 1)
    fit = basis @ torch.linalg.lstsq(basis, B[:, None]).solution
    worst.compare(fit[:, 0], B, "-2 log alpha, as b t + c t^2")
