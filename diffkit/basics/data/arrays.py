"""Arrays: images or vectors in NumPy files, kept in memory or streamed, never unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from diffkit import Cond, Data, DataError, DataSpec, Part, Split

from .files import Resident, archive_note, damaged, fingerprint, fits_in_memory, locate, require
from .splits import HeldOut, check_held_out, check_labels, divide, in_memory_parts

Array = NDArray[Any]
Layout = Literal["auto", "channels-last", "channels-first"]
MAX_CHANNELS = 4
"""Length up to which `layout: auto` takes an axis for the channels."""
MAX_NPZ_BYTES = 8 << 30
"""Size of one member of an .npz file, which is read whole."""


@dataclass(frozen=True)
class Arrays(Data):
    """Examples from NumPy files; nothing is ever unpickled.

    `path`: an .npz file or a folder of .npy files, in which `images` and `labels` name the arrays; or one .npy file,
    without labels. Shapes: images (N, H, W, C), (N, C, H, W) or (N, H, W), vectors (N, D); `layout: auto` takes the
    one axis of at most 4 for the channels. The model reads uint8 scaled to [-1, 1], and floats unchanged;
    `bounded: true` declares that they lie in [-1, 1]. Labels are 0..K-1. `held_out`: a number of examples, or a
    fraction; `resident: auto` streams a .npy file above 1 GiB through `workers` processes.
    Raises DataError: DK301 missing, DK302 damaged, DK303 pickled, DK304 too few, DK305 labels, DK307 a value that is
    not finite or not bounded, DK308 shape or type.
    """

    path: str
    images: str = "images"
    labels: str | None = None
    layout: Layout = "auto"
    bounded: bool = False
    held_out: HeldOut = 0.1
    resident: Resident = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        if self.path.endswith(".npy") and self.labels is not None:
            raise ValueError("one .npy file holds no labels; give the folder that holds both files, or an .npz")
        if self.path.endswith(".npz") and self.resident == "never":
            raise ValueError("an .npz file cannot be streamed; save .npy files, or leave resident at auto")

    @cached_property
    def spec(self) -> DataSpec:
        channels, *size = to_channels_first(self._images[:1], self._layout, source=self._source).shape[1:]
        discrete = self._images.dtype == np.uint8
        classes = None if self._labels is None else int(self._labels.max()) + 1
        return DataSpec(channels, tuple(size), classes, self.bounded or discrete, bins=256 if discrete else None)

    def split(self, part: Part) -> Split:
        return self._parts[part]

    def fingerprint(self) -> str:
        if self._root.is_file():
            return fingerprint(self, self._root.parent, [self._root.name])
        return fingerprint(self, self._root, [f"{key}.npy" for key in (self.images, self.labels) if key])

    @cached_property
    def _root(self) -> Path:
        fix = "name an .npz file, a .npy file or a folder of .npy files: data.path"
        return require(locate(self.path), "the array data", fix)

    @property
    def _source(self) -> str:
        return f"{self._root}: {self.images}" if self._root.suffix != ".npy" else str(self._root)

    def _open(self, key: str) -> Array:
        if self._root.suffix == ".npz":
            return read_npz(self._root, key)
        if self._root.is_file():
            return open_npy(self._root)
        path = self._root / f"{key}.npy"
        if not path.is_file():
            raise DataError(
                f"{self._root} holds no {key}.npy",
                code="DK301",
                choices=sorted(file.stem for file in self._root.glob("*.npy")) or "none: the folder has no .npy file",
                fix="name the arrays: data.images and data.labels, without .npy",
                notes=archive_note(self._root),
            )
        return open_npy(path)

    @cached_property
    def _images(self) -> Array:
        images = self._open(self.images)
        if images.ndim and len(images) == 0:
            raise DataError(f"{self._source} holds no examples", code="DK304", fix="save at least two examples")
        return images

    @cached_property
    def _layout(self) -> Layout:
        return resolve_layout(self.layout, self._images.shape, self._source)

    @cached_property
    def _labels(self) -> Tensor | None:
        if self.labels is None:
            return None
        return check_labels(self._open(self.labels), len(self._images), None, f"{self._root}: {self.labels}")

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        layout, labels = self._layout, self._labels
        rows = divide([str(i) for i in range(len(self._images))], self.held_out)
        if self._root.suffix == ".npz" or fits_in_memory(self.resident, self._images.nbytes):
            x = to_channels_first(self._images, layout, source=self._source, bounded=self.bounded)
            return in_memory_parts(x, labels, rows)
        path = self._root if self._root.is_file() else self._root / f"{self.images}.npy"
        train, held_out = (self._stream(path, torch.as_tensor(part)) for part in rows)
        return {"train": train, "held-out": held_out}

    def _stream(self, path: Path, rows: Tensor) -> ArrayRows:
        labels = None if self._labels is None else self._labels[rows]
        return ArrayRows(path, rows, labels, self._layout, self.bounded)


@dataclass(frozen=True)
class ArrayRows(Split):
    """The examples at `rows`: (N,) long, of the .npy file `path`, which each process maps into its memory."""

    path: Path
    rows: Tensor
    labels: Tensor | None
    layout: Layout
    bounded: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        row = int(self.rows[index])
        source = f"{self.path}, example {row}"
        x = to_channels_first(self._array[row : row + 1], self.layout, source=source, bounded=self.bounded)[0]
        return x, {} if self.labels is None else {"label": self.labels[index]}

    @cached_property
    def _array(self) -> Array:
        return open_npy(self.path)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def resolve_layout(layout: Layout, shape: tuple[int, ...], source: object) -> Layout:
    """Find the layout of an array of images or vectors.

    Args:
        layout: the option; `auto` chooses by the shape.
        shape: shape of the whole array, examples first.
        source: the array, named in messages.

    Returns:
        "channels-last" or "channels-first"; `layout` itself for arrays of fewer than four dimensions.

    Raises:
        DataError: DK308, the shape holds no examples, or `auto` fits both layouts or neither.
    """
    if len(shape) < 2 or 0 in shape[1:]:
        raise DataError(
            f"{source}: shape {shape} holds no examples",
            code="DK308",
            fix="store vectors as (N, D), grey images as (N, H, W), colour images as (N, H, W, C)",
        )
    if len(shape) < 4 or layout != "auto":
        return layout
    last, first = shape[-1] <= MAX_CHANNELS, shape[1] <= MAX_CHANNELS
    if len(shape) > 4 or last == first:
        raise DataError(
            f"{source}: cannot decide which axis of shape {shape} holds the channels",
            code="DK308",
            choices=("channels-last", "channels-first"),
            fix="set data.layout",
        )
    return "channels-last" if last else "channels-first"


def to_channels_first(rows: Array, layout: Layout, *, source: object, bounded: bool = False) -> Tensor:
    """Convert rows of an array to examples.

    Args:
        rows: uint8 or floats, examples first.
        layout: the resolved layout.
        source: the array, named in messages.
        bounded: whether values outside [-1, 1] are an error.

    Returns:
        x: (N, C, *S), uint8, or float32 for floats.

    Raises:
        DataError: DK307, a value is not finite or not bounded; DK308, another type.
    """
    if rows.dtype != np.uint8 and not np.issubdtype(rows.dtype, np.floating):
        raise DataError(
            f"{source}: values are {rows.dtype}",
            code="DK308",
            choices="uint8 (0 to 255), float16, float32, float64",
            fix="convert them: array.astype('uint8') for images",
        )
    if rows.ndim == 3:
        rows = rows[:, None]
    elif rows.ndim > 3 and layout == "channels-last":
        rows = np.moveaxis(rows, -1, 1)
    x = torch.from_numpy(np.array(rows, dtype=np.uint8 if rows.dtype == np.uint8 else np.float32, order="C"))
    if x.is_floating_point():
        _check_values(x, source, bounded)
    return x


def _check_values(x: Tensor, source: object, bounded: bool) -> None:
    bad = ~torch.isfinite(x)
    wrong, fix = "is not finite", "remove or repair the examples that hold NaN or infinity (float16 ends at 65504)"
    if bounded and not bad.any():
        bad = x.abs() > 1
        wrong, fix = "lies outside [-1, 1]", "scale the values, or leave data.bounded at false"
    if bad.any():
        place = torch.nonzero(bad)[0].tolist()
        message = f"{source}: a value of example {place[0]} {wrong}: {float(x[tuple(place)])}"
        raise DataError(message, code="DK307", fix=fix)


def open_npy(path: Path) -> Array:
    """Map the array of a .npy file read-only. Raises DataError DK302 (damaged) or DK303 (pickled)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        shape, fortran, dtype = _read_header(file, path, size)
        offset = file.tell()
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def read_npz(path: Path, key: str) -> Array:
    """Read the array `key` of a .npz file. Raises DataError DK301 (no such array), DK302 (damaged), DK303 (pickled)."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if key not in members:
                raise DataError(f"{path} holds no array {key!r}", code="DK301", choices=sorted(members))
            size = members[key].file_size
            if size > MAX_NPZ_BYTES:
                fix = "save it with numpy.save as a .npy file, which is streamed"
                raise DataError(f"{path}: array {key!r} unpacks to {size} bytes", code="DK302", fix=fix)
            with archive.open(members[key]) as file:
                shape, fortran, dtype = _read_header(file, path, size)
                body = file.read(math.prod(shape) * dtype.itemsize)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged_npy(path, str(error)) from error
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes], path: Path, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and type of the array that follows in `file`, which holds `size` bytes in all."""
    start = file.read(npy.MAGIC_LEN)
    if start[:1] == b"\x80":
        raise _pickled(path)
    if start[:-2] != npy.MAGIC_PREFIX or start[-2:] not in (b"\x01\x00", b"\x02\x00"):
        raise _damaged_npy(path, "its first bytes are not those of a .npy file")
    read = npy.read_array_header_1_0 if start[-2] == 1 else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise _damaged_npy(path, str(error)) from error
    if dtype.hasobject:
        raise _pickled(path)
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
