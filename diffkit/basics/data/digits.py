"""Digits: 1,797 handwritten digits of 8x8 pixels, which scikit-learn contains; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffkit.basics.extra import missing
from diffkit.data import Data, DataSpec, InMemorySplit, Part

from .files import fingerprint
from .splits import HeldOut, check_held_out, divide, in_memory_parts


@dataclass(frozen=True)
class Digits(Data):
    """Handwritten digits: x (1, 8, 8); 17 grey values k = 0..16 become k / 8 - 1.

    1,285 examples to train on and 512 held out, the same share of each class, whatever the seed of the run.
    `labels: false` hides the classes. Raises PluginError DK290 without scikit-learn.
    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", its test part.
    """

    held_out: HeldOut = 512
    labels: bool = True

    def __post_init__(self) -> None:
        check_held_out(self.held_out)

    @property
    def spec(self) -> DataSpec:
        names = tuple("0123456789") if self.labels else ()
        return DataSpec(1, (8, 8), len(names) or None, bounded=True, bins=17, class_names=names)

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    def fingerprint(self) -> str:
        return fingerprint(self)

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        images, labels = _read()
        rows = divide([str(i) for i in range(len(labels))], self.held_out, labels.tolist())
        return in_memory_parts(images, labels if self.labels else None, rows)


def _read() -> tuple[Tensor, Tensor]:
    """Read the images: (1797, 1, 8, 8) uint8 in 0..16, and labels: (1797,) long."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("scikit-learn", "quickstart", "data `digits`") from error
    loaded = load_digits()
    return torch.from_numpy(loaded.images.astype("uint8"))[:, None], torch.from_numpy(loaded.target.astype("int64"))
