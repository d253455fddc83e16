"""Data: the source of clean examples.

A `Data` has a `spec` and two disjoint parts, "train" and "held-out". A part is a `Split`: an `InMemorySplit` if it fits
in memory (stored raw, images as uint8, and moved to the device as a whole), else one that worker processes read example
by example. `to_model_range` converts raw values to the range of the model, which is [-1, 1] for images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .interface import attribute

if TYPE_CHECKING:
    from .denoiser import Denoiser

Part = Literal["train", "held-out"]
Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """Shape and range of one example, x: (channels, *size).

    channels      number of channels
    size          spatial size, such as (height, width); empty for vectors
    classes       number of classes, None without labels
    bounded       whether |x| <= 1
    bins          number of values that a channel can take (256 for images), None for continuous data
    class_names   names of labels 0, 1, ... in reports
    """

    channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None
    bounded: bool = False
    bins: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (channels, *size)."""
        return (self.channels, *self.size)


class Split(ABC):
    """Base of parts of a data set. `split[i]` is (raw x: (C, *S), cond), the same at every call."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Cond]: ...


@dataclass(frozen=True)
class InMemorySplit(Split):
    """A part in memory: raw x: (N, C, *S), and N rows per entry of `cond` (label: (N,) long)."""

    x: Tensor
    cond: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        return self.x[index], {name: value[index] for name, value in self.cond.items()}

    def rows(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the examples at `indices`: (B,) long, on the device of this part."""
        return self.x[indices], {name: value[indices] for name, value in self.cond.items()}

    def to(self, device: torch.device | str) -> InMemorySplit:
        """Return the same part on another device."""
        return InMemorySplit(self.x.to(device), {name: value.to(device) for name, value in self.cond.items()})


class Data(ABC):
    """Base of data sets. Implement `spec` and `split`; everything else has a default."""

    workers: int = 0

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Shape and range of one example after `to_model_range`."""

    @abstractmethod
    def split(self, part: Part) -> Split:
        """Return the examples of `part`, an `InMemorySplit` if small. The two parts share no example."""

    def to_model_range(self, raw: Tensor) -> Tensor:
        """Convert raw values to the range of the model: integers k to 2 k / (bins - 1) - 1, other values to float32.

        `bins` is that of `spec`, or 256 if it has none: uint8 images become k / 127.5 - 1.
        """
        if raw.is_floating_point():
            return raw.float()
        return raw.float().div_(((self.spec.bins or 256) - 1) / 2).sub_(1.0)

    def to_storage(self, x: Tensor) -> Tensor:
        """Convert samples to raw values, the inverse of `to_model_range`: the nearest of `bins` values, or x itself.

        Values outside [-1, 1] become the first or the last bin.
        """
        bins = self.spec.bins
        if bins is None:
            return x
        k = x.float().add(1.0).mul_((bins - 1) / 2).round_().clamp_(0, bins - 1)
        return k.to(torch.uint8 if bins <= 256 else torch.int32)

    def truth(self) -> Denoiser | None:
        """Return the exact denoiser of the distribution if it is known in closed form, else None."""
        return None

    def fingerprint(self) -> str:
        """Return a text that changes when the examples change; a resumed run compares it."""
        return f"{type(self).__name__}:{len(self.split('train'))}:{len(self.split('held-out'))}"


class Augmentation(ABC):
    """Base of random changes of training examples, which may pass their parameters to the network through `cond`."""

    @abstractmethod
    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        """Change a batch of examples.

        Args:
            x: Examples in the range of the model: (B, C, *S).
            uniform: Random numbers in [0, 1): (B, draws).
            cond: Conditions of the examples, one row each.

        Returns:
            The changed x, in the same shape, and the conditions. Entries added to the conditions reach the network by
            their names in training, and are left out in sampling.
        """

    @attribute
    def draws(self) -> int:
        """Number of uniform numbers per example; default 1."""
        return 1


def stack(split: Split, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return raw x: (B, C, *S) and cond of the examples at `indices`, from any kind of part."""
    if isinstance(split, InMemorySplit):
        return split.rows(torch.as_tensor(indices, device=split.x.device))
    rows = [split[i] for i in indices]
    cond = {name: torch.stack([torch.as_tensor(c[name]) for _, c in rows]) for name in (rows[0][1] if rows else {})}
    return torch.stack([x for x, _ in rows]), cond
