"""Data with a shape and no examples, for imported models without their training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Data, DataError, DataSpec, Part, Split

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ShapeOnly(Data):
    """Images x (channels, *size) in [-1, 1] with `bins` values and `classes` classes, without examples.

    This is enough to sample from imported weights; training and metrics raise DataError DK311.
    """

    channels: Positive
    size: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    classes: Positive | None = None
    bins: Annotated[int, Field(ge=2)] | None = 256
    law_options = ({"channels": 3, "size": (8, 8)},)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.channels, self.size, self.classes, bounded=True, bins=self.bins)

    def split(self, part: Part) -> Split:
        raise DataError(
            "data `shape-only` has no examples",
            code="DK311",
            fix="name the data that this model was trained on: data.name",
        )

    def fingerprint(self) -> str:
        return f"shape-only:{self.channels}:{self.size}:{self.classes}:{self.bins}"
