"""Conditioners: functions from a condition of the data, such as the bytes of a text, to what a network receives.

The parts of a data set hold raw conditions, which `DataSpec.conditions` describes. `Conditions` holds one `Conditioner`
for each condition of a recipe: it encodes raw conditions to the arguments of `Network.forward`, replaces conditions by
their null, in which nothing is stated, and extends the `Shape` that the network is built for.
"""

from __future__ import annotations

import math
import operator
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import LABEL, Cond, ConditionSpec, DataSpec, as_bytes, as_texts
from .errors import ArgumentError, plain
from .interface import attribute
from .network import CONCAT, MASK, Shape

Encoded = Tensor | tuple[Tensor, Tensor]
"""A value, or a value and its mask."""
JOINT = "joint"
"""The name under which `condition_dropout` states the share of examples that lose every condition at once."""
MAX_LISTED, MAX_NUMBERS = 20, 8
"""Names of classes that a message lists, and numbers of a condition that a caption shows."""


class Conditioner(nn.Module):
    """Base of conditioners. Implement `shape`, `forward` and `null`; a constructor may take the raw `condition`.

    The condition NAME of a recipe reaches the network as its argument NAME, and a mask as NAME_mask. Parameters are
    trained with the network unless they do not require a gradient.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one value: (L, D) with a mask, (D,) for a vector, () for a class, (C', *S) if it is concatenated."""

    @abstractmethod
    def forward(self, raw: Tensor) -> Encoded:
        """Encode raw conditions; a value depends on its own row only.

        Args:
            raw: (B, ...) as the `ConditionSpec` describes it.

        Returns:
            The values, (B, *shape), alone or with their mask, (B, L) bool, which is False for padding.
        """

    @abstractmethod
    def null(self) -> Encoded:
        """Return the value of one example without this condition, (*shape), and its mask, (L,), if `forward` has one.

        It may be learned, a constant, or the value of some raw condition, such as an empty text.
        """

    @attribute
    def concat(self) -> bool:
        """Whether the network receives the values as channels of `concat`, beside those of x; default False."""
        return False

    @attribute
    def inpaints(self) -> bool:
        """Whether a raw value is a picture and a mask, (C + 1, H, W) uint8 with 255 for what is repainted in the last
        channel, which sampling with a mask supplies; default False.
        """
        return False

    @property
    def cacheable(self) -> bool:
        """Whether the value of a row is computed once and kept: by default if there are weights and none is trained."""
        weights = list(self.parameters())
        return bool(weights) and not any(one.requires_grad for one in weights)


class Unchanged(Conditioner):
    """Pass a condition as it is: classes as numbers, with the null class K, and other values with null 0.

    Values of dtype uint8 become k / 127.5 - 1. Raises ValueError for a text.
    """

    def __init__(self, condition: ConditionSpec) -> None:
        super().__init__()
        if condition.dtype == "text":
            raise ValueError("a text requires a conditioner, such as conditioner text")
        self.condition = condition

    @property
    def shape(self) -> tuple[int, ...]:
        return self.condition.shape

    def forward(self, raw: Tensor) -> Tensor:
        if self.condition.dtype == "long":
            return raw
        return raw.float() / 127.5 - 1.0 if self.condition.dtype == "uint8" else raw.float()

    def null(self) -> Tensor:
        if self.condition.classes is not None:
            return torch.tensor(self.condition.classes)
        return torch.zeros(self.condition.shape)


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditioners of a model by the names of their conditions, in the order of the channels of `concat`.

    `specs` describes the raw conditions.
    """

    conditioners: Mapping[str, Conditioner] = field(default_factory=dict)
    specs: Mapping[str, ConditionSpec] = field(default_factory=dict)

    @classmethod
    def unchanged(cls, specs: Mapping[str, ConditionSpec]) -> Conditions:
        """Return conditions that reach the network as they are. Texts, which cannot, are left out."""
        return cls({name: Unchanged(one) for name, one in specs.items() if one.dtype != "text"}, specs)

    def __call__(self, raw: Cond) -> dict[str, Tensor]:
        """Encode raw conditions to arguments of a network; conditions that are absent stay absent, except that channels
        of `concat` beside others are null.

        Args:
            raw: (B, ...) by name. Names without conditioner are left out.

        Returns:
            (B, ...) by the name of the argument.
        """
        found: dict[str, Tensor] = {}
        beside = next((raw[name] for name, one in self.conditioners.items() if one.concat and name in raw), None)
        for name, conditioner in self.conditioners.items():
            if name in raw:
                encoded = conditioner(raw[name])
            elif conditioner.concat and beside is not None:
                encoded = torch.stack([_value(conditioner.null()).to(beside.device)] * len(beside))
            else:
                continue
            for argument, value in _arguments(name, conditioner, encoded):
                found[argument] = torch.cat([found[argument], value], 1) if argument in found else value
        return found

    def arguments(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the arguments of the network: for each name, the condition it comes from and its shape per example."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, conditioner in self.conditioners.items():
            for argument, null in _arguments(name, conditioner, conditioner.null()):
                shape = tuple(null.shape)
                if argument in found:
                    shape = (shape[0] + found[argument][1][0], *shape[1:])
                found[argument] = (name, shape)
        return found

    def fixed(self, raw: Cond) -> dict[str, Tensor]:
        """Encode raw conditions without gradient, and without dropout in the conditioners."""
        modes = [(one, one.training) for one in self.conditioners.values()]
        for conditioner, _ in modes:
            conditioner.eval()
        with torch.no_grad():
            encoded = self(raw)
        for conditioner, mode in modes:
            conditioner.train(mode)
        return encoded

    def stated(self, given: Mapping[str, object], count: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Encode the conditions that a user gives; the others are null.

        Args:
            given: Values by name, as `read_condition` takes them.
            count: Number of rows, B; fewer values are repeated.
            device: Device of the values.

        Returns:
            (B, ...) by the name of the argument: every condition of the model.

        Raises:
            ArgumentError: A name or a value does not fit the conditions.
        """
        raw = {name: self.read(name, value, count).to(device) for name, value in given.items()}
        return self.complete(self.fixed(raw), count, device)

    def read(self, name: str, given: object, count: int) -> Tensor:
        """Return raw values of one condition, see `read_condition`.

        Args:
            name: Name of the condition.
            given: The value or values.
            count: Number of rows.

        Returns:
            (count, ...).

        Raises:
            ArgumentError: DK019, there is no such condition, or the values do not fit it.
        """
        if name not in self.conditioners:
            names = ", ".join(self.conditioners) or "none"
            raise _wrong(f"there is no condition {name}; the model has: {names}", "leave it out")
        return read_condition(name, self.specs[name], given, count)

    def complete(self, cond: Cond, count: int, device: torch.device | str) -> dict[str, Tensor]:
        """Add the null of each condition that is absent.

        Args:
            cond: Arguments of a network: (B, ...) each.
            count: Number of rows, B.
            device: Device of the values.

        Returns:
            Every argument.
        """
        absent: dict[str, Tensor] = {}
        for name, conditioner in self.conditioners.items():
            for argument, null in _arguments(name, conditioner, conditioner.null()):
                if argument not in cond:
                    rows = null.detach().to(device).expand(count, *null.shape)
                    absent[argument] = torch.cat([absent[argument], rows], 1) if argument in absent else rows
        return {**cond, **absent}

    def without(
        self, cond: Cond, names: Collection[str] | None = None, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Replace encoded conditions by their null.

        Args:
            cond: Arguments of a network, as a call of this object returns them: (B, ...) each.
            names: The conditions to replace; None: all.
            rows: (B,) bool, the examples whose conditions are replaced; None: all.

        Returns:
            All arguments; those that belong to no conditioner are unchanged.
        """
        changed, first = dict(cond), 0
        for name, conditioner in self.conditioners.items():
            channels = slice(first, first + conditioner.shape[0]) if conditioner.concat else None
            first += conditioner.shape[0] if conditioner.concat else 0
            if names is not None and name not in names:
                continue
            for argument, null in _arguments(name, conditioner, conditioner.null()):
                if argument not in changed:
                    continue
                value = changed[argument]
                if channels is None:
                    changed[argument] = _replaced(value, null, rows)
                else:
                    before, own, after = value[:, : channels.start], value[:, channels], value[:, channels.stop :]
                    changed[argument] = torch.cat([before, _replaced(own, null, rows), after], 1)
        return changed

    def aligned(self, data: DataSpec) -> tuple[str, ...]:
        """Return the conditions that have the same spatial positions as x: channels of `concat`, and images if x is
        one.
        """
        return tuple(
            name
            for name, one in self.conditioners.items()
            if len(self.specs[name].shape) == len(data.shape) > 1 and (one.concat or len(data.size) > 1)
        )

    def shape(self, shape: Shape) -> Shape:
        """Return the shape of a network that receives these conditions: `classes`, `conditions`, `extra_channels`."""
        label = self.conditioners.get(LABEL)
        vectors = {name: one.shape for name, one in self.conditioners.items() if not one.concat}
        if label is None or label.shape:
            shape = replace(shape, classes=None)
        else:
            del vectors[LABEL]
        extra = sum(one.shape[0] for one in self.conditioners.values() if one.concat)
        return replace(shape, conditions=vectors, extra_channels=extra)


def _arguments(name: str, conditioner: Conditioner, encoded: Encoded) -> Iterator[tuple[str, Tensor]]:
    """Yield the arguments of a network that hold an encoded condition."""
    value, mask = encoded if isinstance(encoded, tuple) else (encoded, None)
    yield CONCAT if conditioner.concat else name, value
    if mask is not None:
        yield f"{name}{MASK}", mask


def _value(encoded: Encoded) -> Tensor:
    return encoded[0] if isinstance(encoded, tuple) else encoded


def _replaced(value: Tensor, null: Tensor, rows: Tensor | None) -> Tensor:
    """Return (B, ...) values in which `rows`, or all, are `null`."""
    null = null.to(value).expand(value.shape)
    return null if rows is None else torch.where(rows.reshape(-1, *(1,) * (value.ndim - 1)), null, value)


def read_condition(name: str, spec: ConditionSpec, given: object, count: int) -> Tensor:
    """Convert what a user states to raw conditions, repeated until there are `count`.

    Classes are given by number or name, K for the null class; texts as text; values of dtype uint8 as whole numbers.
    Each may be one value or a list of them, or a tensor or an array with one row for each.

    Args:
        name: Name of the condition, for messages.
        spec: The condition.
        given: The value or values.
        count: Number of rows.

    Returns:
        (count, *spec.shape).

    Raises:
        ArgumentError: DK019, the values do not fit the condition.
    """
    single = isinstance(given, str | int | float) and not isinstance(given, bool)
    items: Any = [given] if single else given
    if spec.dtype == "text":
        rows = _texts(name, spec, items, given)
    elif spec.dtype == "long":
        rows = _classes(name, spec, items)
    else:
        rows = _numbers(name, spec, items)
    if not len(rows):
        raise _wrong(f"{name}: no value is given", "give one value or more")
    return rows.repeat(-(-count // len(rows)), *(1,) * (rows.ndim - 1))[:count]


def _texts(name: str, spec: ConditionSpec, items: Any, given: object) -> Tensor:
    if not isinstance(items, Sequence) or not all(isinstance(one, str) for one in items):
        raise _wrong(f"{name} must be a text or a list of texts, got {repr(given)[:40]}", f'pass {name}="..."')
    most = spec.shape[0]
    if long := [text for text in items if len(text.encode()) > most]:
        message = f"{name}: {long[0][:40]!r} has {len(long[0].encode())} bytes and is cut to the {most} of the data"
        warnings.warn(plain(message), stacklevel=4)
    return as_bytes(items, most)


def _classes(name: str, spec: ConditionSpec, items: Any) -> Tensor:
    classes, names, plural = spec.classes or 0, spec.names, "labels" if name == LABEL else name
    listed = f"{', '.join(names[:MAX_LISTED])}{', ...' if len(names) > MAX_LISTED else ''}"
    by_name = f" ({listed})" if names else ""
    allowed = f"{plural} must be 0-{classes - 1}{by_name}, or {classes} for the unconditional class"
    try:
        numbers = [names.index(one) if isinstance(one, str) else operator.index(one) for one in items]
    except (TypeError, ValueError):
        fix = "pass numbers or names of classes" if names else "pass numbers: this run has no names of classes"
        raise _wrong(f"{allowed}, got {items!r}", fix) from None
    if not numbers or any(not 0 <= number <= classes for number in numbers):
        raise _wrong(f"{allowed}, got {numbers}", "pass at least one label")
    return torch.tensor(numbers)


def _numbers(name: str, spec: ConditionSpec, items: Any) -> Tensor:
    try:
        value = items if isinstance(items, Tensor) else torch.as_tensor(np.asarray(items))
    except (TypeError, ValueError) as error:
        raise _wrong(f"{name} must be numbers: {error}", "pass numbers, an array or a tensor") from error
    rows = value[None] if tuple(value.shape) == spec.shape else value
    if tuple(rows.shape[1:]) != spec.shape or rows.ndim != len(spec.shape) + 1:
        want = f"(N, {', '.join(map(str, spec.shape))})" if spec.shape else "(N,)"
        raise _wrong(f"{name} must have the shape {want}, got {tuple(value.shape)}", "crop, scale or reshape it")
    if spec.dtype == "float":
        if not bool(torch.isfinite(rows := rows.float()).all()):
            raise _wrong(f"{name} holds NaN or infinite values", "remove or repair them")
        return rows
    if rows.is_floating_point() or bool(((rows < 0) | (rows > 255)).any()):
        raise _wrong(f"{name} must be whole numbers 0 to 255, got {rows.dtype}", "pass pixels as uint8")
    return rows.to(torch.uint8)


def shown_conditions(spec: ConditionSpec, raw: Tensor) -> list[str]:
    """Return a text for each raw condition: the name of a class, the text, or numbers; "" for pictures.

    Args:
        spec: The condition.
        raw: (N, *spec.shape).

    Returns:
        N texts; that of the null class is "unconditional".
    """
    if spec.dtype == "text":
        return as_texts(raw)
    if spec.dtype == "long":
        names = [*(spec.names or map(str, range(spec.classes or 0))), "unconditional"]
        return [names[int(number)] for number in raw.tolist()]
    if len(spec.shape) > 1 or math.prod(spec.shape) > MAX_NUMBERS:
        return [""] * len(raw)
    return [", ".join(f"{number:.4g}" for number in row.flatten().tolist()) for row in raw]


def _wrong(message: str, fix: str) -> ArgumentError:
    return ArgumentError(message, code="DK019", fix=fix)
