"""Hugging Face data sets on disk: the Arrow files that `Dataset.save_to_disk` writes, mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from diffkit import ConditionSpec, DataError, DataSpec, FilePath, Part, Split

from ..extra import missing
from .files import FileData, damaged, fingerprint, locate, require
from .pictures import Color, PictureError, picture_size, without_warnings
from .shards import EncodedPictures, Packed, check_names
from .splits import HeldOut, check_held_out, divide

STATE, INFO, PARTS = "state.json", "dataset_info.json", "dataset_dict.json"
MAX_SIZES = 5
"""Sizes of pictures after which no more headers are read."""


def pyarrow() -> Any:
    """Return the module pyarrow. Raises PluginError DK290 if it is not installed."""
    try:
        import pyarrow.compute
    except ImportError as error:
        raise missing("pyarrow", "streams", "data huggingface") from error
    return pyarrow


@dataclass(frozen=True)
class HuggingFace(FileData):
    """Pictures of a data set that `save_to_disk` of Hugging Face `datasets` wrote: x (3, H, W), or (1, H, W) with
    `color: grey`. Its Arrow files are mapped, so that any number of examples needs the same memory, beside 30 to 50
    bytes for each. The package `datasets` is not needed.

    The column `image` holds encoded pictures. `path` is the folder of one `Dataset`, such as `flowers/train` of a
    `DatasetDict`.

    size        length to which the shorter side is scaled (Lanczos) before the centre is cropped to a square; without
                it all pictures must have equal sizes
    labels      condition `label`: the name of a column of classes (ClassLabel, whole numbers or texts)
    captions    condition `text`: the name of a column of texts
    classes     further classes: names of conditions, and their columns
    numbers     names of conditions, and a column of numbers or of vectors of one length
    held_out    a number of examples, or a fraction; a hash of the number of an example decides

    Raises DataError: DK301 missing, DK302 damaged, DK304 too few, DK306 unequal sizes, DK309 an unusable picture, DK317
    a column that does not fit.
    """

    path: FilePath
    image: str = "image"
    size: Annotated[int, Field(ge=1)] | None = None
    color: Color = "rgb"
    labels: str | None = None
    captions: str | None = None
    classes: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    held_out: HeldOut = 0.1
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        check_names(self.labels or False, self.captions or False, self.classes, self.numbers)

    @cached_property
    def spec(self) -> DataSpec:
        size = (self.size, self.size) if self.size is not None else self._common_size()
        described = {name: one.spec for name, one in self._conditions.items()}
        return DataSpec(3 if self.color == "rgb" else 1, size, bounded=True, bins=256, conditions=described)

    def fingerprint(self) -> str:
        return fingerprint(self, self._files.root, self._files.names)

    @cached_property
    def _files(self) -> ArrowFiles:
        return find_files(locate(self.path))

    @cached_property
    def _pictures(self) -> Any:
        """The column of pictures, checked to hold bytes."""
        column = self._column(self.image)
        fields = [one.name for one in column.type] if str(column.type).startswith("struct") else []
        if "bytes" not in fields and "binary" not in str(column.type):
            raise self._unfit(self.image, f"is {column.type}, not pictures", "name the column of pictures: data.image")
        return column

    def _common_size(self) -> tuple[int, int]:
        _ = self._pictures
        examples = ArrowExamples(torch.arange(0), (), None, self.color, {}, self._files, self.image)
        sizes: dict[tuple[int, int], int] = {}
        with without_warnings():
            for row in range(len(self._files.table)):
                sizes.setdefault(examples.opened(row, picture_size), row)
                if len(sizes) == MAX_SIZES:
                    break
        if len(sizes) > 1:
            raise DataError(
                f"the pictures of {self.path} have several sizes",
                code="DK306",
                fix="set data.size: each picture is scaled and cropped to this size",
                notes=[f"example {row}: {wide}x{high} (width x height)" for (high, wide), row in sizes.items()],
            )
        return next(iter(sizes))

    @cached_property
    def _conditions(self) -> Mapping[str, Packed]:
        found = {}
        for name, one in (({"label": self.labels} if self.labels else {}) | self.classes).items():
            found[name] = self._class(one)
        if self.captions:
            column = self._column(self.captions)
            if "string" not in str(column.type):
                raise self._unfit(self.captions, f"is {column.type}, not texts", "name a column of texts")
            length = pyarrow().compute.max(pyarrow().compute.binary_length(column)).as_py()
            found["text"] = Packed(ConditionSpec((max(1, length),), "text"), member=self.captions)
        for name, one in self.numbers.items():
            found[name] = self._number(one)
        return found

    def _class(self, name: str) -> Packed:
        column, names = self._column(name), self._files.class_names(name)
        if "int" not in str(column.type) and "string" not in str(column.type) and "bool" not in str(column.type):
            raise self._unfit(name, f"is {column.type}, not classes", "name a column of whole numbers or texts")
        if names:
            rows = torch.from_numpy(np.array(column.to_numpy(), dtype=np.int64))
            if int(rows.min()) < 0 or int(rows.max()) >= len(names):
                raise self._unfit(name, f"has a class outside 0 to {len(names) - 1}", "remove these examples")
            return Packed(ConditionSpec((), "long", len(names), names), rows)
        values, numbers = np.unique(column.to_numpy(), return_inverse=True)
        names = tuple(str(value).lower() if isinstance(value, np.bool_) else str(value) for value in values)
        return Packed(ConditionSpec((), "long", len(names), names), torch.from_numpy(numbers))

    def _number(self, name: str) -> Packed:
        column = self._column(name)
        kind, shape = column.type, tuple[int, ...]()
        if "list" in str(kind):
            lengths = pyarrow().compute.list_value_length(column).unique().to_pylist()
            if len(lengths) != 1:
                raise self._unfit(
                    name, f"has vectors of lengths {lengths[:5]}", "name a column of vectors of one length"
                )
            kind, shape, column = kind.value_type, (lengths[0],), pyarrow().compute.list_flatten(column)
        if not any(one in str(kind) for one in ("int", "float", "double")) or column.null_count:
            raise self._unfit(name, f"is {kind}, not numbers", "name a column of numbers")
        rows = torch.from_numpy(np.array(column.to_numpy(), dtype=np.float32)).reshape(-1, *shape)
        if not bool(torch.isfinite(rows).all()):
            raise self._unfit(name, "holds NaN or infinity", "remove or repair these examples")
        return Packed(ConditionSpec(shape), rows)

    def _column(self, name: str) -> Any:
        table = self._files.table
        if name not in table.column_names:
            message = f"{self.path} has no column {name!r}"
            raise DataError(message, code="DK317", choices=table.column_names, fix="name one of its columns")
        if (column := table.column(name)).null_count:
            raise self._unfit(name, f"lacks a value in {column.null_count} examples", "remove these examples")
        return column

    def _unfit(self, name: str, problem: str, fix: str) -> DataError:
        return DataError(f"{self.path}: column {name!r} {problem}", code="DK317", fix=fix)

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        rows = divide([str(row) for row in range(len(self._files.table))], self.held_out)
        train, held_out = (self._part(torch.tensor(part)) for part in rows)
        return {"train": train, "held-out": held_out}

    def _part(self, rows: Tensor) -> Split:
        _ = self._pictures
        return ArrowExamples(rows, self.spec.shape, self.size, self.color, self._conditions, self._files, self.image)

    @staticmethod
    def law_example(folder: Path) -> HuggingFace:
        """Write forty labelled pictures as `save_to_disk` does, and return the data set of them."""
        arrow, pictures = pyarrow(), []
        for i in range(40):
            x = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(x.numpy()).save(file := BytesIO(), "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        table = arrow.table({"image": pictures, "label": [i % 4 for i in range(40)]})
        with arrow.OSFile(str(folder / "data.arrow"), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / STATE).write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        return HuggingFace(str(folder), labels="label")


@dataclass(frozen=True)
class ArrowFiles:
    """The Arrow files of a data set in a folder, in order; each process maps them for itself."""

    root: Path
    names: tuple[str, ...]

    @cached_property
    def table(self) -> Any:
        """The mapped table of all files."""
        arrow, tables = pyarrow(), []
        for name in self.names:
            try:
                tables.append(arrow.ipc.open_stream(arrow.memory_map(str(self.root / name))).read_all())
            except (arrow.ArrowException, OSError) as error:
                raise damaged(self.root / name, str(error), "write the data set again: save_to_disk") from error
        table = arrow.concat_tables(tables)
        if len(table) < 2:
            raise DataError(f"{self.root} has {len(table)} examples", code="DK304", fix="save at least two examples")
        return table

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return the names of the classes of a column of type ClassLabel; empty for other columns."""
        file = self.root / INFO
        features = read_json(file).get("features") if file.is_file() else None
        column = features.get(name) if isinstance(features, dict) else None
        names = column.get("names") if isinstance(column, dict) else None
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}


def find_files(path: Path) -> ArrowFiles:
    """Find the Arrow files of a folder.

    Args:
        path: The folder that `save_to_disk` wrote.

    Returns:
        Its files.

    Raises:
        DataError: DK301, it is not such a folder; DK302, its state is damaged.
    """
    root = require(path, "the data set", "name the folder that save_to_disk wrote: data.path", folder=True)
    if not (root / STATE).is_file():
        parts = sorted(one.parent.name for one in root.glob(f"*/{STATE}"))
        message = f"{root} " + ("holds several parts" if parts else f"holds no {STATE}, which save_to_disk writes")
        fix = f"name one of them: data.path: {root / parts[0]}" if parts else "name the folder that save_to_disk wrote"
        raise DataError(message, code="DK301", choices=parts, fix=fix)
    files = read_json(root / STATE).get("_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in files] if isinstance(files, list) else []
    plain = [name for name in names if isinstance(name, str) and Path(name).name == name and (root / name).is_file()]
    if not names or plain != names:
        raise damaged(root / STATE, "it names no Arrow files, or files that are not there", "save the data set again")
    return ArrowFiles(root, tuple(plain))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError DK302 for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error), "save the data set again") from error
    if not isinstance(found, dict):
        raise damaged(path, "it is not a JSON object", "save the data set again")
    return found


@dataclass(frozen=True)
class ArrowExamples(EncodedPictures):
    """Examples of Arrow files, whose column `image` holds the pictures."""

    files: ArrowFiles
    image: str

    def encoded(self, row: int) -> bytes:
        value = self.files.table.column(self.image)[row].as_py()
        content: bytes | None = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise PictureError("the data set holds its path only; embed it: save_to_disk of datasets >= 2.4")
        return content

    def text(self, row: int, one: Packed) -> str:
        return str(self.files.table.column(one.member)[row].as_py())

    def unusable(self, row: int, reason: str) -> DataError:
        message = f"{self.files.root}: picture {row} cannot be used: {reason}"
        return DataError(message, code="DK309", fix="remove the example, and save the data set again")
