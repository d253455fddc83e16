"""Laws of weightings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffkit.level import Level
from diffkit.objective import Weighting
from diffkit.schedule import Schedule

from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, level_values, reference_of


def places(case: Case) -> list[tuple[Schedule, Tensor]]:
    """Return schedules with training times, whole on discrete ones."""
    own = getattr(case.component, "schedule", None)
    found: list[tuple[Schedule, Tensor]] = []
    for schedule in [own] if own is not None else [fixtures.discrete(), fixtures.TRIG, fixtures.EXPLODING]:
        if schedule.steps is not None:
            T = schedule.steps
            found.append((schedule, torch.tensor([1, 2, 3, 10, T // 2, T - 1, T])))
        else:
            u = torch.tensor([0.02, 0.1, 0.4, 0.7, 0.97], dtype=torch.float64)
            found.append((schedule, schedule.t_clean + (schedule.t_noise - schedule.t_clean) * u))
    return found


@law(
    "weighting",
    statement="there is one finite weight >= 0 for each example, and not all are zero",
    source="the definition of Weighting",
    tolerance=0.0,
)
def weights(case: Case, result: LawResult) -> None:
    """Weights have the shape of the levels, in float32 or float64."""
    for schedule, t in places(case):
        w = torch.as_tensor(case.component(schedule.level(t)))
        at = type(schedule).__name__
        result.holds(w.shape == t.shape, f"{at}: weights of shape {tuple(w.shape)}", f"{tuple(t.shape)}")
        result.holds(w.dtype in (torch.float32, torch.float64), f"{at}: weights are {w.dtype}", "float32 or float64")
        fine = bool(torch.isfinite(w).all()) and bool((w >= 0).all()) and bool((w > 0).any())
        result.holds(fine, f"{at}: weights {w.tolist()}", "finite, >= 0, not all 0")


@law(
    "weighting",
    statement="the weight of an example depends on its own level only",
    source="tests/pains.md, 12",
    tolerance=1e-12,
)
def each_alone(case: Case, result: LawResult) -> None:
    """A weighting is not normalised over the batch."""
    for schedule, t in places(case):
        whole = torch.as_tensor(case.component(schedule.level(t)))
        for i in range(len(t)):
            alone = torch.as_tensor(case.component(schedule.level(t[i : i + 1])))
            result.compare(alone[0], whole[i], f"t = {float(t[i]):.5g} alone and in a batch", 1e-9)


@law(
    "weighting",
    statement="w(level) |x0 - x0_hat|^2 is the same loss in every parameterization",
    source="Hang et al. 2023 (arXiv:2303.09556); identities C3, C5; tests/pains.md, 12",
    tolerance=1e-7,
    identities="C3 C5",
)
def same_loss(case: Case, result: LawResult) -> None:
    """on_output divides by (det / sigma)^2, the ratio of the squared error of y to that of x0."""
    weighting: Weighting = case.component
    for schedule, t in places(case):
        level = schedule.level(t)
        x0, eps = case.normal(len(t), 2, stream="x0"), case.normal(len(t), 2, stream="eps")
        d = case.normal(len(t), 2, stream="d")
        column = level.like(x0)
        want = torch.as_tensor(weighting(level)) * d.square().sum(1)
        for p in fixtures.ROWS:
            error = p.target(x0 + d, eps - column.alpha / column.sigma * d, level) - p.target(x0, eps, level)
            got = torch.as_tensor(weighting.on_output(level, p)) * error.square().sum(1)
            keep = torch.as_tensor(p.weight(level)) > 1e-12
            ratio = torch.where(keep & (want > 0), got / want, torch.ones_like(want))
            result.compare(ratio, torch.ones_like(ratio), f"loss of {p.title}, relative, on {type(schedule).__name__}")


def every_level(case: Case) -> Iterator[tuple[float, Level]]:
    """Yield levels of floats from nearly clean to nearly pure noise, on curves of several scales, with their times.

    A weighting of one schedule gets levels of that schedule only.
    """
    own = getattr(case.component, "schedule", None)
    if own is not None:
        for _, t in places(case):
            yield from ((float(one), _as_floats(own.level(one[None]))) for one in t)
        return
    for i in range(-60, 61, 4):
        angle = math.atan(math.exp(-i / 10))
        sine, cosine = math.sin(angle), math.cos(angle)
        for level in (
            Level(cosine, sine),
            Level(1.0, sine / cosine),
            Level(cosine / (sine + cosine), sine / (sine + cosine)),
        ):
            yield math.nan, level


def _as_floats(level: Level) -> Level:
    return Level(float(torch.as_tensor(level.alpha)), float(torch.as_tensor(level.sigma)))


def weight_at(weighting: Weighting, level: Level) -> float:
    """Return the weight at a level of floats, computed as in training, on tensors (1,)."""
    alpha, sigma = (torch.tensor([float(value)], dtype=torch.float64) for value in (level.alpha, level.sigma))
    return float(torch.as_tensor(weighting(Level(alpha, sigma))))


@law("weighting", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-6)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of level, snr, half_logsnr, logsnr, ratio, alpha, sigma or t; or a table {snr: weight}."""
    stated = reference_of(case)
    if callable(stated):
        points = [(level, evaluate(stated, {**level_values(level), "t": t})) for t, level in every_level(case)]
    else:
        points = [(Level(math.sqrt(snr / (1 + snr)), 1 / math.sqrt(1 + snr)), want) for snr, want in stated.items()]
    for level, want in points:
        got, snr = weight_at(case.component, level), level_values(level)["snr"]
        result.note(abs(got - want) / max(abs(want), 1e-30), f"weight at snr = {snr:.6g}: {got:.9g}", f"{want:.9g}")


@law(
    "weighting",
    statement="the weight depends on alpha / sigma only: x and 3.7 x have the same signal-to-noise ratio",
    source="the definition of Weighting; identities A8",
    tolerance=1e-9,
    identities="A8",
)
def scale_free(case: Case, result: LawResult) -> None:
    """w is the weight of |x0 - x0_hat|^2, and x0 does not change if x is scaled."""
    for _, level in every_level(case):
        want = weight_at(case.component, level)
        got = weight_at(case.component, Level(3.7 * float(level.alpha), 3.7 * float(level.sigma)))
        result.note(abs(got - want) / max(abs(want), 1e-30), f"weight at 3.7 times {level}: {got:.9g}", f"{want:.9g}")


@law(
    "weighting",
    statement="the weight is finite at pure noise, alpha = 0",
    source="Lin et al. 2023 (arXiv:2305.08891), sec. 3.1",
    tolerance=0.0,
)
def pure_noise(case: Case, result: LawResult) -> None:
    """Schedules with zero terminal signal-to-noise ratio, and the straight path, train at alpha = 0."""
    if getattr(case.component, "schedule", None) is not None:
        raise NotApplicable("the weighting belongs to one schedule")
    for level in (Level(0.0, 1.0), Level(0.0, 80.0)):
        w = weight_at(case.component, level)
        result.holds(math.isfinite(w) and w >= 0, f"weight at {level}: {w}", "a finite number >= 0")


def compare_weight(case: Case, result: LawResult, formula: Callable[[Level], Tensor]) -> None:
    """Compare a weighting with a formula at training times of several schedules, with relative errors.

    Args:
        case: the weighting.
        result: receives the errors.
        formula: the weight at a level.
    """
    for schedule, t in places(case):
        level = schedule.level(t)
        ratio = torch.as_tensor(case.component(level)) / formula(level)
        result.compare(ratio, torch.ones_like(ratio), f"w / expected on {type(schedule).__name__}")


def snr(level: Level) -> Tensor:
    """Return (alpha / sigma)^2, computed without `Level.snr`."""
    return (torch.as_tensor(level.alpha) / torch.as_tensor(level.sigma)) ** 2
