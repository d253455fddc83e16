"""Images: a folder of pictures, decoded into memory or one by one as training continues."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Cond, ConditionSpec, DataError, DataSpec, FilePath, InMemorySplit, Part, Split, plain

from .columns import (
    CAPTION,
    JSON_LINES,
    Column,
    Table,
    as_captions,
    as_classes,
    as_numbers,
    caption_files,
    digest,
    find_table,
)
from .files import FileData, Resident, Stamp, archive_note, fingerprint, fits_in_memory, locate, require, stamps_of
from .paired import Given, Paired, check_given, pair
from .pictures import (
    SUFFIXES,
    Color,
    Found,
    PictureError,
    SizeCache,
    find_pictures,
    picture_size,
    read_picture,
    without_warnings,
)
from .splits import HeldOut, check_held_out, divide

Errors = Literal["error", "skip"]
Result = TypeVar("Result")
MAX_LISTED = 200
"""Unusable files that an error names."""


@dataclass(frozen=True)
class Images(FileData):
    """PNG, JPEG, WEBP and BMP files below `path`, sub-folders included: x (3, H, W), or (1, H, W) with `color: grey`.

    Links to files and folders are followed, each folder once. A warning counts the files that are left out, by suffix.

    `size` scales the shorter side to this length (Lanczos) and crops the centre to a square; without `size` all
    pictures must have equal sizes. A hash of its name decides whether a picture is held out (`held_out`: a number, or
    a fraction). All files are examined before training, and every unusable one is reported; `errors: skip` replaces
    up to `max_skipped` of them, each by the next usable picture, so that other pictures keep their positions; if a
    part has no usable picture, the usable ones are divided instead. `resident: auto` keeps up to 1 GiB of decoded
    pictures in memory; above, `workers` processes decode them during training.

    labels      condition `label`: true for the names of the sub-folders, or the name of a column
    captions    condition `text`: true for a .txt file beside each picture, or the name of a column
    classes     further classes: names of conditions, and their columns
    numbers     names of conditions, and the column, or the columns of a vector
    pictures    conditions that are pictures: the name of a folder beside `path` with the same file names; or a mapping
                of `folder` or `column` (of file names) and `size`, `color`, `smooth: false` for the nearest pixel
    table       a CSV, TSV or JSONL file whose column `file_name` names each picture below `path` once; by default
                metadata.jsonl or metadata.csv in `path`

    Raises DataError: DK301 missing, DK304 too few, DK305 labels, DK306 unequal sizes, DK309 unusable files, DK312 a
    table, caption or partner that does not fit.
    """

    path: FilePath
    size: Annotated[int, Field(ge=1)] | None = None
    color: Color = "rgb"
    labels: bool | str = False
    captions: bool | str = False
    classes: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    pictures: dict[str, Given] = field(default_factory=dict)
    table: FilePath | None = None
    held_out: HeldOut = 0.1
    errors: Errors = "error"
    max_skipped: Annotated[int, Field(ge=1)] = 100
    resident: Resident = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        if self.errors == "error" and self.max_skipped != type(self).max_skipped:
            raise ValueError("max_skipped has no effect without errors: skip")
        if self.table is not None and not self._columns:
            raise ValueError("table has no effect without a column in labels, captions, classes, numbers or pictures")
        for name, given in self.pictures.items():
            check_given(name, given)
        names = ["label"] * bool(self.labels) + ["text"] * bool(self.captions)
        names += [*self.classes, *self.numbers, *self.pictures]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two options state the condition {twice[0]}")

    @cached_property
    def spec(self) -> DataSpec:
        size = self._headers[0] if self.size is None else (self.size, self.size)
        channels = 3 if self.color == "rgb" else 1
        described = {name: column.spec for name, column in self._conditions.items()}
        for name, paired in self._paired.items():
            described[name] = ConditionSpec(paired.shape(self._sizes[0]), "uint8")
        return DataSpec(channels, size, bounded=True, bins=256, conditions=described)

    def fingerprint(self) -> str:
        own = fingerprint(self, self._root, self._names, self._stamps)
        added = digest(self._conditions)
        for paired in self._paired.values():
            added += fingerprint(self, paired.root, list(paired.files.values())) + repr(paired)
        return f"{own}:{sha256(added.encode()).hexdigest()[:32]}" if added else own

    @property
    def _columns(self) -> bool:
        """Whether an option names a column of a table."""
        named = isinstance(self.labels, str), isinstance(self.captions, str)
        return any(named) or bool(self.classes or self.numbers or self._file_columns)

    @property
    def _file_columns(self) -> list[str]:
        """The columns that name pictures."""
        return [
            str(given["column"]) for given in self.pictures.values() if isinstance(given, dict) and "column" in given
        ]

    @cached_property
    def _table(self) -> Table | None:
        return find_table(None if self.table is None else locate(self.table), self._root) if self._columns else None

    @cached_property
    def _order(self) -> list[int]:
        """The row of each picture in the table."""
        return [] if self._table is None else self._table.rows_of(self._names, self._root)

    @cached_property
    def _conditions(self) -> dict[str, Column]:
        """Every condition but pictures, in the order of the pictures."""
        found: dict[str, Column] = {}
        if self.labels is True:
            number = {name: index for index, name in enumerate(self._classes)}
            rows = torch.tensor([number[name.split("/")[0]] for name in self._names])
            found["label"] = Column(ConditionSpec((), "long", len(self._classes), self._classes), rows)
        if self.captions is True:
            found["text"] = caption_files(self._names, self._root, self._found.texts)
        table, order = self._table, self._order
        if table is None:
            return found

        def fault(row: int, problem: str, fix: str) -> DataError:
            return table.fault(order[row], problem, fix)

        texts = table.file.suffix.lower() not in JSON_LINES
        classes = ({"label": self.labels} if isinstance(self.labels, str) else {}) | self.classes
        for name, column in classes.items():
            found[name] = as_classes(table.column(column, order), fault, f"column {column!r}")
        if isinstance(self.captions, str):
            found["text"] = as_captions(table.column(self.captions, order), fault, f"column {self.captions!r}")
        for name, given in self.numbers.items():
            columns = (given,) if isinstance(given, str) else given
            found[name] = as_numbers([table.column(one, order) for one in columns], fault, columns, texts)
        return found

    @cached_property
    def _paired(self) -> dict[str, Paired]:
        usual = {"size": self.size, "color": self.color}
        return {
            name: pair(name, given, self._names, self._root, self._table, self._order, usual)
            for name, given in self.pictures.items()
        }

    @cached_property
    def _root(self) -> Path:
        return require(locate(self.path), "the folder of images", "name a folder: data.path", folder=True)

    @cached_property
    def _found(self) -> Found:
        found = find_pictures(self._root)
        if not found.names:
            others = Counter(found.left_out) + Counter(found.ignored)
            raise DataError(
                f"no image below {self._root}",
                code="DK304",
                choices=f"files that end in {', '.join(SUFFIXES)}",
                fix="name the folder that holds them: data.path",
                notes=[*archive_note(self._root), f"found: {dict(others.most_common(5)) or 'nothing'}"],
            )
        return found

    @cached_property
    def _names(self) -> list[str]:
        """The pictures, without those that a column of the table names as conditions."""
        columns = [self._table.files(name, self._root) for name in self._file_columns] if self._table else []
        named = {name for column in columns for name in column}
        return [name for name in self._found.names if name not in named]

    @cached_property
    def _stamps(self) -> list[Stamp]:
        return stamps_of(self._root, self._names)

    @property
    def _unused(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        ignored = {**self._found.ignored, **({"unusable": len(self._reasons)} if self._reasons else {})}
        if self.captions is True:
            ignored.pop(CAPTION, None)
        empty = {
            f"folder {name!r} without a picture": 1
            for name in self._found.folders
            if self.labels is True and name not in self._classes
        }
        extra = {f"{one.name} without a picture": one.extra for one in self._paired.values() if one.extra}
        return {**self._found.left_out, **empty, **extra}, ignored

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, sorted."""
        loose = [name for name in self._names if "/" not in name]
        if loose:
            raise DataError(
                f"{len(loose)} images lie in {self._root} itself, so that they have no class: {loose[0]}",
                code="DK305",
                fix="put each class into a folder of its own, or set data.labels: false",
            )
        return tuple(sorted({name.split("/")[0] for name in self._names}))

    @cached_property
    def _sizes(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """(H, W) of each picture, and the reason for each file that is unusable, according to its header."""
        cache = SizeCache(self._root, self._names, self._stamps)
        new, reasons = self._each(cache.missing, lambda name: picture_size(self._root / name))
        return cache.complete(new), reasons

    @cached_property
    def _headers(self) -> tuple[tuple[int, int], dict[str, str]]:
        """The common (H, W), and the reason for each file that is unusable according to its header."""
        sizes, reasons = self._sizes
        counts = Counter(sizes.values())
        if not counts:
            raise unusable(reasons, len(self._names))
        if len(counts) > 1 and self.size is None:
            first = {size: name for name, size in reversed(sizes.items())}
            raise DataError(
                f"the images below {self._root} have {len(counts)} different sizes",
                code="DK306",
                fix="set data.size: each image is scaled and cropped to this size",
                notes=[f"{first[size]}: {size[1]}x{size[0]} (width x height)" for size in list(counts)[:5]],
            )
        return counts.most_common(1)[0][0], reasons

    def _each(self, names: Sequence[str], read: Callable[[str], Result]) -> tuple[dict[str, Result], dict[str, str]]:
        """Call `read` for every name in threads; return the results and the errors by name."""

        def attempt(name: str) -> Result | PictureError:
            try:
                return read(name)
            except PictureError as error:
                return error

        results: dict[str, Result] = {}
        reasons: dict[str, str] = {}
        with without_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, result in zip(names, pool.map(attempt, names)):
                if isinstance(result, PictureError):
                    reasons[name] = str(result)
                else:
                    results[name] = result
        return results, reasons

    @cached_property
    def _pictures(self) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, str]]:
        """The decoded pictures if they fit in memory, and the reason for each unusable file that is known so far."""
        shapes = [self.spec.shape, *(self.spec.conditions[name].shape for name in self._paired)]
        if fits_in_memory(self.resident, len(self._names) * sum(map(math.prod, shapes))):
            return self._each(self._names, self._reader)
        return {}, dict(self._headers[1])

    @property
    def _reader(self) -> Reader:
        return Reader(self._root, self.size, self.color, tuple(self._paired.values()))

    @property
    def _reasons(self) -> dict[str, str]:
        return self._pictures[1]

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        pictures, reasons = self._pictures
        rows = divide(self._names, self.held_out)
        if not pictures and self.errors == "skip":  # only decoding shows whether a small part has a usable picture
            few = [self._names[row] for part in rows if len(part) <= self.max_skipped for row in part]
            reasons.update(self._each([name for name in few if name not in reasons], self._reader)[1])
        self._report(reasons)
        good = [name not in reasons for name in self._names]
        if not all(any(good[row] for row in part) for part in rows):
            usable = [row for row, fine in enumerate(good) if fine]
            first, second = divide([self._names[row] for row in usable], self.held_out)
            rows = [usable[place] for place in first], [usable[place] for place in second]
        train, held_out = (self._part(replace_unusable(good, part), pictures) for part in rows)
        return {"train": train, "held-out": held_out}

    def _report(self, reasons: Mapping[str, str]) -> None:
        """Warn of unusable files, or raise if they are not to be skipped."""
        if not reasons:
            return
        if self.errors == "error":
            raise unusable(reasons, len(self._names))
        if len(reasons) > self.max_skipped:
            raise unusable(reasons, len(self._names), limit=self.max_skipped)
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        warnings.warn(plain(f"skipped {len(reasons)} of {len(self._names)} images: {listed}"), stacklevel=2)

    def _part(self, rows: list[int], pictures: Mapping[str, tuple[Tensor, ...]]) -> Split:
        names = tuple(self._names[row] for row in rows)
        cond = {name: column.rows[rows] for name, column in self._conditions.items()}
        if pictures:
            x, *pairs = (torch.stack(each) for each in zip(*(pictures[name] for name in names), strict=True))
            return InMemorySplit(x, cond | dict(zip(self._paired, pairs, strict=True)))
        shapes = self.spec.shape, *(self.spec.conditions[name].shape for name in self._paired)
        return PictureFiles(self._reader, names, cond, shapes, self.errors, self.max_skipped)


@dataclass(frozen=True)
class Reader:
    """Decodes a picture below `root`, and its partners."""

    root: Path
    size: int | None
    color: Color
    paired: tuple[Paired, ...] = ()

    def __call__(self, name: str) -> tuple[Tensor, ...]:
        """Return x: (C, H, W), and the pictures that are its conditions, uint8. Raises PictureError."""
        x = read_picture(self.root / name, self.size, self.color)
        return x, *(paired.read(name) for paired in self.paired)


@dataclass(frozen=True)
class PictureFiles(Split):
    """The pictures `names`, each decoded when it is read; `shapes` are those of x and of the pictures beside it.

    A worker process receives only names, and the conditions other than pictures.
    """

    reader: Reader
    names: tuple[str, ...]
    cond: Cond
    shapes: tuple[tuple[int, ...], ...]
    errors: Errors
    max_skipped: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> Tensor | None:
        """The class of each picture, None without classes."""
        return self.cond.get("label")

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        index = range(len(self.names))[index]
        reasons: dict[str, str] = {}
        for place in range(index, index + len(self.names)):
            row = place % len(self.names)
            try:
                with without_warnings():
                    read = self.reader(self.names[row])
                for picture, shape in zip(read, self.shapes, strict=True):
                    if tuple(picture.shape) != shape:
                        raise PictureError(f"its shape {tuple(picture.shape)} is not {shape}")
            except PictureError as error:
                reasons[self.names[row]] = str(error)
                if self.errors == "error" or len(reasons) > self.max_skipped:
                    break
            else:
                pairs = dict(zip((one.name for one in self.reader.paired), read[1:], strict=True))
                return read[0], {name: value[row] for name, value in self.cond.items()} | pairs
        limit = None if self.errors == "error" else self.max_skipped
        raise unusable(reasons, len(self.names), limit=limit)


def unusable(reasons: Mapping[str, str], count: int, *, limit: int | None = None) -> DataError:
    """Build the error that lists unusable files.

    Args:
        reasons: file name -> reason.
        count: the number of all files.
        limit: `max_skipped`, if files are skipped and there are too many.

    Returns:
        A DataError DK309, for the caller to raise.
    """
    notes = [f"{name}: {reason}" for name, reason in list(reasons.items())[:MAX_LISTED]]
    if len(reasons) > MAX_LISTED:
        notes.append(f"and {len(reasons) - MAX_LISTED} more")
    allowed = "" if limit is None else f", more than data.max_skipped = {limit}"
    return DataError(
        f"{len(reasons)} of {count} images cannot be used{allowed}",
        code="DK309",
        fix="repair or remove them" + (", or set data.errors: skip" if limit is None else ""),
        notes=notes,
    )


def replace_unusable(good: Sequence[bool], rows: Sequence[int]) -> list[int]:
    """Replace each unusable index in `rows` by the next usable one of them, cyclically; `good` tests an index.

    So an unusable file does not change the position of other examples. At least one index must be usable.
    """
    sources = list(rows)
    following = next(row for row in rows if good[row])
    for place in reversed(range(len(rows))):
        if good[rows[place]]:
            following = rows[place]
        sources[place] = following
    return sources
