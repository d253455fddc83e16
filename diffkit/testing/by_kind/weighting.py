"""Laws of weightings."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.level import Level
from diffkit.objective import Weighting
from diffkit.schedule import Schedule

from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject


def places(subject: Subject) -> list[tuple[Schedule, Tensor]]:
    """Schedules and training times on them, whole on discrete ones."""
    own = getattr(subject.component, "schedule", None)
    found: list[tuple[Schedule, Tensor]] = []
    for schedule in [own] if own is not None else [families.discrete(), families.TRIG, families.EXPLODING]:
        if schedule.steps is not None:
            T = schedule.steps
            found.append((schedule, torch.tensor([1, 2, 3, 10, T // 2, T - 1, T])))
        else:
            u = torch.tensor([0.02, 0.1, 0.4, 0.7, 0.97], dtype=torch.float64)
            found.append((schedule, schedule.t_clean + (schedule.t_noise - schedule.t_clean) * u))
    return found


@law(
    "weighting",
    statement="one finite weight >= 0 for each example, not all zero",
    source="the definition of Weighting",
    tolerance=0.0,
)
def weights(subject: Subject, worst: Worst) -> None:
    """Of the shape of the levels, float32 or better."""
    for schedule, t in places(subject):
        w = torch.as_tensor(subject.component(schedule.level(t)))
        at = type(schedule).__name__
        worst.holds(w.shape == t.shape, f"{at}: weights of shape {tuple(w.shape)}", f"{tuple(t.shape)}")
        worst.holds(w.dtype in (torch.float32, torch.float64), f"{at}: weights are {w.dtype}", "float32 or float64")
        fine = bool(torch.isfinite(w).all()) and bool((w >= 0).all()) and bool((w > 0).any())
        worst.holds(fine, f"{at}: weights {w.tolist()}", "finite, >= 0, not all 0")


@law(
    "weighting",
    statement="the weight of an example depends on its own level only",
    source="tests/pains.md, 12",
    tolerance=1e-12,
)
def each_alone(subject: Subject, worst: Worst) -> None:
    """No normalisation over the batch, which would change with its composition."""
    for schedule, t in places(subject):
        whole = torch.as_tensor(subject.component(schedule.level(t)))
        for i in range(len(t)):
            alone = torch.as_tensor(subject.component(schedule.level(t[i : i + 1])))
            worst.compare(alone[0], whole[i], f"t = {float(t[i]):.5g} alone and in a batch", 1e-9)


@law(
    "weighting",
    statement="w(level) |x0 - x0_hat|^2 is the same loss in every parameterization",
    source="Hang et al. 2023 (arXiv:2303.09556); identities C3, C5; tests/pains.md, 12",
    tolerance=1e-7,
    identities="C3 C5",
)
def same_loss(subject: Subject, worst: Worst) -> None:
    """on_output divides by (det / sigma)^2, which is what the error of y is more than that of x0."""
    weighting: Weighting = subject.component
    for schedule, t in places(subject):
        level = schedule.level(t)
        x0, eps = subject.normal(len(t), 2, stream="x0"), subject.normal(len(t), 2, stream="eps")
        d = subject.normal(len(t), 2, stream="d")
        column = level.like(x0)
        want = torch.as_tensor(weighting(level)) * d.square().sum(1)
        for p in families.ROWS:
            error = p.target(x0 + d, eps - column.alpha / column.sigma * d, level) - p.target(x0, eps, level)
            got = torch.as_tensor(weighting.on_output(level, p)) * error.square().sum(1)
            keep = torch.as_tensor(p.weight(level)) > 1e-12
            ratio = torch.where(keep & (want > 0), got / want, torch.ones_like(want))
            worst.compare(ratio, torch.ones_like(ratio), f"loss of {p.title}, relative, on {type(schedule).__name__}")


def _formula(subject: Subject, worst: Worst, want: object) -> None:
    for schedule, t in places(subject):
        level = schedule.level(t)
        expected = want(level)  # type: ignore[operator]
        got = torch.as_tensor(subject.component(level))
        ratio = got / expected
        worst.compare(ratio, torch.ones_like(ratio), f"w / expected on {type(schedule).__name__}")


def _snr(level: Level) -> Tensor:
    return (torch.as_tensor(level.alpha) / torch.as_tensor(level.sigma)) ** 2


def _option(subject: Subject, name: str, default: float) -> float:
    return float(getattr(subject.component, name, default))


@law("weighting", statement="w = 1", source="the definition", tolerance=1e-12, only=("uniform",))
def uniform_formula(subject: Subject, worst: Worst) -> None:
    """The error of x0 as it is."""
    _formula(subject, worst, lambda level: torch.ones_like(level.sigma))


@law(
    "weighting",
    statement="w = snr",
    source="Ho et al. 2020 (arXiv:2006.11239), eq. 14",
    tolerance=1e-9,
    identities="C4",
    only=("snr",),
)
def snr_formula(subject: Subject, worst: Worst) -> None:
    """L_simple, a unit weight on eps."""
    _formula(subject, worst, _snr)


@law(
    "weighting",
    statement="w = min(snr, gamma)",
    source="Hang et al. 2023 (arXiv:2303.09556), sec. 3.4",
    tolerance=1e-9,
    identities="C5",
    only=("min-snr",),
)
def min_snr_formula(subject: Subject, worst: Worst) -> None:
    """On x0, whatever is predicted; on eps it is min(snr, gamma) / snr."""
    gamma = _option(subject, "gamma", 5.0)
    _formula(subject, worst, lambda level: _snr(level).clamp(max=gamma))


@law(
    "weighting",
    statement="w = snr gamma / (snr + gamma)",
    source="Crowson et al. 2024 (arXiv:2401.11605), sec. 3.4",
    tolerance=1e-9,
    only=("soft-min-snr",),
)
def soft_min_snr_formula(subject: Subject, worst: Worst) -> None:
    """The harmonic minimum of the two."""
    gamma = _option(subject, "gamma", 4.0)
    if "gamma" not in vars(subject.component) and not hasattr(subject.component, "gamma"):
        raise Inapplicable("it has no gamma")
    _formula(subject, worst, lambda level: _snr(level) * gamma / (_snr(level) + gamma))


@law(
    "weighting",
    statement="w = snr / (k + snr)^gamma",
    source="Choi et al. 2022 (arXiv:2204.00227), eq. 8",
    tolerance=1e-9,
    identities="C5",
    only=("p2",),
)
def p2_formula(subject: Subject, worst: Worst) -> None:
    """1 / (k + snr)^gamma on the eps loss, whose weight on x0 is snr."""
    k, gamma = _option(subject, "k", 1.0), _option(subject, "gamma", 1.0)
    _formula(subject, worst, lambda level: _snr(level) / (k + _snr(level)) ** gamma)


@law(
    "weighting",
    statement="w = (sigma^2 + sd^2) / (sigma sd)^2, sigma the noise of x / alpha, sd the data's deviation",
    source="Karras et al. 2022 (arXiv:2206.00364), eq. 8",
    tolerance=1e-9,
    identities="C5",
    only=("edm",),
)
def edm_formula(subject: Subject, worst: Worst) -> None:
    """A unit weight on F."""
    sd = _option(subject, "sigma_data", 0.5)
    _formula(subject, worst, lambda level: 1.0 / sd**2 + _snr(level))


@law(
    "weighting",
    statement="w = -d snr / dt = g^2 snr / sigma^2",
    source="Song et al. 2021 (arXiv:2101.09258), theorem 1",
    tolerance=1e-5,
    identities="D13 D14",
    only=("likelihood",),
)
def likelihood_formula(subject: Subject, worst: Worst) -> None:
    """Against a central difference of the curve."""
    for schedule, t in places(subject):
        got = torch.as_tensor(subject.component(schedule.level(t))).tolist()
        if schedule.steps is not None:
            continue
        for at, w in zip(t.tolist(), got, strict=True):
            d = 1e-5 * (at - schedule.t_clean)
            want = -0.5 * (float(schedule.level(at + d).snr) - float(schedule.level(at - d).snr)) / d
            worst.note(abs(w / want - 1.0), f"w({at:.4g}) = {w:.9g}", f"{want:.9g}")


@law(
    "weighting",
    statement="w = (snr_{t-1} - snr_t) / 2 for t > 1, 1 / (2 beta tilde_2) at t = 1; -(1/2) d snr / dt on curves",
    source="Kingma et al. 2021 (arXiv:2107.00630), eq. 13, 17",
    tolerance=1e-6,
    identities="C4 D13",
    only=("vlb",),
)
def vlb_formula(subject: Subject, worst: Worst) -> None:
    """The coefficient of |x0 - x0_hat|^2 in the KL terms with variance beta tilde."""
    for schedule, t in places(subject):
        got = torch.as_tensor(subject.component(schedule.level(t))).tolist()
        for at, w in zip(t.tolist(), got, strict=True):
            if schedule.steps is None:
                d = 1e-5 * (schedule.t_noise - schedule.t_clean)
                want = -0.25 * (float(schedule.level(at + d).snr) - float(schedule.level(at - d).snr)) / d
                worst.note(0.01 * abs(w / want - 1.0), f"w({at:.4g}) = {w:.9g}", f"{want:.9g}")
                continue
            if at == 1:
                one, two = schedule.level(1.0), schedule.level(2.0)
                beta_tilde = float(one.sigma) ** 2 * (1.0 - float(two.snr) / float(one.snr))
                want = 0.5 / beta_tilde
            else:
                want = 0.5 * (float(schedule.level(at - 1.0).snr) - float(schedule.level(float(at)).snr))
            worst.note(abs(w / want - 1.0), f"w({at}) = {w:.9g}", f"{want:.9g}")
