"""Files that survive a crash: synced writes, atomic replacement, and reading that trusts nothing.

Torch is not imported here, so that a run directory can be listed and verified without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import CheckpointError


def fault(reason: str) -> CheckpointError:
    """The error of one damaged or hostile file; the search for a whole checkpoint reports it and goes on."""
    return CheckpointError(reason, code="DK601")


def write_synced(path: Path, data: bytes) -> None:
    """Create `path`, which must not exist, with `data`, on the disk when this returns."""
    with open(path, "xb") as stream:
        stream.write(data)
        sync(stream)


def sync(stream: BinaryIO) -> None:
    """Push what was written to `stream` to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Push the names in directory `path` to the disk: without it a rename may be forgotten by a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Give `path` the content `data`; at every moment, and after a crash, it is the old file or the new one whole."""
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open `path` for reading where it is a plain file; a link, a pipe, a device or nothing at all is a fault."""
    try:  # O_NONBLOCK, because opening a pipe would wait for its writer for ever
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        raise fault(f"{path.name} {reason}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise fault(f"{path.name} is not a plain file")
    with open(handle, "rb") as stream:
        yield stream


def size_of(stream: BufferedReader) -> int:
    """Bytes in the file behind `stream`."""
    return os.fstat(stream.fileno()).st_size


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most `limit` bytes; anything else is a fault."""
    with open_regular(path) as stream:
        if size_of(stream) > limit:
            raise fault(f"{path.name} has {size_of(stream)} bytes, more than the {limit} allowed")
        return stream.read(limit + 1)[:limit]


def dump_json(value: object) -> bytes:
    """The one way in which `value` is written as JSON; NaN and infinity are refused with a ValueError."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=True) + "\n").encode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} appears twice")
        found[name] = value
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`; repeated names, NaN, excessive depth and everything that is no object are faults."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant
        )
    except (ValueError, RecursionError) as error:
        raise fault(f"{what} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise fault(f"{what} is not a JSON object")
    return value
