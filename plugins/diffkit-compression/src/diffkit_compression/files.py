"""The files of an archive: PNG pictures and .npy arrays of whole numbers, read and written without loss."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffkit import Data, DataSpec, Part, UsageError, plain
from diffkit.data import stack

from .archive import MAX_NUMBERS, Entry

SUFFIXES = (".png", ".npy")
MODES = {1: "L", 3: "RGB"}


def read_files(paths: Iterable[Path], spec: DataSpec) -> tuple[list[Entry], Tensor]:
    """Read pictures and arrays.

    Args:
        paths: Files, and folders, whose files are read in the order of their names, sub-folders included.
        spec: Shape and values of the data.

    Returns:
        The files, and their examples as whole numbers: (N, C, *S) int64.

    Raises:
        UsageError: DK350, a file does not fit the data.
    """
    found = [pair for path in paths for pair in _listed(path)]
    if doubled := [name for name, times in Counter(name for name, _ in found).items() if times > 1]:
        raise refuse(doubled[0], "two files have this name", "pass the folder that contains both")
    if not found:
        raise refuse("the archive", "there is no file to compress", "name PNG files, .npy files, or folders of them")
    read = [_read(name, path, spec) for name, path in found]
    return [entry for entry, _ in read], torch.cat([values for _, values in read])


def read_part(data: Data, part: Part, count: int | None = None) -> tuple[list[Entry], Tensor]:
    """Read examples of the data of a run, as one array.

    Args:
        data: The data.
        part: "train" or "held-out".
        count: Number of examples, the first ones; default all.

    Returns:
        One file PART.npy, and the examples: (N, C, *S) int64.
    """
    split = data.split(part)
    values, _ = stack(split, range(min(len(split), count or len(split))))
    if values.is_floating_point():
        values = data.to_storage(values)
    dtype = "|u1" if (data.spec.bins or 0) <= 256 else "<i4"
    return [Entry(name=f"{part}.npy", shape=tuple(values.shape), dtype=dtype)], values.cpu().long()


def write_files(folder: Path, entries: Sequence[Entry], values: Tensor, spec: DataSpec) -> None:
    """Write the files of an archive into a new folder, all or none.

    Args:
        folder: A path that does not exist, or an empty folder.
        entries: The files.
        values: Their examples: (N, C, *S).
        spec: Shape and values of the data.

    Raises:
        UsageError: DK353, the folder holds files.
    """
    require_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex}")
    try:
        start = 0
        for entry in entries:
            path = work / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, entry, values[start : start + entry.count].numpy(), spec)
            start += entry.count
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_new(folder: Path) -> None:
    """Raise UsageError DK353 if the folder exists and is not empty."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", code="DK353", fix="name a new folder; nothing is replaced")


def refuse(name: object, reason: str, fix: str) -> UsageError:
    """Build the error for a file that cannot be compressed.

    Args:
        name: The file.
        reason: The fault.
        fix: The fix in the message.

    Returns:
        A UsageError DK350, for the caller to raise.
    """
    return UsageError(f"{name} cannot be compressed: {reason}", code="DK350", fix=fix)


def _listed(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    files = sorted((one.relative_to(path).as_posix(), one) for one in path.rglob("*") if one.is_file())
    chosen = [(name, one) for name, one in files if one.suffix.lower() in SUFFIXES]
    if left := len(files) - len(chosen):
        warnings.warn(plain(f"{left} files in {path} are neither .png nor .npy, and are left out"), stacklevel=2)
    return chosen


def _read(name: str, path: Path, spec: DataSpec) -> tuple[Entry, Tensor]:
    if path.suffix.lower() == ".npy":
        return _read_array(name, path, spec)
    if path.suffix.lower() == ".png":
        return Entry(name=name), _read_picture(path, spec)
    raise refuse(path, "it is neither a PNG picture nor a .npy array", "convert it to PNG, which keeps all pixels")


def _read_picture(path: Path, spec: DataSpec) -> Tensor:
    mode = MODES.get(spec.channels)
    if mode is None or len(spec.size) != 2:
        raise refuse(path, "the model has no pictures of 1 or 3 channels", "pass the examples as a .npy array")
    height, width = spec.size
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode != mode or "transparency" in image.info:
                fix = f"convert it: Image.open(path).convert({mode!r}).save(path)"
                raise refuse(path, f"its mode is {image.mode}, and the model has {mode}", fix)
            if image.size != (width, height):
                reason = f"it has {image.width}x{image.height} pixels, and the model {width}x{height} (width x height)"
                raise refuse(path, reason, "crop or scale it, or choose a model of this size")
            pixels = np.asarray(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, EOFError, ValueError) as error:
        raise refuse(path, "it is not a valid PNG file", "repair it, or leave it out") from error
    shown = grey_values(spec)
    index = np.full(256, -1)
    index[shown] = np.arange(len(shown))
    values = index[pixels]
    if values.min() < 0:
        listed = ", ".join(str(one) for one in shown[:4])
        reason = f"it has a pixel of value {pixels[values < 0][0]}, and the {len(shown)} values are {listed}, ..."
        raise refuse(path, reason, "pass pictures of the data of this model, or an array of raw values")
    rows = values[None, None] if values.ndim == 2 else np.moveaxis(values, -1, 0)[None]
    return torch.from_numpy(np.ascontiguousarray(rows)).long()


def grey_values(spec: DataSpec) -> NDArray[np.int64]:
    """Return the pixel values that stand for 0, ..., bins - 1 in a picture: round(255 k / (bins - 1))."""
    if spec.bins is None or spec.bins > 256:
        raise refuse("a picture", "the model has more than 256 values", "pass the examples as a .npy array")
    return np.rint(np.arange(spec.bins) * 255 / (spec.bins - 1)).astype(np.int64)


def _read_array(name: str, path: Path, spec: DataSpec) -> tuple[Entry, Tensor]:
    fix = f"save raw values: an array (N, {', '.join(map(str, spec.shape))}) of integers 0 to {(spec.bins or 0) - 1}"
    try:
        with open(path, "rb") as stream:
            shape, fortran, dtype = _array_header(stream)
            if dtype.kind not in "iu" or len(shape) < 2 or fortran or 0 in shape:
                raise refuse(path, f"it holds {dtype} of shape {shape}", fix)
            if shape[1:] not in _layouts(spec):
                raise refuse(path, f"its shape is {shape}, and an example of the model has {spec.shape}", fix)
            if int(np.prod(shape, dtype=object)) > MAX_NUMBERS:
                raise refuse(path, "it is too large", "divide it into several archives")
            array = np.fromfile(stream, dtype, int(np.prod(shape)))
    except ValueError as error:
        raise refuse(path, "it is not a valid .npy file", fix) from error
    if array.size != int(np.prod(shape)):
        raise refuse(path, "it is cut off", fix)
    if int(array.min()) < 0 or int(array.max()) >= (spec.bins or 0):
        raise refuse(path, f"its values are {array.min()} to {array.max()}", fix)
    values = torch.from_numpy(_channels_first(array.reshape(shape).astype(np.int64), spec))
    return Entry.model_validate({"name": name, "shape": shape, "dtype": dtype.newbyteorder("<").str}), values


def _array_header(stream: object) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(stream)  # type: ignore[arg-type]
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(stream)  # type: ignore[arg-type]


def _layouts(spec: DataSpec) -> list[tuple[int, ...]]:
    """Return the shapes of an example in an array: channels first, channels last, and without an axis of 1 channel."""
    without = [spec.size] if spec.channels == 1 and spec.size else []
    return [spec.shape, (*spec.size, spec.channels), *without]


def _channels_first(array: NDArray[np.int64], spec: DataSpec) -> NDArray[np.int64]:
    if array.shape[1:] == (*spec.size, spec.channels) != spec.shape:
        array = np.moveaxis(array, -1, 1)
    return np.ascontiguousarray(array).reshape(len(array), *spec.shape)


def _write(path: Path, entry: Entry, values: NDArray[np.int64], spec: DataSpec) -> None:
    if not entry.shape:
        pixels = grey_values(spec)[values[0]].astype(np.uint8)
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(path, "PNG", optimize=True)
        return
    if entry.shape[1:] == (*spec.size, spec.channels) != spec.shape:
        values = np.moveaxis(values, 1, -1)
    np.save(path, np.ascontiguousarray(values).reshape(entry.shape).astype(entry.dtype))
