"""Arrays: images or vectors in NumPy files, kept in memory or streamed, never unpickled."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diffkit import Cond, ConditionSpec, DataError, DataSpec, FilePath, InMemorySplit, Part, Split, plain

from . import files
from .array_conditions import ConditionRows, check_condition, condition_rows
from .files import FileData, Resident, archive_note, damaged, fingerprint, fits_in_memory, locate, require
from .splits import HeldOut, check_held_out, check_label_type, check_labels, divide

Array = NDArray[Any]
Layout = Literal["auto", "channels-last", "channels-first"]
Check = Callable[[tuple[int, ...], np.dtype[Any]], None]
"""Raises unless an array of this shape and type is wanted; called before the array is read."""
MAX_CHANNELS = 4
"""Length up to which `layout: auto` takes an axis for the channels."""
MAX_RATIO, MAX_RATIO_BYTES = 200, 64 << 20
"""An array in an .npz file that is larger must not unpack to more than `MAX_RATIO` times its packed size."""
MAX_LISTED = 20
"""Names of arrays that an error lists."""
CHUNK_BYTES = 16 << 20
"""Size of the piece of an array that is converted at a time."""
MAX_EXAMINED_BYTES = 1 << 28
"""Size up to which the fix for an unsupported type is computed from all values."""


@dataclass(frozen=True)
class Arrays(FileData):
    """Examples from NumPy files; nothing is ever unpickled.

    `path`: an .npz file or a folder of .npy files, in which `images` and `labels` name the arrays; or one .npy file,
    without labels. Shapes: images (N, H, W, C), (N, C, H, W) or (N, H, W), vectors (N, D); `layout: auto` takes the
    one axis of at most 4 for the channels, and (N, H, W) for grey images. With a `layout`, arrays of three axes are
    series: (N, L, C) or (N, C, L). The model reads uint8 scaled to [-1, 1], and floats unchanged; `bounded: true`
    declares that they lie in [-1, 1]. Labels are 0..K-1. `conditions` maps names of further conditions to arrays:
    integers (N,) are classes, floats numbers, texts (N,) texts, and arrays with the axes of the examples, or all but
    that of the channels, are pictures, series or volumes in the layout of the examples. `held_out`: a number of
    examples, or a fraction. `resident: auto` streams .npy files above 1 GiB through `workers` processes, and refuses an
    .npz file that unpacks to more; `always` reads both into memory.
    Raises DataError: DK301 missing, DK302 damaged, DK303 pickled, DK304 too few, DK305 conditions, DK307 a value that
    is not finite or not bounded, DK308 shape or type.
    """

    path: FilePath
    images: str = "images"
    labels: str | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    layout: Layout = "auto"
    bounded: bool = False
    held_out: HeldOut = 0.1
    resident: Resident = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        if self.path.endswith(".npy") and (self.labels is not None or self.conditions):
            option = "labels" if self.labels is not None else "conditions"
            raise ValueError(f"one .npy file holds no {option}; give the folder that holds both files, or an .npz")
        if self.labels is not None and "label" in self.conditions:
            raise ValueError("two options state the condition label: labels and conditions")
        if self.path.endswith(".npz") and self.resident == "never":
            raise ValueError("an .npz file cannot be streamed; save .npy files, or leave resident at auto")

    @cached_property
    def spec(self) -> DataSpec:
        channels, *size = to_channels_first(self._images[:1], self._layout, source=self._source).shape[1:]
        discrete = self._images.dtype == np.uint8
        described = {name: rows.spec for name, rows in self._conditions.items()}
        bins = 256 if discrete else None
        return DataSpec(channels, tuple(size), bounded=self.bounded or discrete, bins=bins, conditions=described)

    def fingerprint(self) -> str:
        if self._root.is_file():
            own = fingerprint(self, self._root.parent, [self._root.name])
        else:
            own = fingerprint(self, self._root, [f"{key}.npy" for key in self._keys])
        return f"{own}:{self.conditions}" if self.conditions else own

    @cached_property
    def _root(self) -> Path:
        fix = "name an .npz file, a .npy file or a folder of .npy files: data.path"
        return require(locate(self.path), "the array data", fix)

    @property
    def _keys(self) -> list[str]:
        """Names of the arrays that are read."""
        return list(dict.fromkeys([self.images, *([self.labels] if self.labels else []), *self.conditions.values()]))

    @property
    def _source(self) -> str:
        return f"{self._root}: {self.images}" if self._root.suffix != ".npy" else str(self._root)

    @property
    def _unused(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        if self._root.is_file() and self._root.suffix != ".npz":
            return {}, {}
        names = npz_names(self._root) if self._root.is_file() else [file.stem for file in self._root.glob("*.npy")]
        return {}, {f"array {name!r}": 1 for name in names if name not in self._keys}

    def _open(self, key: str, check: Check) -> Array:
        if self._root.is_file():
            limit = None if self.resident == "always" else files.MAX_RESIDENT_BYTES
            return read_npz(self._root, key, check, limit) if self._packed else open_npy(self._root, check)
        path = self._root / f"{key}.npy"
        if not path.is_file():
            raise DataError(
                f"{self._root} holds no {key}.npy" + (" that is a regular file" if path.exists() else ""),
                code="DK301",
                choices=sorted(file.stem for file in self._root.glob("*.npy")) or "none: the folder has no .npy file",
                fix="name the arrays: data.images, data.labels and data.conditions, without .npy",
                notes=archive_note(self._root),
            )
        return open_npy(path, check)

    @property
    def _packed(self) -> bool:
        return self._root.suffix == ".npz"

    @cached_property
    def _images(self) -> Array:
        images = self._open(self.images, partial(check_examples, source=self._source))
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            choices = "uint8 (0 to 255), float16, float32, float64"
            message, fix = f"{self._source}: values are {images.dtype}", f"convert them: {conversion(images)}"
            raise DataError(message, code="DK308", choices=choices, fix=fix)
        return images

    @cached_property
    def _layout(self) -> Layout:
        return resolve_layout(self.layout, self._images.shape, self._source)

    @cached_property
    def _conditions(self) -> dict[str, ConditionRows]:
        """The conditions of all examples."""
        count, found = len(self._images), dict[str, ConditionRows]()
        if self.labels is not None:
            source = f"{self._root}: {self.labels}"
            labels = self._open(self.labels, partial(check_label_type, count=count, source=source))
            classes = check_labels(labels, count, None, source)
            found["label"] = ConditionRows(ConditionSpec((), "long", int(classes.max()) + 1), classes)
        for name, key in self.conditions.items():
            source = f"{self._root}: {key}"
            array = self._open(key, partial(check_condition, count=count, source=source))
            layout = self._layout if array.ndim == self._images.ndim else "auto"
            found[name] = condition_rows(array, self._images.ndim, partial(to_pictures, layout, source), source)
        return found

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        train, held_out = divide([str(i) for i in range(len(self._images))], self.held_out)
        size = self._images.nbytes + sum(rows.nbytes for rows in self._conditions.values())
        make = self._in_memory if self._packed or fits_in_memory(self.resident, size) else self._stream
        return {"train": make(torch.as_tensor(train)), "held-out": make(torch.as_tensor(held_out))}

    def _in_memory(self, rows: Tensor) -> Split:
        """Convert the examples at `rows` piece by piece, so that no second copy of them is needed."""
        at = rows.numpy()
        size = max(1, CHUNK_BYTES // max(1, self._images[:1].nbytes))
        x: Tensor | None = None
        for start in range(0, len(at), size):
            part = at[start : start + size]
            piece = to_channels_first(
                self._images[part], self._layout, source=self._source, bounded=self.bounded, numbers=part
            )
            x = piece.new_empty((len(at), *piece.shape[1:])) if x is None else x
            x[start : start + size] = piece
        assert x is not None
        return InMemorySplit(x, {name: condition(at) for name, condition in self._conditions.items()})

    def _stream(self, rows: Tensor) -> Split:
        path = self._root if self._root.is_file() else self._root / f"{self.images}.npy"
        return ArrayRows(path, rows, self._conditions, self._layout, self.bounded)


@dataclass(frozen=True)
class ArrayRows(Split):
    """The examples at `rows`: (N,) long, of the .npy file `path`, which each process maps into its memory."""

    path: Path
    rows: Tensor
    conditions: Mapping[str, ConditionRows]
    layout: Layout
    bounded: bool

    @property
    def labels(self) -> Tensor | None:
        """The class of each example, None without classes."""
        return self.conditions["label"](self.rows.numpy()) if "label" in self.conditions else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        row = int(self.rows[index])
        part = self._array[row : row + 1]
        x = to_channels_first(part, self.layout, source=self.path, bounded=self.bounded, numbers=[row])[0]
        return x, {name: condition([row])[0] for name, condition in self.conditions.items()}

    @cached_property
    def _array(self) -> Array:
        return open_npy(self.path, partial(check_examples, source=self.path))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def resolve_layout(layout: Layout, shape: tuple[int, ...], source: object) -> Layout:
    """Find the layout of an array of images, series or vectors.

    Args:
        layout: the option; `auto` chooses by the shape.
        shape: shape of the whole array, examples first.
        source: the array, named in messages.

    Returns:
        "channels-last" or "channels-first"; `layout` itself for arrays of fewer than four dimensions.

    Raises:
        DataError: DK308, `auto` fits both layouts or neither.
    """
    if len(shape) < 3 or layout != "auto":
        return layout
    last, first = shape[-1] <= MAX_CHANNELS, shape[1] <= MAX_CHANNELS
    if len(shape) == 3:
        if last != first:
            message = f"{source}: shape {shape} is read as grey images of {shape[1]}x{shape[2]} pixels; set data.layout"
            warnings.warn(plain(f"{message} for series, or store grey images as (N, H, W, 1)"), stacklevel=2)
        return layout
    if len(shape) > 4 or last == first:
        raise DataError(
            f"{source}: cannot decide which axis of shape {shape} holds the channels",
            code="DK308",
            choices=("channels-last", "channels-first"),
            fix="set data.layout",
        )
    return "channels-last" if last else "channels-first"


def to_pictures(layout: Layout, source: str, rows: Array, numbers: Sequence[int] | Array) -> Tensor:
    """Convert rows of a condition as those of the examples; without an axis of channels they have one channel.

    Args:
        layout: the resolved layout; `auto` for rows without an axis of channels.
        source: the array, named in messages.
        rows: uint8 or floats, examples first.
        numbers: the number of each row.

    Returns:
        (N, C, *S).
    """
    return to_channels_first(rows[:, None] if layout == "auto" else rows, layout, source=source, numbers=numbers)


def to_channels_first(
    rows: Array, layout: Layout, *, source: object, bounded: bool = False, numbers: Sequence[int] | Array = ()
) -> Tensor:
    """Convert rows of an array to examples.

    Args:
        rows: uint8 or floats, examples first.
        layout: the resolved layout.
        source: the array, named in messages.
        bounded: whether values outside [-1, 1] are an error.
        numbers: the number of each row, for messages; default 0, 1, ...

    Returns:
        x: (N, C, *S), uint8, or float32 for floats.

    Raises:
        DataError: DK307, a value is not finite or not bounded.
    """
    if rows.ndim == 3 and layout == "auto":
        rows = rows[:, None]
    elif rows.ndim > 2 and layout == "channels-last":
        rows = np.moveaxis(rows, -1, 1)
    with np.errstate(over="ignore"):  # a value that float32 cannot hold becomes infinite, which is an error below
        x = torch.from_numpy(np.array(rows, dtype=np.uint8 if rows.dtype == np.uint8 else np.float32, order="C"))
    if x.is_floating_point():
        bad = ~torch.isfinite(x)
        wrong, fix = "is not finite", "remove or repair the examples that hold NaN or infinity (float16 ends at 65504)"
        if bounded and not bad.any():
            bad = x.abs() > 1
            wrong, fix = "lies outside [-1, 1]", "scale the values, or leave data.bounded at false"
        if bad.any():
            place = torch.nonzero(bad)[0].tolist()
            number = numbers[place[0]] if len(numbers) else place[0]
            message = f"{source}: a value of example {number} {wrong}: {float(x[tuple(place)])}"
            raise DataError(message, code="DK307", fix=fix)
    return x


def check_examples(shape: tuple[int, ...], dtype: np.dtype[Any], source: object) -> None:
    """Check that an array can hold examples, before it is read.

    Args:
        shape: Shape in the header of the array.
        dtype: Type in the header.
        source: File and member, for messages.

    Raises:
        DataError: The array has no example (DK304), or cannot hold examples (DK308).
    """
    if len(shape) < 2 or 0 in shape[1:]:
        fix = "store vectors as (N, D), grey images as (N, H, W), colour images as (N, H, W, C)"
        if len(shape) == 1 and dtype.names:
            fix = "store plain numbers: numpy.stack([array[name] for name in array.dtype.names], axis=-1)"
        raise DataError(f"{source}: shape {shape} holds no examples", code="DK308", fix=fix)
    if shape[0] == 0:
        raise DataError(f"{source} holds no examples", code="DK304", fix="save at least two examples")
    if dtype.kind not in "buifc":
        fix = "store plain numbers" + (": array.astype('float32')" if dtype.kind in "USmM" else "")
        if dtype.names:
            fix += ": numpy.stack([array[name] for name in array.dtype.names], axis=-1)"
        raise DataError(f"{source}: values must be plain numbers, got {dtype}", code="DK308", fix=fix)


def conversion(array: Array) -> str:
    """Return an expression that converts a numeric `array` to uint8 or float32 and keeps its contrast."""
    if array.dtype.kind == "c":
        join = "stack" if array.ndim == 3 else "concatenate"
        axis = -1 if array.ndim > 3 and array.shape[-1] <= MAX_CHANNELS else 1
        return f"numpy.{join}([array.real, array.imag], axis={axis}).astype('float32')"
    if array.dtype.kind == "b":
        return "array.astype('uint8') * 255"
    info = np.iinfo(array.dtype)
    low, high = info.min, info.max
    if array.nbytes <= MAX_EXAMINED_BYTES:
        low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= 255:
        return "array.astype('uint8')"
    bits = 2 * math.ceil(high.bit_length() / 2)  # sensors give 10, 12, 14 or 16
    least, most = (0, 2**bits - 1) if low >= 0 else (low, max(high, low + 1))
    return f"((array.astype('float64') - {least}) * {2 / (most - least)!r} - 1).astype('float32')"


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays of a .npz file. Raises DataError DK302 if it is damaged."""
    with _opened(path) as archive:
        return sorted(info.filename.removesuffix(".npy") for info in archive.infolist())


def open_npy(path: Path, check: Check) -> Array:
    """Map the array of a .npy file read-only. Raises DataError DK302 (damaged), DK303 (pickled), and as `check`."""
    with path.open("rb") as file:
        shape, fortran, dtype = _read_header(file, path, path.stat().st_size, check)
        offset = file.tell()
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def read_npz(path: Path, key: str, check: Check, limit: int | None) -> Array:
    """Read an array of a .npz file.

    Args:
        path: the file.
        key: the name of the array.
        check: raises unless the array has the wanted shape and type.
        limit: largest size of the array in bytes; None for any.

    Returns:
        The array.

    Raises:
        DataError: DK301 (no such array), DK302 (damaged or too large), DK303 (pickled), and as `check`.
    """
    with _opened(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if key not in members:
            fix = "name the arrays: data.images, data.labels and data.conditions"
            names = ", ".join(map(repr, sorted(members)[:MAX_LISTED])) or "none: the file is empty"
            raise DataError(f"{path} holds no array {key!r}", code="DK301", choices=names, fix=fix)
        member = members[key]
        size = member.file_size
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _damaged_npy(path, f"array {key!r} is compressed by a method that NumPy does not use")
        with archive.open(member) as file:
            shape, fortran, dtype = _read_header(file, path, size, check)
            if limit is not None and size > limit:
                fix = "save it with numpy.save as a .npy file, which is streamed, or set data.resident: always"
                raise DataError(f"{path}: array {key!r} unpacks to {size} bytes, above {limit}", code="DK302", fix=fix)
            if size > max(MAX_RATIO_BYTES, MAX_RATIO * member.compress_size):
                fix = "save it without compression: numpy.savez, or numpy.save"
                message = f"{path}: array {key!r} unpacks to {size} bytes from {member.compress_size}"
                raise DataError(message, code="DK302", fix=fix)
            body = file.read(math.prod(shape) * dtype.itemsize)
        if len(body) != math.prod(shape) * dtype.itemsize:
            raise _damaged_npy(path, f"array {key!r} ends early")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .npz file; turn every failure inside but a DataError into a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except Exception as error:
        raise _damaged_npy(path, str(error) or type(error).__name__) from error


def _read_header(file: IO[bytes], path: Path, size: int, check: Check) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and type of the array that follows in `file`, which holds `size` bytes in all."""
    start = file.read(npy.MAGIC_LEN)
    if start[:1] == b"\x80":
        raise _pickled(path)
    if start[:-2] != npy.MAGIC_PREFIX or start[-2:] not in (b"\x01\x00", b"\x02\x00"):
        raise _damaged_npy(path, "its first bytes are not those of a .npy file")
    read = npy.read_array_header_1_0 if start[-2] == 1 else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except Exception as error:  # it is Python text, which NumPy parses: many kinds of errors
        raise _damaged_npy(path, f"its header cannot be read: {error}") from error
    if dtype.hasobject:
        raise _pickled(path)
    if any(length < 0 or isinstance(length, bool) for length in shape):
        raise _damaged_npy(path, f"the header declares the shape {shape}")
    check(shape, dtype)
    expected = math.prod(shape) * dtype.itemsize
    if expected > size - file.tell():
        raise _damaged_npy(path, f"the header declares {expected} bytes, the file holds {size - file.tell()}")
    return shape, fortran, dtype


def _damaged_npy(path: Path, reason: str) -> DataError:
    return damaged(path, reason, "write the file again with numpy.save or savez")


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is pickled: reading it would run code",
        code="DK303",
        fix="save plain arrays of one numeric type, not lists of objects: numpy.save(file, array, allow_pickle=False)",
    )
