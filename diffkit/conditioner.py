"""Conditioners: functions from a condition of the data, such as the bytes of a text, to what a network receives.

The parts of a data set hold raw conditions, which `DataSpec.conditions` describes. `Conditions` holds one `Conditioner`
for each condition of a recipe: it encodes raw conditions to the arguments of `Network.forward`, replaces conditions by
their null, in which nothing is stated, and extends the `Shape` that the network is built for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .data import LABEL, Cond, ConditionSpec
from .interface import attribute
from .network import CONCAT, MASK, Shape

Encoded = Tensor | tuple[Tensor, Tensor]
"""A value, or a value and its mask."""


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
            The values, (B, *shape), alone or with their mask, (B, L) bool, which is False for what fills up the length.
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
    """The conditioners of a model by the names of their conditions, in the order of the channels of `concat`."""

    conditioners: Mapping[str, Conditioner] = field(default_factory=dict)

    def __call__(self, raw: Cond) -> dict[str, Tensor]:
        """Encode raw conditions to arguments of a network; conditions that are absent stay absent.

        Args:
            raw: (B, ...) by name. Names without conditioner are left out.

        Returns:
            (B, ...) by the name of the argument.
        """
        found: dict[str, Tensor] = {}
        for name, conditioner in self.conditioners.items():
            if name in raw:
                encoded = conditioner(raw[name])
                for argument, value in _arguments(name, conditioner, encoded):
                    found[argument] = torch.cat([found[argument], value], 1) if argument in found else value
        return found

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


def _replaced(value: Tensor, null: Tensor, rows: Tensor | None) -> Tensor:
    """Return (B, ...) values in which `rows`, or all, are `null`."""
    null = null.to(value).expand(value.shape)
    return null if rows is None else torch.where(rows.reshape(-1, *(1,) * (value.ndim - 1)), null, value)
