"""Laws of guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.level import Level

from ...oracles.gaussian import GaussianOracle
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, law


def denoiser() -> fixtures.ByLabel:
    """Return the exact denoiser of four Gaussian classes, with a wider Gaussian for the null label."""
    means = ((0.9, 0.0), (-0.6, 0.5), (0.0, -0.8), (1.5, 1.2))
    each = [GaussianOracle(torch.tensor(mean, dtype=torch.float64), 0.2 + 0.1 * i) for i, mean in enumerate(means)]
    return fixtures.ByLabel([*each, GaussianOracle(torch.tensor([0.2, 0.2], dtype=torch.float64), 0.9)])


LABEL = torch.tensor([0, 3, 1, 2, 0])


def inputs(case: Case) -> list[tuple[Level, Tensor]]:
    """Return levels of every family, each with noisy examples x."""
    found = []
    for level in fixtures.probe_levels():
        x0, eps = case.normal(5, 2, stream="x0"), case.normal(5, 2, stream="eps")
        found.append((level, level.add_noise(x0, eps)))
    return found


@law(
    "guidance",
    statement="the guided estimate is consistent with x: alpha x0 + sigma eps = x, at the same level",
    source="design.md, section 1; identities K, clipping",
    tolerance=1e-9,
)
def consistent(case: Case, result: LawResult) -> None:
    """If guidance changes x0 it must change eps too, since a sampler may use either."""
    for level, x in inputs(case):
        estimate = case.component(denoiser())(x, level, label=LABEL)
        size = max(1.0, float(level.alpha) * float(estimate.x0.abs().max()))
        result.compare(level.add_noise(estimate.x0, estimate.eps), x, f"alpha x0 + sigma eps at {level}", size)
        result.holds(estimate.level == level, f"level {estimate.level}", f"{level}")
        result.holds(estimate.x0.dtype == x.dtype, f"{estimate.x0.dtype}", f"{x.dtype}")


@law(
    "guidance",
    statement="the estimate of an example depends on that example only, and x is not changed",
    source="tests/pains.md, 16",
    tolerance=1e-9,
)
def each_alone(case: Case, result: LawResult) -> None:
    """Guidance uses no statistics over the batch."""
    for level, x in inputs(case)[:4]:
        kept = x.clone()
        guided = case.component(denoiser())
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
    twice = case.component(case.component(denoiser()))
    for cond in ({}, {"label": LABEL}):
        estimate = twice(x, level, **cond)
        fine = estimate.x0.shape == x.shape and bool(torch.isfinite(estimate.x0).all())
        result.holds(fine, f"guided twice, with {sorted(cond) or 'no label'}", "a finite estimate")


@law(
    "guidance",
    statement="levels may be tensors with one value for each example",
    source="design.md, section 1",
    tolerance=1e-9,
)
def tensor_levels(case: Case, result: LawResult) -> None:
    """The estimate is the same as with floats."""
    for level, x in inputs(case)[:4]:
        many = Level(*(torch.full((5,), float(c), dtype=torch.float64) for c in (level.alpha, level.sigma)))
        want = case.component(denoiser())(x, level, label=LABEL)
        got = case.component(denoiser())(x, many, label=LABEL)
        result.compare(got.x0, want.x0, f"x0 at {level}")
        result.compare(got.eps, want.eps, f"eps at {level}", max(1.0, float(want.eps.abs().max())))
