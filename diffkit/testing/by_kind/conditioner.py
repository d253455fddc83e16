"""Laws of conditioners."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from diffkit.conditioner import Conditioner, Conditions, Encoded
from diffkit.data import ConditionSpec, as_bytes

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law

TEXTS = ("a red dress", "", "hat", "über-long " * 10)


def raw_conditions(case: Case, count: int = 4) -> Tensor:
    """Return different raw conditions of the kind that the conditioner of a case was built for: (count, ...).

    An instance of `law_example` has the kind as its attribute `condition`.
    """
    own = getattr(case.component, "condition", ConditionSpec((3,)))
    spec: ConditionSpec = case.context.get("condition", own)
    if spec.dtype == "text":
        return as_bytes(TEXTS[:count], spec.shape[0])
    if spec.dtype == "long":
        return torch.arange(count) % (spec.classes or 1)
    if spec.dtype == "uint8":
        source = case.generator("raw")
        return torch.randint(256, (count, *spec.shape), dtype=torch.uint8, generator=source)
    return case.normal(count, *spec.shape, stream="raw", dtype=torch.float32)


def parts(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Return a value and its mask; without mask an empty tensor."""
    return encoded if isinstance(encoded, tuple) else (encoded, torch.zeros(0, dtype=torch.bool))


@law(
    "conditioner",
    statement="raw (B, ...) gives (B, *shape), finite, and a mask (B, L) bool with a token or more; raw stays the same",
    source="the definition of Conditioner",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """Networks are built for `shape`."""
    conditioner: Conditioner = case.component.eval()
    for count in (1, 4):
        raw = raw_conditions(case, count)
        kept = raw.clone()
        value, mask = parts(conditioner(raw))
        want = (count, *conditioner.shape)
        result.holds(tuple(value.shape) == want, f"B = {count}: {tuple(value.shape)}", f"{want}")
        result.holds(bool(torch.isfinite(value).all()), f"B = {count}: values that are not finite", "finite")
        result.holds(torch.equal(raw, kept), "raw has changed", "the same raw conditions")
        if mask.numel():
            told = f"B = {count}: mask {tuple(mask.shape)} of {mask.dtype}"
            result.holds(mask.dtype == torch.bool and mask.shape == value.shape[:2], told, f"{want[:2]} of bool")
            result.holds(bool(mask.any(1).all()), "a mask without token, in which attention is not defined", "a token")


@law(
    "conditioner",
    statement="null has the shape, type and mask of one value, and differs from the value of other conditions",
    source="Ho & Salimans 2022 (arXiv:2207.12598); the definition of Conditioner",
    tolerance=0.0,
)
def null(case: Case, result: LawResult) -> None:
    """Guidance compares a condition with its null, and dropout replaces conditions by it."""
    conditioner: Conditioner = case.component.eval()
    value, mask = parts(conditioner(raw_conditions(case)))
    nothing, covered = parts(conditioner.null())
    result.holds(nothing.shape == value.shape[1:], f"null is {tuple(nothing.shape)}", f"{tuple(value.shape[1:])}")
    result.holds(covered.shape == mask.shape[-1:], f"its mask is {tuple(covered.shape)}", f"{tuple(mask.shape[-1:])}")
    result.holds(nothing.is_floating_point() == value.is_floating_point(), f"null is {nothing.dtype}", f"{value.dtype}")
    if covered.numel():
        result.holds(bool(covered.any()), "a null whose mask has no token", "a token or more")
    if nothing.shape == value.shape[1:]:
        equal = [bool(torch.equal(nothing.to(one), one)) for one in value]
        result.holds(not all(equal), "the null is the value of every condition", "another value")


@law(
    "conditioner",
    statement="in evaluation mode the value of a condition depends on its own row only, and is the same twice",
    source="tests/pains.md, 16",
    tolerance=1e-5,
)
def each_alone(case: Case, result: LawResult) -> None:
    """The values of frozen conditioners are kept by row, and the samples of a seed do not depend on the batch."""
    conditioner: Conditioner = case.component.eval()
    raw = raw_conditions(case)
    with torch.no_grad():
        value, mask = parts(conditioner(raw))
        again, _ = parts(conditioner(raw))
        result.compare(again, value, "the same conditions again")
        for i in range(len(raw)):
            alone, covered = parts(conditioner(raw[i : i + 1]))
            result.compare(alone[0], value[i], f"condition {i} alone")
            result.holds(not mask.numel() or torch.equal(covered[0], mask[i]), f"mask of {i} alone differs", "the same")


@law(
    "conditioner",
    statement="different conditions give different values",
    source="the definition of Conditioner",
    tolerance=0.0,
)
def conditions_used(case: Case, result: LawResult) -> None:
    """A condition that every value forgets states nothing."""
    conditioner: Conditioner = case.component.eval()
    with torch.no_grad():
        value, _ = parts(conditioner(raw_conditions(case)))
    for i in range(1, len(value)):
        for j in range(i):
            result.holds(not torch.equal(value[i], value[j]), f"conditions {i} and {j} give one value", "two values")


@law(
    "conditioner",
    statement="the gradient of values and null reaches every parameter that is trained; a cacheable one has none",
    source="the definition of training",
    tolerance=0.0,
)
def gradients(case: Case, result: LawResult) -> None:
    """A parameter without gradient is not connected; cached values have no gradient."""
    conditioner: Conditioner = copy.deepcopy(case.component).train()
    trained = {name: one for name, one in conditioner.named_parameters() if one.requires_grad}
    result.holds(
        not (conditioner.cacheable and trained), f"cacheable, but {next(iter(trained), '')} is trained", "frozen"
    )
    if not trained:
        raise NotApplicable("nothing is trained")
    total = torch.zeros(())
    for value, _ in (parts(conditioner(raw_conditions(case))), parts(conditioner.null())):
        total = total + (value * case.normal(*value.shape, stream="target", dtype=torch.float32)).sum()
    torch.autograd.backward(total)
    for name, parameter in trained.items():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        result.holds(reached, f"{name} {tuple(parameter.shape)} gets no gradient", "one")


@law(
    "conditioner",
    statement="dropping a row gives the null in that row and changes no other row or argument",
    source="the definition of Conditions",
    tolerance=0.0,
)
def dropped(case: Case, result: LawResult) -> None:
    """Dropout in training and the null of guidance are the same numbers."""
    conditioner: Conditioner = case.component.eval()
    conditions = Conditions({"given": conditioner})
    with torch.no_grad():
        cond = {**conditions({"given": raw_conditions(case)}), "other": torch.arange(4.0)}
        rows = torch.tensor([True, False, False, True])
        some, every = conditions.without(cond, ("given",), rows), conditions.without(cond)
    for name, value in cond.items():
        kept = torch.equal(some[name][~rows], value[~rows])
        result.holds(kept, f"{name}: a row that is not dropped has changed", "the same row")
        if name == "other":
            result.holds(torch.equal(every[name], value), "another argument has changed", "the same argument")
        else:
            result.holds(torch.equal(some[name][rows], every[name][rows]), f"{name}: two nulls", "one null")
            result.holds(torch.equal(every[name][0], every[name][1]), f"{name}: nulls differ by row", "the same null")


@law(
    "conditioner",
    statement="parameters and buffers are the whole state: another instance that loads them gives the same values",
    source="tests/pains.md, 6",
    tolerance=0.0,
)
def state(case: Case, result: LawResult) -> None:
    """Checkpoints contain parameters and buffers only."""
    conditioner: Conditioner = copy.deepcopy(case.component).eval()
    if not conditioner.state_dict():
        raise NotApplicable("the conditioner has no weights")
    other = copy.deepcopy(conditioner)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.0 + math.pi / 100)
        other.load_state_dict({name: value.clone() for name, value in conditioner.state_dict().items()})
        raw = raw_conditions(case)
        result.compare(parts(other(raw))[0], parts(conditioner(raw))[0], "after load_state_dict")
        result.compare(parts(other.null())[0], parts(conditioner.null())[0], "null after load_state_dict")
