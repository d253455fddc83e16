"""Laws of optimizers and of learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffkit.optimizer import LRSchedule, Optimizer
from diffkit.train.optimizer import Update

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, reference_of

SHAPES = {
    "enter.weight": (8, 6),
    "enter.bias": (8,),
    "blocks.0.weight": (8, 8),
    "blocks.0.norm": (8,),
    "blocks.1.weight": (8, 8, 3, 3),
    "leave.weight": (6, 8),
}
"""Parameters of the kinds that networks have: matrices, a convolution, biases and scales."""
RATES = (1.0, 10.0, 100.0, 1000.0, 0.1, 0.01)
"""Factors on the learning rate that an optimizer may need to solve the quadratic."""
STEPS = (1, 2, 7, 100, 10_000)


def _parameters(case: Case, size: float = 0.03) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(size * case.normal(*shape, stream=f"start {name}", dtype=torch.float32))
        for name, shape in SHAPES.items()
    }


def _gradients(case: Case, step: int) -> dict[str, Tensor]:
    return {name: case.normal(*shape, stream=f"{name} {step}", dtype=torch.float32) for name, shape in SHAPES.items()}


def _step(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    optimizer.step()
    for parameter in parameters.values():
        parameter.grad = None


def trained(case: Case, steps: int) -> dict[str, Tensor]:
    """Return the weights after some steps."""
    parameters = _parameters(case)
    optimizer = case.component(list(parameters.items()))
    for step in range(steps):
        _step(optimizer, parameters, _gradients(case, step))
    return {name: value.detach() for name, value in parameters.items()}


def _compare_parameters(
    result: LawResult, got: dict[str, nn.Parameter], want: dict[str, nn.Parameter], title: str
) -> None:
    for name in want:
        result.compare(got[name], want[name], f"{name} {title}", 1e-3)


@law("optimizer", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-5)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of w, a matrix (4, 3) float64, and the list of its gradients, that returns w after as many steps."""
    build: Optimizer = case.component
    stated = reference_of(case)
    for count in (1, 2, 6):
        start = case.normal(4, 3, stream="reference")
        gradients = [case.normal(4, 3, stream=f"gradient {k}") for k in range(count)]
        parameter = nn.Parameter(start.clone())
        optimizer = build([("blocks.0.weight", parameter)])
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        want = torch.as_tensor(evaluate(stated, {"w": start.clone(), "gradients": gradients}))
        moved = float((want - start).abs().max())
        result.compare((parameter.detach() - start) / moved, (want - start) / moved, f"change after {count} steps")


@law(
    "optimizer",
    statement="lr of a group is read at each step: a rate of 0 changes nothing, half the rate half as much",
    source="the definition of LRSchedule",
    tolerance=1e-3,
)
def rates(case: Case, result: LawResult) -> None:
    """A learning-rate schedule sets the rates of the groups before each step. The first step is compared."""
    build: Optimizer = case.component
    changes = []
    for factor in (1.0, 0.5, 0.0):
        parameters = {name: nn.Parameter(value.detach().double()) for name, value in _parameters(case).items()}
        optimizer = build(list(parameters.items()))
        for group in optimizer.param_groups:
            group["lr"] = factor * group["lr"]
        _step(optimizer, parameters, {name: value.double() for name, value in _gradients(case, 0).items()})
        start = _parameters(case)
        changes.append({name: value.detach() - start[name].detach() for name, value in parameters.items()})
    for name in SHAPES:
        whole, half, none = (change[name] for change in changes)
        size = max(float(whole.abs().max()), 1e-30)
        result.compare(half / size, 0.5 * whole / size, f"change of {name} at half the rate")
        result.compare(none / size, 0.0 * whole, f"change of {name} at the rate 0")


@law(
    "optimizer",
    statement="every parameter is in exactly one group, and every group has a learning rate lr > 0",
    source="the definition of Optimizer",
    tolerance=0.0,
)
def groups(case: Case, result: LawResult) -> None:
    """A learning-rate schedule multiplies the rates of all groups; a parameter outside of them would not train."""
    build: Optimizer = case.component
    parameters = _parameters(case)
    found = build(list(parameters.items())).param_groups
    for name, parameter in parameters.items():
        count = sum(one is parameter for group in found for one in group["params"])
        result.holds(count == 1, f"{name} is in {count} groups", "1")
    for index, group in enumerate(found):
        lr = group.get("lr")
        fine = isinstance(lr, int | float) and 0 < lr < math.inf
        result.holds(fine, f"lr of group {index} is {lr!r}", "a finite number > 0")


@law(
    "optimizer",
    statement="for some learning rate 300 steps reduce the quadratic |w - w*|^2 / 2 to less than 1 percent",
    source="the definition of an optimizer",
    tolerance=0.01,
)
def quadratic(case: Case, result: LawResult) -> None:
    """The rate falls linearly to 0. A factor 0.01 to 1000 on the default rate is allowed."""
    build: Optimizer = case.component
    target = {name: 0.1 * value.detach() for name, value in _parameters(case).items()}
    target = {name: value.flip(0) for name, value in target.items()}

    def loss(parameters: dict[str, nn.Parameter]) -> float:
        return float(sum((parameters[name].detach() - target[name]).square().sum() for name in target))

    best = math.inf
    for rate in RATES:
        parameters = _parameters(case)
        optimizer = build(list(parameters.items()))
        initial, start = [group["lr"] for group in optimizer.param_groups], loss(parameters)
        for step in range(300):
            for group, lr in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * lr * (1.0 - step / 300)
            _step(optimizer, parameters, {name: p.detach() - target[name] for name, p in parameters.items()})
        best = min(best, loss(parameters) / start)
        if best < result.tolerance:
            break
    result.note(best, f"loss after 300 steps / loss before = {best:.3g}", "< 0.01")


@law(
    "optimizer",
    statement="a step changes every parameter that has a gradient, and no parameter that has none",
    source="the definition of torch.optim.Optimizer",
    tolerance=0.0,
)
def moves(case: Case, result: LawResult) -> None:
    """A network may have parameters that a batch does not use, such as embeddings of other classes."""
    build: Optimizer = case.component
    for absent in (None, *SHAPES):
        parameters = _parameters(case)
        before = {name: value.detach().clone() for name, value in parameters.items()}
        optimizer = build(list(parameters.items()))
        for step in range(3):
            gradients = {name: value for name, value in _gradients(case, step).items() if name != absent}
            _step(optimizer, parameters, gradients)
        for name, value in parameters.items():
            changed, given = not torch.equal(value.detach(), before[name]), name != absent
            found = f"{name} {'changed' if changed else 'unchanged'} {'with' if given else 'without'} a gradient"
            result.holds(changed == given, found, "a change with a gradient only")
            result.holds(bool(torch.isfinite(value).all()), f"{name} is not finite", "finite")


@law(
    "optimizer",
    statement="training that is saved and resumed gives the same weights, bit for bit, as without interruption",
    source="docs/how-to/resume.md; tests/pains.md, 6",
    tolerance=0.0,
)
def resumes(case: Case, result: LawResult) -> None:
    """The state is saved as tensors `PARAMETER.KEY` and numbers; the optimizer may store nothing elsewhere."""
    build: Optimizer = case.component

    def run(update: Update, steps: Sequence[int]) -> None:
        for step in steps:
            for name, gradient in _gradients(case, step).items():
                update.parameters[name].grad = gradient.clone()
            update(step, 8)

    whole = Update(build, None, _parameters(case))
    run(whole, range(8))
    first = Update(build, None, _parameters(case))
    run(first, range(4))
    copies = {name: nn.Parameter(value.detach().clone()) for name, value in first.parameters.items()}
    second = Update(build, None, copies)
    second.load({name: value.clone() for name, value in first.tensors().items()}, dict(first.numbers()))
    run(second, range(4, 8))
    _compare_parameters(result, second.parameters, whole.parameters, "after 4 + 4 steps")


@law(
    "optimizer",
    statement="equal gradients give equal weights, and torch's generator is not used",
    source="design.md, randomness",
    tolerance=0.0,
)
def repeatable(case: Case, result: LawResult) -> None:
    """Two optimizers of one factory are independent, also if their steps are interleaved."""
    build: Optimizer = case.component
    sets = [_parameters(case) for _ in range(2)]
    optimizers = [build(list(parameters.items())) for parameters in sets]
    before = torch.random.get_rng_state()
    for step in range(4):
        for optimizer, parameters in zip(optimizers, sets, strict=True):
            _step(optimizer, parameters, _gradients(case, step))
    result.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    _compare_parameters(result, sets[1], sets[0], "of the second optimizer")


@law("lr-schedule", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-9)
@for_variants
def lr_reference(case: Case, result: LawResult) -> None:
    """A function of step, 0 for the first update, and steps, their number; or a table {(step, steps): factor}."""
    stated = reference_of(case)
    if callable(stated):
        places = [(step, steps) for steps in STEPS for step in _places(steps, case.deep)]
        points = {place: evaluate(stated, {"step": place[0], "steps": place[1]}) for place in places}
    else:
        points = stated
    for (step, steps), want in points.items():
        result.compare(case.component(step, steps), want, f"factor at step {step} of {steps}")


@law(
    "lr-schedule",
    statement="the factor is a float in [0, 1] at each step 0..steps - 1, and not always 0 for steps > 1",
    source="the definition of LRSchedule",
    tolerance=0.0,
)
def factors(case: Case, result: LawResult) -> None:
    """Factor 1 gives the learning rates of the optimizer, which are the largest of the training."""
    schedule: LRSchedule = case.component
    for steps in STEPS:
        values = [schedule(step, steps) for step in _places(steps, case.deep)]
        for value in values:
            fine = isinstance(value, float) and 0.0 <= value <= 1.0
            result.holds(fine, f"factor {value!r} of {steps} steps", "a float in [0, 1]")
        result.holds(steps == 1 or max(values) > 0, f"all factors of {steps} steps are 0", "a positive factor")


@law(
    "lr-schedule",
    statement="with `warmup` the factor rises strictly over the first updates and is n / warmup of the rest",
    source="Goyal et al. 2017 (arXiv:1706.02677), sec. 2.2",
    tolerance=1e-9,
)
def warm_up(case: Case, result: LawResult) -> None:
    """Update n = 1, ..., warmup has n / warmup of the factor at the end of the warm-up."""
    schedule = case.component
    if not dataclasses.is_dataclass(schedule) or "warmup" not in {one.name for one in dataclasses.fields(schedule)}:
        raise NotApplicable("the schedule has no option `warmup`")
    for warmup in (1, 2, 50):
        warm: LRSchedule = dataclasses.replace(case.component, warmup=warmup)
        top = warm(warmup - 1, 200)
        for n in range(1, warmup + 1):
            result.compare(warm(n - 1, 200), n / warmup * top, f"factor of update {n}, warmup {warmup}")
        result.compare(top, 1.0, f"factor at the end of a warm-up of {warmup}")


@law(
    "lr-schedule",
    statement="the factor depends on (step, steps) only",
    source="tests/pains.md, 17",
    tolerance=0.0,
)
def pure(case: Case, result: LawResult) -> None:
    """A resumed training continues with the same rates."""
    schedule: LRSchedule = case.component
    for steps in STEPS:
        places = _places(steps, case.deep)
        first = [schedule(step, steps) for step in places]
        again = [schedule(step, steps) for step in reversed(places)][::-1]
        result.holds(first == again, f"other factors of {steps} steps in the second call", "the same")


def _places(steps: int, deep: bool) -> list[int]:
    if steps <= 100 or deep:
        return list(range(steps))
    return sorted({0, 1, 2, 10, steps // 3, steps // 2, steps - 2, steps - 1})
