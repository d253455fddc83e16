"""Data: where the clean examples come from.

A `Data` has a `spec` and two disjoint parts, "train" and "held-out". A part is a `Split`: `InMemorySplit` when it fits
in memory (kept raw, as uint8 where it is images, and moved to the device whole), else one that worker processes read
example by example. `to_model_range` turns raw values into what the model sees; images live in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .denoiser import Denoiser

Part = Literal["train", "held-out"]
Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """Shape of one example, x: (channels, *size); `classes` where it carries a label; `bounded` where |x| <= 1.

    `bins` is the number of values that a channel can take where the data is discrete (256 for images), else None.
    `class_names` are what reports print for labels 0, 1, ...
    """

    channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None
    bounded: bool = False
    bins: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size)."""
        return (self.channels, *self.size)


class Split(ABC):
    """One part of a data set; `split[i]` is (raw x: (C, *S), cond) and is the same at every call."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Cond]: ...


@dataclass(frozen=True)
class InMemorySplit(Split):
    """A part held whole: raw x: (N, C, *S), and one row of each entry of `cond` per example (label: (N,) long)."""

    x: Tensor
    cond: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        return self.x[index], {name: value[index] for name, value in self.cond.items()}

    def rows(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The examples at `indices`: (B,) long, on the device where this part lives."""
        return self.x[indices], {name: value[indices] for name, value in self.cond.items()}

    def to(self, device: torch.device | str) -> InMemorySplit:
        """The same part on another device."""
        return InMemorySplit(self.x.to(device), {name: value.to(device) for name, value in self.cond.items()})


class Data(ABC):
    """A data set. Implement `spec` and `split`; everything else has a default."""

    workers: int = 0

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """What one example looks like after `to_model_range`."""

    @abstractmethod
    def split(self, part: Part) -> Split:
        """The examples of `part`; the two parts share none. `InMemorySplit` if small, any `Split` otherwise."""

    def to_model_range(self, raw: Tensor) -> Tensor:
        """Raw values to what the model sees: integers k to 2 k / (bins - 1) - 1, anything else to float32 as it is.

        `bins` is that of `spec`, 256 where it has none: uint8 images become k / 127.5 - 1.
        """
        if raw.is_floating_point():
            return raw.float()
        return raw.float().div_(((self.spec.bins or 256) - 1) / 2).sub_(1.0)

    def to_storage(self, x: Tensor) -> Tensor:
        """What a sample is stored as: the nearest of the `bins` values where there are such, else x itself.

        The inverse of `to_model_range` on data; whatever leaves [-1, 1] becomes the first or the last value.
        """
        bins = self.spec.bins
        if bins is None:
            return x
        k = x.float().add(1.0).mul_((bins - 1) / 2).round_().clamp_(0, bins - 1)
        return k.to(torch.uint8 if bins <= 256 else torch.int32)

    def truth(self) -> Denoiser | None:
        """The exact denoiser of the distribution, where it is known in closed form."""
        return None

    def fingerprint(self) -> str:
        """A text that changes when the examples change; a resumed run compares it."""
        return f"{type(self).__name__}:{len(self.split('train'))}:{len(self.split('held-out'))}"


class Augmentation(ABC):
    """A random change of training examples; what was done may be told to the network through `cond`."""

    @abstractmethod
    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        """x: (B, C, *S) decoded, uniform: (B, draws) in [0, 1) -> x and cond, of the same shapes.

        Entries that it adds to `cond` reach the network by their names; the caller leaves them out when sampling.
        """

    @property
    def draws(self) -> int:
        """How many uniform numbers it needs for each example."""
        return 1


def stack(split: Split, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Raw x: (B, C, *S) and cond of the examples at `indices`, from any kind of part."""
    if isinstance(split, InMemorySplit):
        return split.rows(torch.as_tensor(indices, device=split.x.device))
    rows = [split[i] for i in indices]
    cond = {name: torch.stack([torch.as_tensor(c[name]) for _, c in rows]) for name in (rows[0][1] if rows else {})}
    return torch.stack([x for x, _ in rows]), cond
