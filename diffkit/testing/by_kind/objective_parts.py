"""Laws of the parts of objectives: times, weightings, added conditions, reductions, options, and the formula."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffkit.denoiser import Model
from diffkit.level import Level
from diffkit.noise import RandomStreams
from diffkit.objective import Objective, Weighting
from diffkit.scalar import Scalar
from diffkit.schedule import Schedule
from diffkit.times import Times, at_fraction

from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..options import options_used
from ..reference import SOURCE, STATEMENT, evaluate, level_values, reference_of
from .objective import FixedRandomStreams, PerturbedNetwork, RecordingNetwork, design, settings, uniforms

Component = TypeVar("Component")


def with_parts(component: Component, kind: type, part: Any) -> Component | None:
    """Replace every nested component of a kind, also inside of `inner` components.

    Args:
        component: an objective.
        kind: the class of the kind, such as Times.
        part: the component to use.

    Returns:
        A copy with this part; None if it has no part of this kind.
    """
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        return None
    changes: dict[str, Any] = {}
    for one in dataclasses.fields(component):
        value = getattr(component, one.name)
        optional = value is None and kind.__name__ in str(one.type)
        new = part if isinstance(value, kind) or optional else with_parts(value, kind, part)
        if new is not None:
            changes[one.name] = new
    return dataclasses.replace(component, **changes) if changes and all(_takes(component, n) for n in changes) else None


def _takes(component: Any, name: str) -> bool:
    return next(one.init for one in dataclasses.fields(component) if one.name == name)


@dataclasses.dataclass(frozen=True)
class GivenTimes(Times):
    """Fixed times, a correction whose size depends on t, and a record of the losses that they were given."""

    learned: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    corrects: bool = True

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        return at_fraction(0.9 * ((uniform + torch.arange(len(uniform)) * 0.37) % 1.0), schedule)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        return 1.0 + t.double() / schedule.t_noise if self.corrects else None

    def update(self, t: Tensor, each: Tensor) -> None:
        self.learned.append((t, each))


@dataclasses.dataclass(frozen=True)
class Scaled(Weighting):
    """A weighting of SNR^(1/2) times a factor, which no component has."""

    factor: float

    def __call__(self, level: Level) -> Scalar:
        return self.factor * level.snr**0.5


@law(
    "objective",
    statement="times, their correction of the mean, and their learning are those of the Times that it is given",
    source="the definitions of Times and Loss",
    tolerance=1e-6,
    dtype="float32",
)
def given_times(case: Case, result: LawResult) -> None:
    """The correction of the times multiplies the mean only: mean = (each * correction).mean(), plus terms without a
    time.
    """
    times = GivenTimes()
    objective, plain = (with_parts(case.component, Times, one) for one in (times, GivenTimes(corrects=False)))
    if objective is None or plain is None:
        raise NotApplicable("the objective has no nested component `times`")
    for schedule, p in settings(case):
        model = Model(PerturbedNetwork(p, schedule, 0.2), p, schedule)
        x0 = fixtures.gaussian().sample(8, case.generator("x0")).float()
        loss, bare = (one(model, x0, RandomStreams(1, 3, 8), ema=model) for one in (objective, plain))
        want = times.draw(RandomStreams(1, 3, 8).batch_uniform("times", x0), schedule)
        result.compare(loss.t, want, "t", 1.0)
        result.compare(loss.each, bare.each, "each with and without a correction")
        factor = times.correction(want, schedule)
        assert factor is not None
        extra = ((factor - 1.0) * bare.each).mean()
        result.compare((loss.mean - bare.mean).detach() / extra, 1.0, "what the correction adds to the mean")
    objective.update(want, loss.each)
    result.holds(len(times.learned) == 1, f"update reaches the times {len(times.learned)} times", "once")


@law(
    "objective",
    statement="the weighting that it is given multiplies |x0 - x0_hat|^2, once, in every parameterization",
    source="the definition of Weighting; identities C3",
    tolerance=1e-4,
    identities="C3",
)
def given_weighting(case: Case, result: LawResult) -> None:
    """What a third weight w adds to `each` is w |x0 - x0_hat|^2: summed or averaged over dimensions, at all levels."""
    objectives = [with_parts(case.component, Weighting, Scaled(factor)) for factor in (1.0, 2.0, 3.0)]
    x0, eps = design()
    shares = []
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            network = PerturbedNetwork(p, schedule, 0.2)
            each = []
            for objective in objectives:
                if objective is None:
                    raise NotApplicable("the objective has no nested component `weighting`")
                loss = objective(Model(network, p, schedule), x0, FixedRandomStreams(eps, uniform))
                each.append(loss.each.double())
            level = schedule.level(loss.t.double())
            x = level.add_noise(x0, eps)
            got = fixtures.gaussian()(x, level).x0
            wrong = got + 0.2 * (1.0 + 0.5 * x) - x0
            added = each[1] - each[0]
            at = f"u = {uniform:.4g}, {getattr(p, 'title', 'learned range')}"
            result.compare((each[2] - each[1]) / added, torch.ones_like(added), f"{at}: w from 2 to 3 / from 1 to 2")
            if network.conditioned:
                continue
            shares.append((added / (torch.as_tensor(level.snr) ** 0.5 * wrong.square().sum(1)), at))
    for share, at in shares:
        result.compare(share / shares[0][0].mean(), torch.ones_like(share), f"{at}: share of w |x0 - x0_hat|^2")


@law(
    "objective",
    statement="conditions that the objective adds depend on x0 only through x, and carry no gradient",
    source="Chen et al. 2023 (arXiv:2208.04202), sec. 3",
    tolerance=1e-6,
)
def no_leak(case: Case, result: LawResult) -> None:
    """x0 and eps are exchanged so that x stays the same: a condition that changes contains the answer."""
    objective: Objective = case.component
    x0, eps = design()
    for schedule, p in settings(case):
        network = RecordingNetwork(PerturbedNetwork(p, schedule, 0.2))
        model = Model(network, p, schedule)
        for uniform in uniforms(schedule):
            loss = objective(model, x0, FixedRandomStreams(eps, uniform), ema=model)
            first, network.calls = network.calls, []
            level = schedule.level(float(loss.t[0]))
            d = torch.full_like(x0, 0.5)
            objective(model, x0 + d, FixedRandomStreams(eps - level.alpha / level.sigma * d, uniform), ema=model)
            second, network.calls = network.calls, []
            for (x, before), (z, after) in zip(first, second, strict=True):
                for name in before if torch.allclose(x, z) else ():
                    result.compare(after[name], before[name], f"{name} for another x0 and the same x", 1.0)
                    result.holds(not before[name].requires_grad, f"{name} has a gradient", "detached")
    if not result.checks:
        raise NotApplicable("the objective adds no conditions")


@law(
    "objective",
    statement="with reduction `sum` the loss of an example is D times that with `mean`",
    source="the definition of the option",
    tolerance=1e-5,
)
def reductions(case: Case, result: LawResult) -> None:
    """Every term of the loss is reduced in the same way."""
    if getattr(case.component, "reduction", None) not in ("mean", "sum"):
        raise NotApplicable("the objective has no option `reduction`")
    both = [dataclasses.replace(case.component, reduction=one) for one in ("mean", "sum")]
    x0, eps = design()
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            model = Model(PerturbedNetwork(p, schedule, 0.2), p, schedule)
            mean, total = (one(model, x0, FixedRandomStreams(eps, uniform), ema=model).each for one in both)
            result.compare(total / mean, torch.full_like(mean, 2.0), f"sum / mean at u = {uniform:.4g}")


@law(
    "objective",
    statement="each number and choice among the options has an effect",
    source="the definition of an option",
    tolerance=0.0,
    name="options-used",
)
def used_options(case: Case, result: LawResult) -> None:
    """An option that no line reads does not do what its description states."""
    x0 = fixtures.gaussian().sample(16, case.generator("x0")).float()

    def observe(objective: Objective) -> list[Tensor]:
        found = []
        for schedule, p in settings(dataclasses.replace(case, component=objective)):
            model = Model(PerturbedNetwork(p, schedule, 0.2), p, schedule)
            loss = objective(model, x0, RandomStreams(0, 1, 16), ema=model)
            found += [loss.each, loss.mean, loss.t]
        return found

    options_used(case, result, observe)


@law("objective", statement=STATEMENT, source=SOURCE, tolerance=1e-4)  # losses may be computed in float32
def reference(case: Case, result: LawResult) -> None:
    """The loss of one example, from x0, eps, the estimates x0_hat and eps_hat, the level and the weight of the output.

    `weight` is that of the parameterization, |y - target|^2 = weight |x0 - x0_hat|^2. Tensors are (D,), one example.
    """
    formula = reference_of(case)
    x0, eps = design()
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            network = PerturbedNetwork(p, schedule, 0.2)
            loss = case.component(Model(network, p, schedule), x0, FixedRandomStreams(eps, uniform))
            level = schedule.level(float(loss.t[0]))
            x = level.add_noise(x0, eps)
            exact = fixtures.gaussian()(x, level)
            guess = exact.with_x0(exact.x0 + 0.2 * (1.0 + 0.5 * x))
            for i in range(len(x0)):
                values = {
                    **level_values(level),
                    "x0": x0[i],
                    "eps": eps[i],
                    "x0_hat": guess.x0[i],
                    "eps_hat": guess.eps[i],
                    "weight": float(p.weight(level)),
                    "t": float(loss.t[0]),
                }
                want = float(evaluate(formula, values))
                text = f"loss at t = {float(loss.t[0]):.5g}, {getattr(p, 'title', 'learned range')}"
                result.note(abs(float(loss.each[i]) / want - 1.0), f"{text}: {float(loss.each[i]):.6g}", f"{want:.6g}")
