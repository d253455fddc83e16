"""NumPy files, read without ever unpickling: .npy is mapped into memory, members of .npz are read whole."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffkit.errors import DataError

Array = NDArray[Any]
LARGEST = 8 << 30  # bytes of one member of an .npz, which cannot be read piece by piece


def open_npy(path: Path) -> Array:
    """The array of a .npy file, mapped read-only. Raises DataError DK302 (damaged) or DK303 (pickled)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, path, size)
        offset = file.tell()
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def read_npz(path: Path, key: str) -> Array:
    """The array `key` of a .npz file. Raises DataError DK301 (no such array), DK302 (damaged), DK303 (pickled)."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if key not in sizes:
                raise DataError(f"{path} holds no array {key!r}", code="DK301", choices=sorted(sizes))
            if sizes[key].file_size > LARGEST:
                raise DataError(
                    f"{path}: array {key!r} unpacks to {sizes[key].file_size} bytes",
                    code="DK302",
                    fix="save it with numpy.save as a .npy file, which is streamed",
                )
            with archive.open(sizes[key]) as file:
                shape, fortran, dtype = _header(file, path, sizes[key].file_size)
                body = file.read(math.prod(shape) * dtype.itemsize)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], path: Path, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array that follows in `file`, which holds `size` bytes in all."""
    start = file.read(npy.MAGIC_LEN)
    if start[:1] == b"\x80":
        raise _pickled(path)
    if start[:-2] != npy.MAGIC_PREFIX or start[-2:] not in (b"\x01\x00", b"\x02\x00"):
        raise _damaged(path, "it is no NumPy array")
    read = npy.read_array_header_1_0 if start[-2] == 1 else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if dtype.hasobject:
        raise _pickled(path)
    expected = math.prod(shape) * dtype.itemsize
    if expected > size - file.tell():
        raise _damaged(path, f"its header announces {expected} bytes, it holds {size - file.tell()}")
    return shape, fortran, dtype


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", code="DK302", fix="write the file again with numpy.save or savez")


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is pickled: reading it would run code",
        code="DK303",
        fix="save plain arrays of one numeric type, not lists of objects: numpy.save(file, array, allow_pickle=False)",
    )
