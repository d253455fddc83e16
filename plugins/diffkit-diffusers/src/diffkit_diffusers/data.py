"""Data with a shape and no examples, for imported models without their training set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from pydantic import Field, JsonValue

from diffkit import ConditionSpec, Data, DataError, DataSpec, Part, Split

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ShapeOnly(Data):
    """Images x (channels, *size) in [-1, 1] with `bins` values and `classes` classes, without examples.

    `conditions` are further conditions by name, each with the fields of `ConditionSpec`: `{dtype: text, shape: [256]}`.
    This is enough to sample from imported weights; training and metrics raise DataError DK311.
    Raises ValueError for fields that a condition does not have.
    """

    channels: Positive
    size: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    classes: Positive | None = None
    bins: Annotated[int, Field(ge=2)] | None = 256
    conditions: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    law_options = ({"channels": 3, "size": (8, 8)},)

    def __post_init__(self) -> None:
        try:
            self.spec  # noqa: B018 - refuses wrong conditions
        except TypeError as error:
            raise ValueError(f"conditions: {error}") from error

    @property
    def spec(self) -> DataSpec:
        conditions = {}
        for name, fields in self.conditions.items():
            given = cast(dict[str, Any], fields)
            conditions[name] = ConditionSpec(**{**given, "shape": tuple(given.get("shape", ()))})
        return DataSpec(self.channels, self.size, self.classes, bounded=True, bins=self.bins, conditions=conditions)

    def split(self, part: Part) -> Split:
        raise DataError(
            "data `shape-only` has no examples",
            code="DK311",
            fix="name the data that this model was trained on: data.name",
        )

    def fingerprint(self) -> str:
        return f"shape-only:{self.channels}:{self.size}:{self.classes}:{self.bins}:{self.conditions}"
