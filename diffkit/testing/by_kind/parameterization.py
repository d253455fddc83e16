"""Laws of parameterizations: targets, decoding, and weights of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffkit.errors import LevelError
from diffkit.level import Level
from diffkit.parameterization import Parameterization
from diffkit.scalar import Scalar

from ...oracles.gaussian import GaussianOracle
from ...oracles.network import ideal_output
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, level_values, reference_of
from ..variants import for_options


def levels(case: Case) -> list[Level]:
    """Return levels of every family and scale, or of the schedule of the component if it has one."""
    schedule = getattr(case.component, "schedule", None)
    if schedule is None:
        return list(fixtures.probe_levels())
    T = schedule.steps
    times = (1.0, 2.0, 10.0, T // 2, T - 1.0, T) if T else [schedule.t_clean + u for u in (0.05, 0.3, 0.9)]
    return [schedule.level(float(t)) for t in times]


def ends(case: Case) -> list[Level]:
    """Return the levels of clean data and of pure noise, in two scales."""
    if getattr(case.component, "schedule", None) is not None:
        return []
    return [Level(1.0, 0.0), Level(0.0, 1.0), Level(3.0, 0.0), Level(0.0, 0.5)]


def _det(p: Parameterization, level: Level) -> float:
    a, b = p.coefficients(level)
    return float(level.alpha) * float(b) - float(level.sigma) * float(a)


def _inputs(case: Case) -> Iterator[tuple[Level, Tensor, Tensor]]:
    for level in levels(case):
        yield level, case.normal(3, 2, stream="x0"), case.normal(3, 2, stream="eps")


Target = Callable[[Tensor, Tensor, float, float], Tensor]
"""The formula of a prediction: (x0, eps, alpha, sigma) -> target."""


def compare_target(case: Case, result: LawResult, formula: Target) -> None:
    """Compare the target of a parameterization with a formula, at levels of every family.

    Args:
        case: the parameterization.
        result: receives the errors.
        formula: the target as a function of x0, eps, alpha and sigma.

    Raises:
        NotApplicable: the component has options other than the defaults.
    """
    if case.options:
        raise NotApplicable("tested with default options only")
    p: Parameterization = case.component
    for level, x0, eps in _inputs(case):
        want = formula(x0, eps, float(level.alpha), float(level.sigma))
        result.compare(p.target(x0, eps, level), want, f"target at {level}", 1e-3)


@law(
    "parameterization",
    statement="decoding the target of (x0, eps) gives (x0, eps), at every level",
    source="identities C1; design.md, fact 1",
    tolerance=1e-9,
    identities="C1",
)
@for_options
def round_trip(case: Case, result: LawResult) -> None:
    """y = a x0 + b eps and x = alpha x0 + sigma eps: two equations with one solution if det is not 0."""
    p: Parameterization = case.component
    for level, x0, eps in _inputs(case):
        det = abs(_det(p, level))
        a, b = (abs(float(c)) for c in p.coefficients(level))
        hard = max(1.0, max(a, b, float(level.alpha), float(level.sigma)) / det)
        estimate = p.decode(ideal_output(p, x0, eps, level), level.add_noise(x0, eps), level)
        result.compare(estimate.x0, x0, f"x0 at {level}", hard)
        result.compare(estimate.eps, eps, f"eps at {level}", hard)
        result.holds(estimate.level == level, f"the estimate's level is {estimate.level}", f"{level}")


@law(
    "parameterization",
    statement="alpha x0 + sigma eps = x for every output of the network",
    source="design.md, section 1",
    tolerance=1e-9,
)
def consistent(case: Case, result: LawResult) -> None:
    """A network may be wrong, but its decoded output must be consistent with x."""
    p: Parameterization = case.component
    for level, x0, eps in _inputs(case):
        x = case.normal(3, 2)
        y = ideal_output(p, x0, eps, level)
        estimate = p.decode(y, x, level)
        size = max(1.0, float(estimate.x0.abs().max()) * float(level.alpha))
        result.compare(level.add_noise(estimate.x0, estimate.eps), x, f"alpha x0 + sigma eps at {level}", size)


@law(
    "parameterization",
    statement="coefficients are finite at every level, including alpha = 0 and sigma = 0, and not both 0",
    source="design.md, fact 1",
    tolerance=0.0,
    identities="C2",
)
def finite(case: Case, result: LawResult) -> None:
    """With finite coefficients, training needs no special case at both ends."""
    p: Parameterization = case.component
    for level in (*levels(case), *ends(case)):
        row = [float(c) for c in p.coefficients(level)]
        result.holds(
            all(math.isfinite(c) for c in row) and any(row), f"(a, b) = {row} at {level}", "finite, not (0, 0)"
        )
        c_in = float(p.c_in(level))
        result.holds(0 < c_in < math.inf, f"c_in = {c_in} at {level}", "positive and finite")


@law(
    "parameterization",
    statement="decoding at a level where y does not determine (x0, eps) raises LevelError; it never returns inf or nan",
    source="Lin et al. 2023 (arXiv:2305.08891), sec. 3.1; tests/pains.md, 4",
    tolerance=0.0,
    identities="C2",
)
def singular_ends(case: Case, result: LawResult) -> None:
    """At alpha = 0 eps does not determine x0; at sigma = 0 x0 does not determine eps."""
    p: Parameterization = case.component
    x0, eps = case.normal(3, 2, stream="x0"), case.normal(3, 2, stream="eps")
    for level in ends(case):
        for form in (level, Level(torch.full((3,), float(level.alpha)), torch.full((3,), float(level.sigma)))):
            kind = "floats" if form is level else "tensors"
            try:
                estimate = p.decode(ideal_output(p, x0, eps, form), form.add_noise(x0, eps), form)
            except LevelError as error:
                result.holds(bool(error.fix), f"LevelError without a fix at {level}", "an error that names the fix")
                continue
            fine = bool(torch.isfinite(estimate.x0).all()) and bool(torch.isfinite(estimate.eps).all())
            right = (
                fine and float((form.add_noise(estimate.x0, estimate.eps) - form.add_noise(x0, eps)).abs().max()) < 1e-5
            )
            result.holds(fine and right, f"decoded at {level} ({kind}) to a wrong or infinite estimate", "LevelError")
    if not result.checks:
        raise NotApplicable("the schedule does not contain these levels")


@law(
    "parameterization",
    statement="a c_in that varies gives the input the variance 1 for the data for which the target has the variance 1",
    source="Karras et al. 2022 (arXiv:2206.00364), app. B.6",
    tolerance=1e-6,
)
@for_options
def input_variance(case: Case, result: LawResult) -> None:
    """With data of variance v the target has variance a^2 v + b^2, the input c_in^2 (alpha^2 v + sigma^2)."""
    p: Parameterization = case.component
    scales = [float(p.c_in(level)) for level in levels(case)]
    rows = [tuple(float(c) for c in p.coefficients(level)) for level in levels(case)]
    a, b = max(rows, key=lambda row: abs(row[0]))
    v = (1.0 - b * b) / (a * a) if a else 0.0
    if len(set(scales)) == 1 or v <= 0 or any(abs(a * a * v + b * b - 1.0) > 1e-6 for a, b in rows):
        raise NotApplicable("c_in is constant, or there are no such data")
    for scale, level in zip(scales, levels(case), strict=True):
        variance = scale**2 * (float(level.alpha) ** 2 * v + float(level.sigma) ** 2)
        result.compare(variance, 1.0, f"variance of the input at {level}, for data of variance {v:.6g}")


@law(
    "parameterization",
    statement="|y - target|^2 = weight(level) |x0 - x0_hat|^2",
    source="identities C3; design.md, fact 2",
    tolerance=1e-9,
    identities="C3",
)
@for_options
def weight(case: Case, result: LawResult) -> None:
    """A change d of x0 at fixed x changes eps by -alpha d / sigma, so y by (a - b alpha / sigma) d = -det d / sigma."""
    p: Parameterization = case.component
    d = case.normal(3, 2, stream="d")
    for level, x0, eps in _inputs(case):
        shift = float(level.alpha) / float(level.sigma)
        gap = p.target(x0 + d, eps - shift * d, level) - p.target(x0, eps, level)
        got = float(p.weight(level)) * d.square().sum()
        scale = max(1e-6, float(gap.square().sum()))
        hard = max(1.0, *(abs(float(c)) for c in p.coefficients(level)), shift) ** 2
        result.note(
            abs(float(got - gap.square().sum())) / max(scale, 1e-9 * hard), f"weight at {level}", f"{scale:.9g}"
        )


@law(
    "parameterization",
    statement="levels of floats, of (B,) tensors and of shapes that broadcast to x give the same target and estimate",
    source="design.md, section 1",
    tolerance=1e-9,
)
def any_shape(case: Case, result: LawResult) -> None:
    """Training uses one level for each example, some methods one for each pixel."""
    p: Parameterization = case.component
    x0, eps = case.normal(3, 2, 4, stream="x0"), case.normal(3, 2, 4, stream="eps")
    for level in levels(case):
        want = p.decode(ideal_output(p, x0, eps, level), level.add_noise(x0, eps), level)
        size = max(1.0, float(want.x0.abs().max()), float(want.eps.abs().max()))
        rough = size * max(1.0, 1.0 / max(abs(_det(p, level)), 1e-9)) * 1e2
        for shape in ((3,), (3, 1, 1), (3, 1, 4)):
            if len(shape) > 1 and getattr(p, "schedule", None) is not None:
                continue
            many = Level(*(torch.full(shape, float(c), dtype=torch.float64) for c in (level.alpha, level.sigma)))
            y = ideal_output(p, x0, eps, many)
            result.compare(y, ideal_output(p, x0, eps, level), f"target at {level}, tensors {shape}", size)
            got = p.decode(y, many.add_noise(x0, eps), many)
            result.compare(got.x0, want.x0, f"x0 at {level}, tensors {shape}", rough)
            result.compare(got.eps, want.eps, f"eps at {level}, tensors {shape}", rough)
            factor = torch.as_tensor(p.weight(many))
            want_factor = torch.as_tensor(float(p.weight(level)), dtype=torch.float64)
            ratio = (factor / want_factor).reshape(-1)
            result.compare(ratio, torch.ones_like(ratio), f"weight at {level}, tensors {shape}", 1e3)


@law(
    "parameterization",
    statement="float32 x and y are decoded in float32, within rounding",
    source="tests/pains.md, 8",
    tolerance=1e-4,
)
def single_precision(case: Case, result: LawResult) -> None:
    """Coefficients are computed in float64; only x and y are rounded."""
    p: Parameterization = case.component
    for level, x0, eps in _inputs(case):
        y, x = ideal_output(p, x0, eps, level), level.add_noise(x0, eps)
        got = p.decode(y.float(), x.float(), level)
        result.holds(got.x0.dtype == got.eps.dtype == torch.float32, f"decoded to {got.x0.dtype}", "torch.float32")
        a, b = (abs(float(c)) for c in p.coefficients(level))
        sizes = (a, b, float(level.alpha), float(level.sigma))
        hard = max(1.0, float(x.abs().max()), float(y.abs().max())) * max(sizes) / abs(_det(p, level))
        result.compare(got.x0.double(), x0, f"x0 at {level} in float32", max(1.0, hard))
        result.compare(got.eps.double(), eps, f"eps at {level} in float32", max(1.0, hard))


@law(
    "parameterization",
    statement="on Gaussian data the minimum loss is weight(level) mmse, at the target of (x0*, eps*)",
    source="Vincent 2011; identities D2, D3",
    tolerance=1e-9,
    identities="D1 D2 D3",
)
def optimum(case: Case, result: LawResult) -> None:
    """The loss is quadratic, so four points (x0, eps) = (m +- s, +-1) with the right moments give its mean exactly."""
    p: Parameterization = case.component
    m, std = 0.3, 0.6
    oracle = GaussianOracle(torch.tensor([m, m], dtype=torch.float64), std**2)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x0, eps = (m + std * signs[:, :1]).expand(4, 2), signs[:, 1:].expand(4, 2)
    for level in levels(case):
        x = level.add_noise(x0, eps)
        best = oracle(x, level)
        y = p.target(best.x0, best.eps, level).detach().requires_grad_()
        target = p.target(x0, eps, level)
        loss = (y - target).square().sum(1).mean()
        size = max(1e-3, float(target.detach().square().sum(1).mean()))
        result.compare(float(loss), oracle.minimum_loss(p, level), f"least loss at {level}", size)
        (slope,) = torch.autograd.grad(loss, y)
        for name, direction in (("1", torch.ones_like(x)), ("x", x)):
            result.compare(float((slope * direction).sum()), 0.0, f"slope along {name} at {level}", size * 10)
        decoded = p.decode(ideal_output(p, best.x0, best.eps, level), x, level)
        result.compare(decoded.x0, best.x0, f"x0* at {level}", max(1.0, 1.0 / max(abs(_det(p, level)), 1e-6)))


@law(
    "parameterization",
    statement="out_channels(C) is at least C, and decode adds every entry of aux in `provides`",
    source="design.md, section 1",
    tolerance=0.0,
)
def channels(case: Case, result: LawResult) -> None:
    """Networks are built for this many channels; samplers read aux by name."""
    p: Parameterization = case.component
    for count in (1, 2, 3):
        made = p.out_channels(count)
        result.holds(made >= count, f"out_channels({count}) = {made}", f"at least {count}")
    for fill in (-1.0, 0.0, 1.0):
        level = levels(case)[1]
        x0, eps = case.normal(3, 2, stream="x0"), case.normal(3, 2, stream="eps")
        estimate = p.decode(ideal_output(p, x0, eps, level, fill), level.add_noise(x0, eps), level)
        for name in p.provides:
            value = estimate.aux.get(name)
            result.holds(value is not None and value.shape == x0.shape, f"aux[{name}] = {value}", "shaped like x")
            if name == "variance_fraction" and value is not None:
                inside = bool(((value >= 0) & (value <= 1)).all())
                result.holds(
                    inside, f"variance_fraction in [{float(value.min()):.3g}, {float(value.max()):.3g}]", "in [0, 1]"
                )


@law("parameterization", statement=STATEMENT, source=SOURCE, tolerance=1e-9)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """The target, from x0, eps and the level; or a mapping with any of target, c_in and c_noise."""
    formula, p = reference_of(case), case.component
    for level, x0, eps in _inputs(case):
        stated = evaluate(formula, {"x0": x0, "eps": eps, **level_values(level)})
        for name, want in (stated if isinstance(stated, Mapping) else {"target": stated}).items():
            if name not in STATED:
                raise TypeError(f"law_reference returns {name}; allowed are {', '.join(STATED)}")
            got = STATED[name](p, x0, eps, level)
            if got is None or want is None:
                result.holds(got is want, f"{name} at {level}: {got}", f"{want}")
            else:
                result.compare(got, want, f"{name} at {level}", SMALLEST[name])


STATED: Mapping[str, Callable[[Parameterization, Tensor, Tensor, Level], Tensor | Scalar | None]] = {
    "target": lambda p, x0, eps, level: p.target(x0, eps, level),
    "c_in": lambda p, x0, eps, level: p.c_in(level),
    "c_noise": lambda p, x0, eps, level: p.c_noise(level),
}
"""What a law_reference may state."""
SMALLEST = {"target": 1.0, "c_in": 1e-3, "c_noise": 1.0}
"""The smallest size that the error of each is relative to."""
