"""Columns: conditions of examples as lists of values, and the tables and text files that hold them.

Every value is checked before anything is computed: a fault is one error at its file and line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from diffkit import DataError, as_bytes
from diffkit.data import ConditionSpec
from diffkit.errors import Mark

Fault = Callable[[int, str, str], DataError]
"""Builds the error for a row: (row, problem, fix)."""
FILE_NAME = "file_name"
"""The column of the names of pictures, which Hugging Face's imagefolder has too."""
TABLES = ("metadata.jsonl", "metadata.csv")
"""Tables that are found beside pictures without being named."""
JSON_LINES = (".jsonl", ".ndjson")
CAPTION = ".txt"
CLASSES = ("a text", "a whole number", "true or false")
MAX_SHOWN = 40
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Column:
    """A condition of every example: its description, and its raw rows: (N, *spec.shape)."""

    spec: ConditionSpec
    rows: Tensor


@dataclass(frozen=True)
class Table:
    """The rows of a CSV, TSV or JSONL file, with the line number of each row."""

    file: Path
    rows: Sequence[Mapping[str, object]]
    lines: Sequence[int]

    def fault(self, row: int, problem: str, fix: str) -> DataError:
        """Build the error for a row.

        Args:
            row: Number of the row, from 0.
            problem: The fault.
            fix: The fix in the message.

        Returns:
            A DataError DK312 at the line of the row.
        """
        return DataError(problem, code="DK312", where=Mark(str(self.file), self.lines[row]), fix=fix)

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns, in the order of the file."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def column(self, name: str, rows: Sequence[int] | None = None) -> list[object]:
        """Return the values of a column.

        Args:
            name: Name of the column.
            rows: Numbers of the rows; None for all.

        Returns:
            One value for each row.

        Raises:
            DataError: DK312, there is no such column, or a row has no value in it.
        """
        if name not in self.names:
            message = f"{self.file} has no column {name!r}"
            fix = "name one of its columns" if name != FILE_NAME else f"rename the column of file names to {FILE_NAME}"
            raise DataError(message, code="DK312", choices=self.names, fix=fix)
        numbers = range(len(self.rows)) if rows is None else rows
        for row in numbers:
            if self.rows[row].get(name) is None:
                raise self.fault(row, f"the row has no value in column {name!r}", "add the value, or remove the row")
        return [self.rows[row][name] for row in numbers]

    def files(self, name: str, root: Path, rows: Sequence[int] | None = None) -> list[str]:
        """Return a column of names of files below `root`, with slashes.

        Args:
            name: Name of the column.
            root: The folder.
            rows: Numbers of the rows; None for all.

        Returns:
            One name for each row.

        Raises:
            DataError: DK312, a file is not there.
        """
        found = [str(value).replace("\\", "/").removeprefix("./") for value in self.column(name, rows)]
        for row, file in zip(range(len(self.rows)) if rows is None else rows, found, strict=True):
            if not (root / file).is_file():
                raise self.fault(row, f"{name} {file!r} is not there, below {root}", "correct or remove the row")
        return found

    def rows_of(self, pictures: Sequence[str], root: Path) -> list[int]:
        """Return the row of each picture.

        Args:
            pictures: Names relative to `root`.
            root: The folder of the pictures.

        Returns:
            Numbers of rows.

        Raises:
            DataError: DK312, a row has no picture, two rows have the same one, or a picture has no row.
        """
        known, found = set(pictures), dict[str, int]()
        for row, name in enumerate(self.files(FILE_NAME, root)):
            if name not in known:
                problem = f"{FILE_NAME} {name!r} is not one of the pictures below {root}"
                raise self.fault(row, problem, "remove the row, or see which files `images` reads")
            if name in found:
                first = f"line {self.lines[found[name]]}"
                raise self.fault(row, f"{name!r} has a row already, in {first}", "keep one row for each picture")
            found[name] = row
        if lacking := [name for name in pictures if name not in found]:
            raise without(lacking, "row", str(self.file), f"add a row with {FILE_NAME}: {lacking[0]}")
        return [found[name] for name in pictures]


def without(names: Sequence[str], what: str, source: str, fix: str) -> DataError:
    """Build the error for pictures without a row, a caption or a partner.

    Args:
        names: The pictures.
        what: What they lack.
        source: The file or folder that should have it.
        fix: The fix in the message.

    Returns:
        A DataError DK312.
    """
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return DataError(f"{source}: no {what} for picture {names[0]}{more}", code="DK312", fix=f"{fix}, or remove it")


def find_table(path: Path | None, root: Path) -> Table:
    """Read a table, or the one in `root` if `path` is None. Raises DataError DK301 (missing) or DK312."""
    if path is None:
        beside = [root / name for name in TABLES if (root / name).is_file()]
        if len(beside) != 1:
            problem = f"{root} holds no table" if not beside else f"{root} holds {len(beside)} tables"
            choices, fix = f"{' or '.join(TABLES)} in the folder", "name the file: data.table"
            raise DataError(problem, code="DK301", choices=choices, fix=fix)
        path = beside[0]
    elif not path.is_file():
        raise DataError(f"table not found: {path}", code="DK301", fix="name a .csv, .tsv or .jsonl file: data.table")
    read = _jsonl if path.suffix.lower() in JSON_LINES else _csv
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            numbered = list(read(path, file))
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        message = f"{path} cannot be read: {error}"
        raise DataError(message, code="DK312", fix="save it as UTF-8, a CSV, TSV or JSONL file") from error
    if not numbered:
        raise DataError(f"{path} holds no rows", code="DK312", fix="add a row for each picture")
    return Table(path, [row for _, row in numbered], [line for line, _ in numbered])


Numbered = Iterator[tuple[int, dict[str, object]]]


def _jsonl(path: Path, lines: Iterator[str]) -> Numbered:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem, fix = f"the line is not JSON: {error}", "write one JSON object on each line"
            raise Table(path, (), [number]).fault(0, problem, fix) from error
        if not isinstance(row, dict):
            problem = f"the line is {_kind(row)}, not an object"
            raise Table(path, (), [number]).fault(0, problem, 'write {"file_name": "a.png", ...} on each line')
        yield number, row


def _csv(path: Path, lines: Iterator[str]) -> Numbered:
    reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    names = next(reader, [])
    if twice := [name for name in names if names.count(name) > 1]:
        problem = f"the column {twice[0]!r} appears twice"
        raise Table(path, (), [1]).fault(0, problem, "give each column a name of its own")
    start = reader.line_num + 1
    for cells in reader:
        if cells:
            if len(cells) != len(names):
                problem = f"the row has {len(cells)} values for {len(names)} columns"
                raise Table(path, (), [start]).fault(0, problem, 'quote a text that contains a comma: "a hat, red"')
            yield start, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        start = reader.line_num + 1


def as_classes(values: Sequence[object], fault: Fault, what: str) -> Column:
    """Number the classes of a column, sorted: texts, whole numbers, or true and false.

    Args:
        values: One value for each example.
        fault: Builds the error for a row.
        what: The column, for messages.

    Returns:
        The condition, with the names of its classes.

    Raises:
        DataError: A value is of another type than the first.
    """
    kind = _kind(values[0])
    for row, value in enumerate(values):
        told = f"{what}: {value!r:.{MAX_SHOWN}} is {_kind(value)}"
        if _kind(value) != kind:
            problem = f"{told}, but the first value, {values[0]!r:.{MAX_SHOWN}}, is {kind}"
            raise fault(row, problem, "write every class as a text, or every class as a whole number")
        if kind not in CLASSES:
            raise fault(row, f"{told}, which is not a class", "write each class as a text or a whole number")
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    numeric = all(text.removeprefix("-").isdecimal() for text in set(texts))
    names = sorted(set(texts), key=int if numeric else str)
    number = {name: index for index, name in enumerate(names)}
    rows = torch.tensor([number[text] for text in texts])
    return Column(ConditionSpec((), "long", len(names), tuple(names)), rows)


def as_numbers(columns: Sequence[Sequence[object]], fault: Fault, names: Sequence[str], texts: bool = False) -> Column:
    """Convert columns of numbers to one condition: a number of one column, a vector of several.

    Args:
        columns: The values of each column, one for each example.
        fault: Builds the error for a row.
        names: The columns, for messages.
        texts: Whether the numbers are written as texts, as in CSV files.

    Returns:
        The condition, float32.

    Raises:
        DataError: A value is not a finite number.
    """
    rows = torch.empty(len(columns[0]), len(columns))
    for at, (name, values) in enumerate(zip(names, columns, strict=True)):
        for row, value in enumerate(values):
            number = _number(value, texts)
            if number is None:
                problem = f"column {name!r}: {value!r:.{MAX_SHOWN}} is not a number"
                raise fault(row, problem, "write a number, or use the column for classes or captions")
            if not abs(number) <= LARGEST:
                problem = f"column {name!r}: {value!r:.{MAX_SHOWN}} is not finite, or too large"
                raise fault(row, problem, f"write a number up to {LARGEST:.1g}")
            rows[row, at] = number
    return Column(ConditionSpec((len(columns),)), rows) if len(columns) > 1 else Column(ConditionSpec(), rows[:, 0])


def as_captions(values: Sequence[object], fault: Fault, what: str) -> Column:
    """Convert texts to a condition of dtype text, as long as the longest.

    Args:
        values: One text for each example.
        fault: Builds the error for a row.
        what: The column, for messages.

    Returns:
        The condition.

    Raises:
        DataError: A value is not a text, or contains a null character.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) or "\0" in value:
            told = _kind(value) if not isinstance(value, str) else "a text with a null character"
            raise fault(
                row, f"{what}: {value!r:.{MAX_SHOWN}} is {told}, not a caption", "write one text for each picture"
            )
    texts = [str(value) for value in values]
    length = max(1, *(len(text.encode("utf-8", "replace")) for text in texts))
    return Column(ConditionSpec((length,), "text"), as_bytes(texts, length))


def caption_files(pictures: Sequence[str], root: Path, texts: Sequence[str]) -> Column:
    """Read the caption of each picture from the .txt file beside it.

    Args:
        pictures: Names relative to `root`.
        root: The folder of the pictures.
        texts: Names of all .txt files below it.

    Returns:
        The condition.

    Raises:
        DataError: DK312, a picture has no caption, a caption no picture, or a file is not UTF-8.
    """
    wanted = {name: str(Path(name).with_suffix(CAPTION).as_posix()) for name in pictures}
    stems = list(wanted.values())
    if (
        twice := [name for name, text in wanted.items() if stems.count(text) > 1]
        if len(set(stems)) < len(stems)
        else []
    ):
        problem = f"{root}: {twice[0]} and {twice[1]} share the caption {wanted[twice[0]]}"
        raise DataError(problem, code="DK312", fix="rename one of them and its caption")
    if lacking := sorted(set(wanted) - {name for name, text in wanted.items() if text in set(texts)}):
        raise without(lacking, "caption", str(root), f"write {wanted[lacking[0]]}")
    if lonely := sorted(set(texts) - set(stems)):
        more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
        problem = f"{root}: no picture for caption {lonely[0]}{more}"
        raise DataError(problem, code="DK312", fix="rename it as its picture, or remove it")
    captions: list[object] = []
    for text in stems:
        try:
            captions.append((root / text).read_text(encoding="utf-8-sig").strip())
        except (UnicodeDecodeError, OSError) as error:
            message = f"{root / text} cannot be read: {error}"
            raise DataError(message, code="DK312", fix="save it as UTF-8 text") from error
    return as_captions(captions, lambda row, problem, fix: _of_file(root / stems[row], problem, fix), "caption")


def _of_file(path: Path, problem: str, fix: str) -> DataError:
    return DataError(problem, code="DK312", where=Mark(str(path), 1), fix=fix)


def digest(columns: Mapping[str, Column]) -> str:
    """Return a text that changes when a condition changes; empty without conditions."""
    found = sha256()
    for name, column in sorted(columns.items()):
        found.update(f"{name}={column.spec!r}\0".encode())
        found.update(column.rows.numpy().tobytes())
    return found.hexdigest() if columns else ""


def _number(value: object, texts: bool) -> float | None:
    """Return a number, or a number that is written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str if texts else int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _kind(value: object) -> str:
    """Return what a value is, for messages."""
    if value is None:
        return "no value"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")
