"""Laws of guidance.

The laws evaluate it on the exact denoiser of four Gaussian classes, which records the calls: from these follows whether
the guidance compares a label with no label, with another label, or changes one estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffkit.denoiser import Denoiser
from diffkit.estimate import Estimate
from diffkit.guidance import Guidance
from diffkit.level import Level

from ...oracles.gaussian import GaussianOracle
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..options import options_used
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, level_values, reference_of

LABEL = torch.tensor([0, 3, 1, 2, 0])
NULL = 4
HO = "Ho & Salimans 2022 (arXiv:2207.12598)"


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A denoiser that records the conditions and estimates of its calls, and adds an entry of aux.

    A call on a batch of several times the examples counts as one call for each.
    """

    denoise: Denoiser
    calls: list[tuple[dict[str, Tensor], Estimate]] = dataclasses.field(default_factory=list)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        estimate = self.denoise(x, level, **cond)
        estimate = estimate.with_aux(variance_fraction=torch.sigmoid(estimate.x0))
        for first in range(0, len(x), len(LABEL)):
            rows = slice(first, first + len(LABEL))
            part = dataclasses.replace(
                estimate,
                x0=estimate.x0[rows],
                eps=estimate.eps[rows],
                aux={n: v[rows] for n, v in estimate.aux.items()},
            )
            self.calls.append(({name: value[rows] for name, value in cond.items()}, part))
        return estimate

    def of(self, *roles: str) -> list[Estimate]:
        """Return the estimates of the calls with these roles: "labelled", "null" or "other"."""
        return [estimate for cond, estimate in self.calls if role_of(cond.get("label")) in roles]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A denoiser with the same x0 for every x."""

    x0: Tensor

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        return Estimate.from_x0(x, level, self.x0.repeat(len(x) // len(self.x0), 1))


def role_of(label: Tensor | None) -> str:
    """Return whether a call has the labels of the examples, none, or others."""
    if label is None or bool((label == NULL).all()):
        return "null"
    return "labelled" if len(label) == len(LABEL) and torch.equal(label, LABEL) else "other"


@dataclasses.dataclass(frozen=True)
class Guided:
    """One guided estimate, with the calls of the denoiser and the exact estimates with and without labels."""

    level: Level
    x: Tensor
    estimate: Estimate
    recorder: Recorder
    labelled: Estimate
    null: Estimate


def runs(case: Case, component: Guidance | None = None, denoise: Denoiser | None = None) -> Iterator[Guided]:
    """Yield the guided estimate at levels of every family.

    Args:
        case: the guidance.
        component: the guidance to evaluate in place of that of the case.
        denoise: the denoiser; that of four classes by default.

    Yields:
        One run for each level.
    """
    truth = fixtures.classes() if denoise is None else denoise
    for level, x in inputs(case):
        recorder = Recorder(truth)
        estimate = (component or case.component)(recorder)(x, level, label=LABEL)
        yield Guided(level, x, estimate, recorder, Recorder(truth)(x, level, label=LABEL), Recorder(truth)(x, level))


def inputs(case: Case) -> list[tuple[Level, Tensor]]:
    """Return levels of every family, each with noisy examples x."""
    found = []
    for level in fixtures.probe_levels():
        x0, eps = case.normal(5, 2, stream="x0"), case.normal(5, 2, stream="eps")
        found.append((level, level.add_noise(x0, eps)))
    return found


def _other(run: Guided) -> Estimate | None:
    """Return the estimate that the guidance compares the labelled one with."""
    others = run.recorder.of("null", "other")
    return others[0] if others else None


@law(
    "guidance",
    statement="the guided estimate is consistent with x: alpha x0 + sigma eps = x, at the same level",
    source="design.md, section 1; identities K, clipping",
    tolerance=1e-9,
)
def consistent(case: Case, result: LawResult) -> None:
    """If guidance changes x0 it must change eps too, since a sampler may use either."""
    if case.component.renoises:
        raise NotApplicable("renoises is set: see the law renoised")
    for run in runs(case):
        level, x, estimate = run.level, run.x, run.estimate
        size = max(1.0, float(level.alpha) * float(estimate.x0.abs().max()))
        result.compare(level.add_noise(estimate.x0, estimate.eps), x, f"alpha x0 + sigma eps at {level}", size)
        result.holds(estimate.level == level, f"level {estimate.level}", f"{level}")
        result.holds(estimate.x0.dtype == x.dtype, f"{estimate.x0.dtype}", f"{x.dtype}")


@law(
    "guidance",
    statement="if `renoises` is set, eps is that of the estimate without a label",
    source="Chung et al. 2024 (arXiv:2406.08070), Algorithm 2",
    tolerance=1e-9,
)
def renoised(case: Case, result: LawResult) -> None:
    """The noise of the next level is the unguided one, so that only x0 is guided."""
    if not case.component.renoises:
        raise NotApplicable("renoises is not set")
    for run in runs(case):
        result.compare(run.estimate.eps, run.null.eps, f"eps at {run.level}", max(1.0, float(run.null.eps.abs().max())))
        result.holds(run.estimate.level == run.level, f"level {run.estimate.level}", f"{run.level}")


@law(
    "guidance",
    statement="the estimate of an example depends on that example only, and x is not changed",
    source="tests/pains.md, 16",
    tolerance=1e-9,
)
def each_alone(case: Case, result: LawResult) -> None:
    """Guidance uses no statistics over the batch."""
    for level, x in inputs(case):
        kept = x.clone()
        guided = case.component(fixtures.classes())
        whole = guided(x, level, label=LABEL)
        for i in range(len(x)):
            alone = guided(x[i : i + 1], level, label=LABEL[i : i + 1])
            result.compare(alone.x0[0], whole.x0[i], f"x0 of example {i} alone at {level}")
            result.compare(alone.eps[0], whole.eps[i], f"eps of example {i} alone at {level}")
        result.compare(x, kept, "x afterwards")


@law(
    "guidance",
    statement="a guided denoiser can be guided again, and called without a label",
    source="the definition of Guidance",
    tolerance=0.0,
)
def composes(case: Case, result: LawResult) -> None:
    """Guidance maps a denoiser to a denoiser, so several can be chained."""
    level, x = inputs(case)[1]
    twice = case.component(case.component(fixtures.classes()))
    for cond in ({}, {"label": LABEL}):
        estimate = twice(x, level, **cond)
        fine = estimate.x0.shape == x.shape and bool(torch.isfinite(estimate.x0).all())
        result.holds(fine, f"guided twice, with {sorted(cond) or 'no label'}", "a finite estimate")


@law(
    "guidance",
    statement="levels may be tensors with one value for each example, and each example has the result of its own level",
    source="design.md, section 1",
    tolerance=1e-9,
)
def tensor_levels(case: Case, result: LawResult) -> None:
    """The estimate is the same as with floats."""
    levels = fixtures.probe_levels()
    for title, rows in (("equal levels", [levels[2]] * 5), ("five levels", levels[:5]), ("other levels", levels[5:10])):
        many = Level(*(torch.tensor([float(v) for v in c], dtype=torch.float64) for c in zip(*map(_pair, rows))))
        x = many.add_noise(case.normal(5, 2, stream="x0"), case.normal(5, 2, stream="eps"))
        got = case.component(fixtures.classes())(x, many, label=LABEL)
        for i, level in enumerate(rows):
            want = case.component(fixtures.classes())(x[i : i + 1], level, label=LABEL[i : i + 1])
            result.compare(got.x0[i], want.x0[0], f"{title}: x0 at {level}")
            result.compare(got.eps[i], want.eps[0], f"{title}: eps at {level}", max(1.0, float(want.eps.abs().max())))


def _pair(level: Level) -> tuple[Any, Any]:
    return level.alpha, level.sigma


@law(
    "guidance",
    statement="aux is that of the labelled estimate, or else of the estimate that is guided",
    source="the definition of Estimate",
    tolerance=1e-12,
)
def keeps_aux(case: Case, result: LawResult) -> None:
    """A sampler reads further outputs of the network, such as a variance, from the guided estimate."""
    for run in runs(case):
        sources = run.recorder.of("labelled") or run.recorder.of("null") or run.recorder.of("other")
        got = run.estimate.aux.get("variance_fraction")
        result.holds(got is not None, f"aux has {sorted(run.estimate.aux) or 'no entry'} at {run.level}", "all entries")
        if got is not None and sources:
            result.compare(got, sources[0].aux["variance_fraction"], f"aux at {run.level}")


@law(
    "guidance",
    statement="every evaluation receives all conditions but the label unchanged, and the result depends on the label",
    source="the definition of Guidance",
    tolerance=0.0,
)
def conditions(case: Case, result: LawResult) -> None:
    """A condition that one evaluation lacks is guided by mistake.

    A guidance may use no condition of the network at all, and options may turn it off.
    """
    extra = torch.arange(5.0)
    changed = False
    for level, x in inputs(case):
        recorder = Recorder(fixtures.classes())
        guided = case.component(recorder)
        estimate = guided(x, level, label=LABEL, extra=extra)
        for cond, _ in recorder.calls if any(cond for cond, _ in recorder.calls) else ():
            got = cond.get("extra")
            result.holds(got is not None and torch.equal(got, extra), f"a call with {sorted(cond)}", "with extra")
        turned = guided(x, level, label=LABEL.roll(1), extra=extra)
        changed = changed or not torch.equal(turned.x0, estimate.x0)
    fine = changed or bool(case.options.keys() - {"example"})
    result.holds(fine, "other labels give the same estimates", "estimates that depend on the label")


@law(
    "guidance",
    statement="`needs_null` is set if the null class is evaluated, and then no other label that an example has not",
    source=f"{HO}; the definition of Shape",
    tolerance=0.0,
)
def null_class(case: Case, result: LawResult) -> None:
    """Class K of 0..K is the null class; the last class K - 1 is a class of the data."""
    for run in runs(case):
        if run.recorder.of("null") and run.recorder.of("labelled"):
            result.holds(case.component.needs_null, "the null class is evaluated, needs_null is False", "True")
        if case.component.needs_null:
            labels = [cond["label"].tolist() for cond, _ in run.recorder.calls if role_of(cond.get("label")) == "other"]
            result.holds(not labels, f"evaluated with the labels {labels[:1]}", f"{LABEL.tolist()} or {NULL}")


@law(
    "guidance",
    statement="guidance moves x0 from the estimate it compares with towards the labelled one, and not away from it",
    source=f"{HO}, eq. 6; identities F5",
    tolerance=0.0,
    identities="F5",
)
def direction(case: Case, result: LawResult) -> None:
    """The sum over levels of <guided - other, labelled - other> / |labelled - other|^2 is the effective scale.

    It grows with the option `scale`, if there is one.
    """
    scales = [_effective_scale(case, case.component)]
    if _has_scale(case):
        scale = case.component.scale
        scales.append(_effective_scale(case, dataclasses.replace(case.component, scale=2.0 * scale)) - scales[0])
    for value, text in zip(scales, ("effective scale", "growth of it if scale is doubled"), strict=False):
        result.holds(value >= -1e-9, f"{text}: {value:.4g}", "0 or more")


def _has_scale(case: Case) -> bool:
    return dataclasses.is_dataclass(case.component) and any(
        one.name == "scale" for one in dataclasses.fields(case.component)
    )


def _effective_scale(case: Case, component: Guidance) -> float:
    """Return the mean over levels; raise NotApplicable if the guidance evaluates nothing but the labelled estimate."""
    shares = []
    for run in runs(case, component):
        other = _other(run)
        if other is not None:
            towards = run.labelled.x0 - other.x0
            shares.append(float(((run.estimate.x0 - other.x0) * towards).sum() / towards.square().sum()))
    if not shares:
        raise NotApplicable("the guidance evaluates nothing but the labelled estimate")
    return sum(shares) / len(shares)


@law(
    "guidance",
    statement="with scale = 1 a comparison of two conditions is the labelled estimate",
    source="the definition of Guidance; identities K",
    tolerance=1e-9,
)
def unit_scale(case: Case, result: LawResult) -> None:
    """The option `scale` of diffkit is 1 + the weight w of Ho & Salimans, so that 1 means no guidance."""
    if not _has_scale(case) or case.options.get("scale") is not None:
        raise NotApplicable("the guidance has no option scale, or another value is tested")
    if not any(run.recorder.of("labelled") and _other(run) is not None for run in runs(case)):
        raise NotApplicable("the guidance does not compare two conditions")
    for run in runs(case, dataclasses.replace(case.component, scale=1.0)):
        result.compare(run.estimate.x0, run.labelled.x0, f"x0 at {run.level}")


@law(
    "guidance",
    statement="if two conditions give nearly the same estimate, guidance changes little",
    source="the definition of Guidance",
    tolerance=1e-3,
)
def small_differences(case: Case, result: LawResult) -> None:
    """A limit on the size of a difference must not enlarge a small one."""
    close = fixtures.ByLabel([GaussianOracle(torch.tensor([1e-6 * k, 0.5]), 0.3) for k in range(NULL + 1)])
    for run in runs(case, denoise=close):
        if run.recorder.of("labelled") and _other(run) is not None:
            result.compare(run.estimate.x0, run.labelled.x0, f"x0 at {run.level}, if labels differ by 1e-6")
    if not result.checks:
        raise NotApplicable("the guidance does not compare two conditions")


@law(
    "guidance",
    statement="a function of x0 alone, such as clipping, does not enlarge the largest |x0| of an example",
    source="Saharia et al. 2022 (arXiv:2205.11487), sec. 2.3",
    tolerance=1e-9,
)
def no_enlarging(case: Case, result: LawResult) -> None:
    """Limits that act on estimates within them move samples away from the data."""
    level, (first, second) = Level(0.8, 0.6), (case.normal(5, 2, stream=name) for name in ("one", "two"))
    pattern = torch.tensor([[1.0, -0.4], [0.3, 1.0], [-1.0, 0.9], [-0.2, -1.0], [1.0, 1.0]], dtype=torch.float64)
    for size in (0.05, 0.3, 0.9, 1.5, 4.0):
        recorder = Recorder(Constant(size * pattern))
        guided = case.component(recorder)
        got, other = (guided(x, level, label=LABEL).x0 for x in (first, second))
        if len(recorder.calls) != 2 or len(recorder.of("labelled")) != 2 or not torch.equal(got, other):
            raise NotApplicable("the guided x0 is not a function of one x0")
        most = got.abs().amax(1)
        result.compare(torch.clamp(most - size, min=0.0), 0.0, f"|x0| - {size}, x0 of size {size}")


@law(
    "guidance",
    statement="each number and choice among the options has an effect",
    source="the definition of an option",
    tolerance=0.0,
    name="options-used",
)
def used_options(case: Case, result: LawResult) -> None:
    """An option that no line reads does not do what its description states."""

    rows = fixtures.probe_levels()
    many = Level(*(torch.tensor([float(v) for v in c], dtype=torch.float64) for c in zip(*map(_pair, rows))))
    x = many.add_noise(case.normal(len(rows), 2, stream="x0"), case.normal(len(rows), 2, stream="eps"))
    label = LABEL.repeat(3)[: len(rows)]

    def observe(component: Guidance) -> list[Tensor]:
        estimate = component(fixtures.classes())(x, many, label=label)
        return [estimate.x0, estimate.eps]

    options_used(case, result, observe)


@law("guidance", statement=STATEMENT, source=SOURCE, tolerance=1e-9)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """The guided x0: from x0 with labels (labelled), without (null), x, label, and the level."""
    formula = reference_of(case)
    for run in runs(case):
        values = {
            "x": run.x,
            "label": LABEL,
            "labelled": run.labelled.x0,
            "null": run.null.x0,
            **level_values(run.level),
        }
        result.compare(run.estimate.x0, evaluate(formula, values), f"x0 at {run.level}")
