"""Check that the conditions of a recipe reach its network, in training and in sampling, before anything is computed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..conditioner import JOINT
from ..data import InMemorySplit
from ..errors import DiffkitError, RecipeError
from ..guidance import Guidance
from ..network import MASK, Shape, conditions_of
from .checks import Check, View


def dropped_conditions(view: View) -> Iterator[RecipeError]:
    """`data.condition_dropout` may name only conditions that the network receives."""
    if view.conditions is None:
        return
    names = view.conditions.conditioners
    dropout = view.value("data.condition_dropout", 0.0)
    if dropout and not names:
        message = f"data.condition_dropout is given, but data {view.name('data')} has no labels or other conditions"
        yield view.fault("DK115", message, "data.condition_dropout", "remove it")
    elif isinstance(dropout, dict):
        for name in dropout:
            if name not in names and (name != JOINT or len(dropout) > 1):
                message = f"data.condition_dropout holds {name}, which is not a condition of the network"
                choices = [*names, "joint, alone, for all at once"]
                yield view.fault("DK115", message, f"data.condition_dropout.{name}", None, choices=choices)


def condition_arguments(view: View) -> Iterator[RecipeError]:
    """`forward` of the network must take every condition, in its shape, and require nothing else."""
    network = view.built("network")
    if network is None or view.conditions is None or view.shape is None:
        return
    title, taken = f"network {view.name('network')}", conditions_of(network)
    given = view.conditions.arguments()
    for argument, (name, _) in given.items():
        if taken is not None and argument not in taken:
            message = f"{title} does not take the condition {name}: its forward has no argument {argument}"
            fix = "choose another network, or list the conditions that it takes, such as conditions: {label: label}"
            own = f"conditions.{name}"
            place = own if view.root.at(own) is not None else ("data", "name")
            yield view.fault("DK115", message, place, fix, choices=sorted(taken - {"augment"}) or "none")
            return
    for one in list(inspect.signature(network.forward).parameters.values())[2:]:
        named = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        if named and one.default is one.empty and one.name not in given:
            message = f"{title} requires the condition {one.name}, which sampling cannot supply"
            fix = f"choose data with the condition {one.name}, or give the argument of forward a default"
            yield view.fault("DK115", message, ("network", "name"), fix)
            return
    if view.shape.conditions or view.shape.extra_channels:
        yield from _fits(view, network, {argument: shape for argument, (_, shape) in given.items()})


def _fits(view: View, network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[RecipeError]:
    """Call the network, without numbers or else with zeros, for conditions that it takes in another shape."""
    assert view.shape is not None
    error = _refusal(network, view.shape, shapes)
    if _lacks_numbers(error):
        size = sum(weight.numel() for weight in network.parameters())
        error = _refusal(_zeros_of(network), view.shape, shapes) if size <= MAX_ZEROS else error
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if _lacks_numbers(error):
        message = f"network {view.name('network')} runs only with its weights, so the shapes of its conditions"
        fix = "measure a few steps first: diffkit run --dry-run"
        view.warnings.append(view.fault("DK115", f"{message}, {told}, are not checked", ("conditions",), fix))
    elif error is not None:
        message = f"network {view.name('network')} does not take its conditions in their shapes, {told}: {error}"
        fix = "choose another conditioner or network: (L, D) with a mask for text, (D,) for other names"
        yield view.fault("DK115", message.splitlines()[0], ("conditions",), fix)


def _refusal(network: nn.Module, shape: Shape, shapes: Mapping[str, tuple[int, ...]]) -> Exception | None:
    """Return the error of a call with conditions of these shapes, on the device of the weights; None without one."""
    device, mode = next(network.parameters(), torch.zeros(())).device, network.training
    try:
        with torch.no_grad(), torch.device(device):
            x = torch.zeros(2, shape.in_channels, *shape.size)
            types = {"label": torch.long} if shape.classes is not None else {}
            masks = {name: torch.bool for name in shapes if name.endswith(MASK)}
            cond = {n: torch.zeros(2, *s, dtype=(types | masks).get(n, torch.float32)) for n, s in shapes.items()}
            network.eval()(x, torch.zeros(2), **cond)
    except Exception as error:  # noqa: BLE001 - a network may refuse a shape by any error
        return error
    finally:
        network.train(mode)
    return None


def _zeros_of(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose weights are 0."""
    made = copy.deepcopy(network).to_empty(device="cpu")
    for value in (*made.parameters(), *made.buffers()):
        value.detach().zero_()
    return made


def _lacks_numbers(error: Exception | None) -> bool:
    """Return whether a call failed because the meta device holds no numbers."""
    return isinstance(error, NotImplementedError | RuntimeError) and (
        isinstance(error, NotImplementedError) or "meta" in str(error)
    )


def moved_conditions(view: View) -> Iterator[RecipeError]:
    """An augmentation must state whether it moves pixels, if the data has a condition with the pixels of x."""
    data = view.built("data")
    if view.conditions is None or data is None or view.shape is None:
        return
    aligned = view.conditions.aligned(data.spec)
    for path in view.items("data.augment") if aligned else ():
        augmentation = view.built(path)
        if augmentation is not None and augmentation.moves is None:
            name = f"augmentation {view.name(path)}"
            message = f"{name} does not state whether it moves pixels, but the condition {aligned[0]} must move with x"
            yield view.fault("DK115", message, (path, "name"), "set the class attribute moves to True or False")


def sampled_conditions(view: View) -> Iterator[RecipeError]:
    """`sample.labels` and `sample.conditions` must be values of conditions that the network receives."""
    if view.conditions is None:
        return
    labels, stated = view.value("sample.labels"), view.value("sample.conditions", {})
    given = {f"sample.conditions.{name}": (name, value) for name, value in stated.items()}
    if labels is not None:
        given["sample.labels"] = ("label", labels)
    for path, (name, value) in given.items():
        if name == "label" and name not in view.conditions.conditioners:
            message = f"{path} is given, but data {view.name('data')} has no labels, or none that the network receives"
            yield view.fault("DK115", message, path, "remove it")
            continue
        try:
            raw = view.conditions.read(name, value, 1 if isinstance(value, str | int | float) else len(value))
        except DiffkitError as error:
            yield view.fault("DK115", f"{path}: {error.message}", path, error.fix)
            continue
        classes = view.conditions.specs[name].classes
        if classes is not None and bool((raw == classes).any()):
            message = f"{path} holds {classes}, but data {view.name('data')} has {classes} classes"
            yield view.fault("DK115", message, path, None, choices=f"0 to {classes - 1}")
            continue
        yield from _without_examples(view, path, name, raw)


def _without_examples(view: View, path: str, name: str, raw: Tensor) -> Iterator[RecipeError]:
    """Report a class of samples that no training example has, if the examples are in memory or list their classes."""
    spec = view.conditions.specs[name] if view.conditions is not None else None
    if spec is None or spec.classes is None or view.value("train.steps", 0) == 0:
        return
    try:
        split = view.built("data").split("train")
    except DiffkitError:
        return
    own = split.cond.get(name) if isinstance(split, InMemorySplit) else getattr(split, "labels", None)
    if own is None:
        return
    present = {int(number) for number in own.unique()} | {spec.classes}
    if lacking := [int(number) for number in raw if int(number) not in present]:
        shown = spec.names[lacking[0]] if spec.names else str(lacking[0])
        message = f"{path} holds {shown}, which no training example of data {view.name('data')} has"
        yield view.fault("DK115", message, path, "remove it, or add examples")


def without_dropout(guidance: Guidance, names: Sequence[str], dropout: float | Mapping[str, float]) -> list[str]:
    """Return the conditions whose null a guidance evaluates, and training never sees.

    Args:
        guidance: The guidance.
        names: The conditions of the model.
        dropout: The value of `data.condition_dropout`.

    Returns:
        Names of conditions.
    """
    used = names if guidance.null_conditions is None else guidance.null_conditions
    dropped = dropout if isinstance(dropout, Mapping) else dict.fromkeys(used, dropout)
    return [one for one in used if not (dropped.get(one) or dropped.get(JOINT))]


def nulls_of_guidance(view: View) -> Iterator[RecipeError]:
    """Guidance by a null needs `condition_dropout` in training, and a negative condition a scale other than 1."""
    if view.conditions is None or view.shape is None:
        return
    dropout = view.value("data.condition_dropout", 0.0)
    for path in view.items("sample.guidance"):
        guidance, name = view.built(path), f"guidance {view.name(path)}"
        if getattr(guidance, "negative", None) and getattr(guidance, "scale", None) == 1.0:
            message = f"{name} has a negative condition, which has no effect at scale 1"
            view.warnings.append(view.fault("DK123", message, (path, "negative"), "scale: 3.0, or remove negative"))
        if guidance is None or not guidance.needs_null or view.value("train.steps", 0) == 0:
            continue
        if lacking := without_dropout(guidance, tuple(view.conditions.conditioners), dropout):
            message = f"{name} calls the network without {', '.join(lacking)}, which condition_dropout 0 never trains"
            yield view.fault("DK115", message, (path, "name"), "data.condition_dropout: 0.1")


MAX_ZEROS = 50_000_000
"""Weights up to which a network is called with zeros, if it cannot be called without numbers."""
CONDITION_CHECKS: tuple[Check, ...] = (
    dropped_conditions,
    condition_arguments,
    moved_conditions,
    sampled_conditions,
    nulls_of_guidance,
)
