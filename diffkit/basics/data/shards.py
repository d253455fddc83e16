"""Shards: pictures in tar files, with captions, classes and numbers, read by place from a local or a remote folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from diffkit import Cond, ConditionSpec, DataError, DataSpec, FilePath, Part, Split, as_bytes

from .files import FileData, fingerprint
from .packing import pack
from .pictures import Color, PictureError, read_picture, without_warnings
from .shard_index import CAPTION, CLASS, FIELDS, PICTURE, Column, Index, decoded, load_index, parsed
from .splits import HeldOut, check_held_out, divide_ranks

Read = TypeVar("Read")


@dataclass(frozen=True)
class Shards(FileData):
    """Pictures in tar shards, the layout of webdataset, read by their places: x (3, H, W), or (1, H, W) with
    `color: grey`. Any number of examples needs the same memory, beside 50 to 100 bytes for each.

    `path` is a folder, or a URL of fsspec such as s3://bucket/flowers, with tar files and their index, which
    `diffkit shards` writes. The order of the examples is a function of seed and step, as with any data. The sizes of
    the shards are compared with the index at the start, and the CRC-32 of each file when it is read; times of files do
    not matter, so shards may be copied.

    size        length to which the shorter side is scaled (Lanczos) before the centre is cropped to a square; without
                it all pictures must have equal sizes
    labels      condition `label`: true for the .cls files, or the name of a field of the JSON files
    captions    condition `text`: true for the .txt files, or the name of a field
    classes     further classes: names of conditions, and their fields
    numbers     names of conditions, and the field, or the fields of a vector
    held_out    a number of examples, or a fraction; a hash of the name of an example decides

    Raises DataError: DK301 no shards or no index, DK302 a damaged index, DK304 too few, DK306 unequal sizes, DK309 an
    unusable picture, DK315 a shard that changed, DK316 a field that the examples do not have.
    """

    path: FilePath
    size: Annotated[int, Field(ge=1)] | None = None
    color: Color = "rgb"
    labels: bool | str = False
    captions: bool | str = False
    classes: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    held_out: HeldOut = 0.1
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        check_names(self.labels, self.captions, self.classes, self.numbers)

    @cached_property
    def spec(self) -> DataSpec:
        sizes = self._index.sizes
        if len(sizes) > 1 and self.size is None:
            raise DataError(
                f"the pictures of {self.path} have several sizes",
                code="DK306",
                fix="set data.size: each picture is scaled and cropped to this size",
                notes=[f"{wide}x{high} (width x height)" for high, wide in sizes],
            )
        size = sizes[0] if self.size is None else (self.size, self.size)
        described = {name: one.spec for name, one in self._conditions.items()}
        return DataSpec(3 if self.color == "rgb" else 1, size, bounded=True, bins=256, conditions=described)

    def fingerprint(self) -> str:
        return f"{fingerprint(self)}:{self._index.digest[:32]}"

    @cached_property
    def _index(self) -> Index:
        return load_index(self.path)

    @cached_property
    def _conditions(self) -> Mapping[str, Packed]:
        found: dict[str, Packed] = {}
        classes = {"label": self._field(self.labels, CLASS)} if self.labels else {}
        for name, one in (classes | {name: f"{FIELDS}.{one}" for name, one in self.classes.items()}).items():
            found[name] = as_class(self._column(one), one)
        if self.captions:
            one = self._field(self.captions, CAPTION)
            column = self._column(one)
            if column.numeric:
                raise self._absent(f"{one} holds numbers, not captions")
            found["text"] = Packed(ConditionSpec((max(1, column.length),), "text"), member=one)
        for name, given in self.numbers.items():
            columns = [self._column(f"{FIELDS}.{one}") for one in ((given,) if isinstance(given, str) else given)]
            if not all(column.numeric for column in columns):
                raise self._absent(f"{given} of numbers.{name} holds texts")
            rows = torch.stack([column.rows.float() for column in columns if column.rows is not None], 1)
            single = len(columns) == 1
            found[name] = Packed(ConditionSpec(() if single else (len(columns),)), rows[:, 0] if single else rows)
        return found

    @staticmethod
    def _field(given: bool | str, usual: str) -> str:
        return usual if given is True else f"{FIELDS}.{given}"

    def _column(self, name: str) -> Column:
        if name not in self._index.columns:
            raise self._absent(f"the field {name} is absent, or has values of several types")
        return self._index.columns[name]

    def _absent(self, problem: str) -> DataError:
        known = [name + (" (numbers)" if one.numeric else "") for name, one in self._index.columns.items()]
        choices = known or "none: there is nothing but pictures"
        return DataError(
            f"{self.path}: {problem}", code="DK316", choices=choices, fix="name a field that every example has"
        )

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        train, held_out = divide_ranks(self._index.rank, self.held_out)
        return {"train": self._part(train), "held-out": self._part(held_out)}

    def _part(self, rows: Tensor) -> Split:
        return PackedExamples(rows, self.spec.shape, self.size, self.color, self._conditions, self._index)

    @staticmethod
    def law_example(folder: Path) -> Shards:
        """Pack forty labelled pictures, and return the data set of them."""
        for i in range(40):
            place = folder / "pictures" / ("cats" if i % 2 else "dogs")
            place.mkdir(parents=True, exist_ok=True)
            x = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(x.numpy()).save(place / f"{i:02}.png")
        pack(folder / "pictures", folder / "shards", labels=True)
        return Shards(str(folder / "shards"), labels=True)


@dataclass(frozen=True)
class Packed:
    """A condition of all examples: its raw rows, or the file or field that holds its texts."""

    spec: ConditionSpec
    rows: Tensor | None = None
    member: str = ""


def as_class(column: Column, name: str) -> Packed:
    """Number the classes of a column, sorted: texts, or whole numbers.

    Args:
        column: the values.
        name: the column, for messages.

    Returns:
        The condition, with the names of its classes.

    Raises:
        DataError: DK316, the values are not classes.
    """
    if column.rows is None or (column.numeric and bool((column.rows != column.rows.round()).any())):
        kind = "fractions" if column.numeric else "too many different texts"
        message = f"{name} holds {kind}, not classes"
        raise DataError(message, code="DK316", fix="use it in data.numbers or data.captions")
    names, rows = column.names, column.rows.long()
    if column.numeric:
        values, numbers = np.unique(rows.numpy(), return_inverse=True)
        names, rows = tuple(map(str, values)), torch.from_numpy(numbers)
    return Packed(ConditionSpec((), "long", len(names), names), rows)


def check_names(
    labels: bool | str, captions: bool | str, classes: Mapping[str, str], numbers: Mapping[str, object]
) -> None:
    """Raise ValueError if two options state one condition.

    Args:
        labels: The option of `label`.
        captions: The option of `text`.
        classes: Further classes by the name of the condition.
        numbers: Numbers by the name of the condition.
    """
    names = ["label"] * bool(labels) + ["text"] * bool(captions) + [*classes, *numbers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two options state the condition {twice[0]}")


@dataclass(frozen=True)
class EncodedPictures(Split):
    """Pictures that are decoded at each access: the rows `at`: (N,) long, of what a subclass reads."""

    at: Tensor
    shape: tuple[int, ...]
    size: int | None
    color: Color
    conditions: Mapping[str, Packed]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        row = int(self.at[index])
        with without_warnings():
            x = self.opened(row, lambda file: read_picture(file, self.size, self.color))
        if tuple(x.shape) != self.shape:
            raise self.unusable(row, f"its shape {tuple(x.shape)} is not {self.shape}")
        return x, {name: self._condition(row, one) for name, one in self.conditions.items()}

    @property
    def labels(self) -> Tensor | None:
        """The classes of all examples, for the summary."""
        label = self.conditions.get("label")
        return None if label is None or label.rows is None else label.rows[self.at]

    def opened(self, row: int, read: Callable[[BytesIO], Read]) -> Read:
        """Call `read` with the encoded picture of a row. Raises DataError DK309 if it cannot be used."""
        try:
            return read(BytesIO(self.encoded(row)))
        except PictureError as error:
            raise self.unusable(row, str(error)) from error

    def _condition(self, row: int, one: Packed) -> Tensor:
        return as_bytes([self.text(row, one)], one.spec.shape[0])[0] if one.rows is None else one.rows[row]

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """Return the file of the picture of a row. Raises PictureError if there is none."""

    @abstractmethod
    def text(self, row: int, one: Packed) -> str:
        """Return the text of a condition of a row."""

    @abstractmethod
    def unusable(self, row: int, reason: str) -> DataError:
        """Build the error DK309 for a picture that cannot be used."""


@dataclass(frozen=True)
class PackedExamples(EncodedPictures):
    """Examples of an index of shards."""

    index: Index

    def encoded(self, row: int) -> bytes:
        return self.index.read(row, PICTURE)

    def text(self, row: int, one: Packed) -> str:
        member, _, name = one.member.partition(".")
        content = self.index.read(row, member)
        return str(parsed(content, self._named(row))[name]) if name else decoded(content, self._named(row))

    def unusable(self, row: int, reason: str) -> DataError:
        message = f"{self._named(row)}: the picture cannot be used: {reason}"
        fix = f"remove it, and index the shards again: diffkit shards {self.index.place}"
        return DataError(message, code="DK309", fix=fix)

    def _named(self, row: int) -> str:
        shard = self.index.shards[int(self.index.shard[row])][0]
        return f"{self.index.place}/{shard}, byte {int(self.index.offset[row, 0])}"
