"""Data of which nothing is known but its shape: what an imported model is told instead of its training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Data, DataError, DataSpec, Part, Split

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ShapeOnly(Data):
    """Images x (channels, *size) in [-1, 1] with `bins` values, of `classes` classes; there are no examples.

    Enough to sample from imported weights; training and metrics need the examples. Raises DataError DK311 there.
    """

    channels: Positive
    size: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    classes: Positive | None = None
    bins: Annotated[int, Field(ge=2)] | None = 256

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.channels, self.size, self.classes, bounded=True, bins=self.bins)

    def split(self, part: Part) -> Split:
        raise DataError(
            "data shape-only says what examples look like, and holds none",
            code="DK311",
            fix="name the data that this model was trained on: data.name",
        )

    def fingerprint(self) -> str:
        return f"shape-only:{self.channels}:{self.size}:{self.classes}:{self.bins}"
