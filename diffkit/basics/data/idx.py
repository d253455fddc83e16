"""IDX files: two zero bytes, a type, the number of dimensions, the sizes (big endian), then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import DataError

UINT8 = 8
LARGEST = 1 << 30  # bytes; a header that claims more is damaged or hostile


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array of `path`, gzipped where its name ends in .gz. Raises DataError DK302 where it is damaged.

    Source: the description of the format at the end of the page that published MNIST (LeCun, Cortes & Burges).
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, dimensions, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"the gzip stream is damaged ({error})") from error


def _read(file: BufferedIOBase, dimensions: int, path: Path) -> NDArray[np.uint8]:
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions:
        raise _damaged(path, f"it ends within its header of {4 + 4 * dimensions} bytes")
    zero, kind, found, *sizes = struct.unpack(f">HBB{dimensions}I", head)
    if zero != 0 or kind != UINT8 or found != dimensions:
        wanted = bytes((0, 0, UINT8, dimensions)).hex()
        raise _damaged(path, f"it starts with {head[:4].hex()}, an IDX file of this kind with {wanted}")
    expected = math.prod(sizes)
    if expected > LARGEST:
        raise _damaged(path, f"its header claims {expected} bytes")
    body = file.read(expected + 1)
    if len(body) != expected:
        held = "more" if len(body) > expected else len(body)
        raise _damaged(path, f"its header announces {expected} bytes, it holds {held}")
    return np.frombuffer(body, dtype=np.uint8).reshape(sizes)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", code="DK302", fix="get the file again and compare its checksum")
