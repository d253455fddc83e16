"""Laws of objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from diffkit.denoiser import Model
from diffkit.network import Network
from diffkit.noise import RandomStreams
from diffkit.objective import Loss, Objective
from diffkit.parameterization import Parameterization
from diffkit.schedule import Schedule

from ...oracles.network import OracleNetwork, ideal_output
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law


class FixedRandomStreams(RandomStreams):
    """Random streams that return given noise, and one uniform number for all examples."""

    def __init__(self, eps: Tensor, uniform: float) -> None:
        super().__init__(0, 0, len(eps))
        self.eps, self.value = eps, uniform

    def normal(self, stream: str, like: Tensor) -> Tensor:
        return self.eps.to(like)

    def uniform(self, stream: str, like: Tensor, count: int | None = None) -> Tensor:
        return torch.full((len(like),) if count is None else (len(like), count), self.value)

    def batch_uniform(self, stream: str, like: Tensor) -> Tensor:
        return torch.full((self.total,), self.value)


class IgnoringConditions(OracleNetwork):
    """An exact network that accepts any conditions."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        return super().forward(x, c_noise)


class CorrectedNetwork(Network):
    """Add a trainable constant and a trainable linear function of x to the output of a network."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner = inner
        self.constant = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        y = self.inner(x, c_noise, **cond)
        more = self.constant + x @ self.slope
        return torch.cat([y[:, :2] + more, y[:, 2:]], 1)


class RecordingNetwork(CorrectedNetwork):
    """Record x and the conditions of each call."""

    def __init__(self, inner: Network) -> None:
        super().__init__(inner)
        self.calls: list[tuple[Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        self.calls.append((x.detach(), cond if label is None else {"label": label, **cond}))
        return super().forward(x, c_noise, **cond)


class PerturbedNetwork(Network):
    """The exact denoiser with an error of x0 of size `by`, the same in every parameterization.

    The error also depends on conditions other than the label.
    """

    def __init__(self, p: Parameterization, schedule: Schedule, by: float) -> None:
        super().__init__()
        self.p, self.schedule, self.by, self.conditioned = p, schedule, by, False
        self.reader = OracleNetwork(fixtures.GaussianData(), schedule, p)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        level = self.reader._level(c_noise.double())
        estimate = fixtures.gaussian()(x, level)
        self.conditioned = self.conditioned or bool(cond)
        more = sum((value.double().flatten(1).mean(1) for value in cond.values()), torch.zeros(len(x)))
        estimate = estimate.with_x0(estimate.x0 + self.by * (1.0 + 0.5 * x + more[:, None]))
        return ideal_output(self.p, estimate.x0, estimate.eps, level)


def design() -> tuple[Tensor, Tensor]:
    """Return eight pairs (x0, eps) whose means and covariances equal those of the data and the noise.

    So the mean of a quadratic function over the pairs equals its expectation.
    """
    z = 2.0 * torch.cat([torch.eye(4, dtype=torch.float64), -torch.eye(4, dtype=torch.float64)])
    root = torch.linalg.cholesky(fixtures.COVARIANCE)
    return fixtures.MEAN + z[:, :2] @ root.T, z[:, 2:]


def settings(case: Case) -> Iterator[tuple[Schedule, Parameterization]]:
    """Yield schedules and parameterizations that the objective supports."""
    objective = case.component
    schedules: list[Schedule] = [fixtures.discrete()]
    if not getattr(objective, "discrete_only", False):
        schedules.append(fixtures.TRIG)
    own = getattr(objective, "schedule", None)
    for schedule in [own] if own is not None else schedules:
        for row in (fixtures.EPS, fixtures.X0, fixtures.V):
            yield schedule, fixtures.Ranged(row) if getattr(objective, "needs", ()) else row


def uniforms(schedule: Schedule) -> tuple[float, ...]:
    """Return uniform numbers whose times are spread over the schedule."""
    steps = schedule.steps
    if steps is not None:
        return tuple((t - 0.5) / steps for t in (1, 2, 10, steps // 2, steps))
    return (0.05, 0.5, 0.9)


@law(
    "objective",
    statement="`each` is one finite loss per example, detached; `mean` can be differentiated",
    source="the definition of Loss",
    tolerance=0.0,
)
def form(case: Case, result: LawResult) -> None:
    """Training logs `each` and minimises `mean`."""
    objective: Objective = case.component
    for schedule, p in settings(case):
        model = Model(CorrectedNetwork(IgnoringConditions(fixtures.GaussianData(), schedule, p)), p, schedule)
        x0 = fixtures.gaussian().sample(5, case.generator("x0")).float()
        kept = x0.clone()
        loss = objective(model, x0, RandomStreams(case.seed, 3, 5), ema=model)
        result.holds(loss.each.shape == (5,), f"each has shape {tuple(loss.each.shape)}", "(5,)")
        result.holds(loss.t.shape == (5,), f"t has shape {tuple(loss.t.shape)}", "(5,)")
        result.holds(
            loss.mean.shape == () and loss.mean.requires_grad,
            "mean is not a differentiable number",
            "a number with a gradient",
        )
        free = not loss.each.requires_grad and not any(part.requires_grad for part in loss.parts.values())
        result.holds(free, "each or parts have a gradient", "detached")
        fine = bool(torch.isfinite(loss.each).all()) and bool(torch.isfinite(loss.mean))
        result.holds(fine, f"losses {loss.each.tolist()}", "finite")
        result.compare(x0, kept, "x0 after the loss")


@law(
    "objective",
    statement="the same random streams give the same loss; micro-batches give the losses of the whole batch",
    source="design.md, randomness",
    tolerance=1e-5,
    dtype="float32",
)
def counted(case: Case, result: LawResult) -> None:
    """All random numbers depend on (seed, step, stream, row); torch's own generator is not used."""
    objective: Objective = case.component
    schedule, p = next(settings(case))
    model = Model(CorrectedNetwork(IgnoringConditions(fixtures.GaussianData(), schedule, p)), p, schedule)
    x0 = fixtures.gaussian().sample(24, case.generator("x0")).float()
    before = torch.random.get_rng_state()
    whole = objective(model, x0, RandomStreams(1, 3, 24), ema=model)
    result.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    parts: list[Loss] = []
    noise = RandomStreams(1, 3, 24)
    for start in (0, 8, 16):
        parts.append(objective(model, x0[start : start + 8], noise.rows(start), ema=model))
    result.compare(torch.cat([part.each for part in parts]), whole.each, "each, in three parts")
    result.compare(torch.cat([part.t for part in parts]), whole.t, "times, in three parts")
    wide = torch.zeros(128, 2)
    draws = {
        "two streams": [RandomStreams(1, 3, 128).normal(name, wide) for name in ("noise", "other")],
        "two steps": [RandomStreams(1, step, 128).normal("noise", wide) for step in (3, 4)],
        "two seeds": [RandomStreams(seed, 3, 128).normal("noise", wide) for seed in (1, 2)],
        "two blocks of rows": list(RandomStreams(1, 3, 128).normal("noise", wide).chunk(2)),
    }
    for title, (first, second) in draws.items():
        result.holds(not bool((first == second).any()), f"{title} share numbers", "different numbers")
    other = objective(model, x0, RandomStreams(1, 4, 24), ema=model)
    result.holds(not torch.equal(other.each, whole.each), "the next step has the same losses", "other draws")


@law(
    "objective",
    statement="on Gaussian data the gradient of the loss is 0 at the exact denoiser, and the loss rises on each side",
    source="Vincent 2011; identities D2, D3",
    tolerance=1e-4,
    identities="D2 D3",
)
def minimum(case: Case, result: LawResult) -> None:
    """Losses quadratic in (x0, eps) are averaged exactly by eight points with the right moments.

    The gradient along every affine change of the output is compared with the gradient a step away from the optimum. The
    minimum of a loss of two levels is the consistency function, up to the distance of the levels; there the law
    requires only that the loss rises.
    """
    objective: Objective = case.component
    x0, eps = design()
    learned = fixtures.Endpoint(fixtures.gaussian()) if objective.consistency else None
    truth = fixtures.OracleData(fixtures.gaussian(), learned)
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            oracle = IgnoringConditions(truth, schedule, p)
            network = CorrectedNetwork(oracle)
            model, exact = Model(network, p, schedule), Model(oracle, p, schedule)
            best = objective(model, x0, FixedRandomStreams(eps, uniform), ema=exact)
            at_best = torch.autograd.grad(best.mean, (network.constant, network.slope), allow_unused=True)
            away, losses = 0.0, []
            for parameter, by in product((network.constant, network.slope), (0.1, -0.1)):
                with torch.no_grad():
                    parameter.add_(by)
                moved = objective(model, x0, FixedRandomStreams(eps, uniform), ema=exact)
                (slope,) = torch.autograd.grad(moved.mean, parameter)
                away = max(away, float(slope.abs().max()))
                losses.append(float(moved.mean))
                with torch.no_grad():
                    parameter.sub_(by)
            at = f"t = {float(best.t[0]):.5g}, {getattr(p, 'title', 'learned range')}"
            result.holds(away > 0, f"{at}: no gradient a step away", "one")
            for slope in () if objective.consistency else at_best:
                error = float(slope.abs().max()) / away if slope is not None and away > 0 else 0.0
                result.note(error, f"{at}: gradient at the optimum / a step away = {error:.3g}", "0")
            result.holds(
                min(losses) > float(best.mean), f"{at}: loss {min(losses):.6g} away", f"> {float(best.mean):.6g}"
            )


@law(
    "objective",
    statement="a weighted loss is the same number in every parameterization",
    source="tests/pains.md, 12; identities C3, C4",
    tolerance=1e-4,
    identities="C3 C4",
)
def same_loss(case: Case, result: LawResult) -> None:
    """The same error of x0, expressed in eps, x0 and v, has the same loss, so the same gradient in x0."""
    objective: Objective = case.component
    names: set[str] = {f.name for f in dataclasses.fields(objective)} if dataclasses.is_dataclass(objective) else set()
    if "weighting" in names:
        objective = dataclasses.replace(case.component, weighting=fixtures.SNRWeight())
    elif not getattr(objective, "discrete_only", False):
        raise NotApplicable("the objective has no weighting")
    x0, eps = design()
    found: dict[tuple[int | None, float], Tensor] = {}
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            model = Model(PerturbedNetwork(p, schedule, 0.2), p, schedule)
            each = objective(model, x0, FixedRandomStreams(eps, uniform), ema=model).each
            want = found.setdefault((schedule.steps, uniform), each)
            ratio = each / want
            result.compare(ratio, torch.ones_like(ratio), f"loss / loss in eps, u = {uniform:.4g}")


@law(
    "objective",
    statement="labels reach the network",
    source="the definition of Objective",
    tolerance=0.0,
)
def conditional(case: Case, result: LawResult) -> None:
    """Conditions of the data are passed to the network by name."""
    objective: Objective = case.component
    schedule, p = next(settings(case))
    network = RecordingNetwork(IgnoringConditions(fixtures.GaussianData(), schedule, p))
    model = Model(network, p, schedule)
    label = torch.tensor([3, 1, 2])
    objective(model, fixtures.gaussian().sample(3).float(), RandomStreams(0, 0, 3), ema=model, label=label)
    labels = [cond.get("label") for _, cond in network.calls]
    same = bool(labels) and all(one is not None and torch.equal(one, label) for one in labels)
    result.holds(same, f"the network received {labels[:1]}", f"{label.tolist()}")
