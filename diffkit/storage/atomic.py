"""Files that survive a crash: synced writes, atomic replacement, and validated reading. Torch is not imported."""

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

from pydantic import ValidationError

from ..errors import CheckpointError, ResourceError

STRUCTURE = (b"[", b"{", b",")
"""The characters of JSON that begin a value that is not the first of its list."""
MAX_JSON_VALUES, MAX_RECORD_VALUES = 250_000, 60_000
"""The largest number of values of a JSON text: of any, up to about 200 bytes of memory each; and of one that becomes a
record, up to about 3,500 bytes each, because each wrong value has an error of its own.
"""


def damaged_file(reason: str) -> CheckpointError:
    """Return the error for one damaged or hostile file."""
    return CheckpointError(reason, code="DK601")


def first_fault(error: ValidationError) -> str:
    """Return the place and the message of the first fault in a file, in at most 200 printable characters."""
    fault = error.errors()[0]
    return ascii(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")[1:-1][:200]


@contextlib.contextmanager
def writing(path: Path, fix: str = "make it writable, free some space, or choose another --out") -> Iterator[None]:
    """Raise ResourceError, with the path and a fix, in place of an OSError inside the context."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}", code="DK412", fix=fix) from error


def require_regular(handle: int, path: Path) -> None:
    """Close an open file and raise CheckpointError unless it is a regular file: no pipe, device or directory."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise damaged_file(f"{path.name} is not a regular file")


def write_synced(path: Path, data: bytes) -> None:
    """Create the file `path`, which must not exist, with the content `data`, and sync it."""
    with open(path, "xb") as stream:
        stream.write(data)
        sync(stream)


def sync(stream: BinaryIO) -> None:
    """Flush the file to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, so that a rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically: after a crash the file has either the old or the new content."""
    with replacing(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces that of `path` atomically at the end, and not after an error."""
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "x+b") as stream:
            yield stream
            sync(stream)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading. Raises CheckpointError for a link, pipe, device, or missing file."""
    try:  # without O_NONBLOCK, opening a pipe waits for its writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        raise damaged_file(f"{path.name} {reason}") from error
    require_regular(handle, path)
    with open(handle, "rb") as stream:
        yield stream


def size_of(stream: BufferedReader) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(stream.fileno()).st_size


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises CheckpointError for anything else."""
    with open_regular(path) as stream:
        if size_of(stream) > limit:
            raise damaged_file(f"{path.name} has {size_of(stream)} bytes; at most {limit} are allowed")
        try:
            return stream.read(limit + 1)[:limit]
        except OSError as error:
            raise damaged_file(f"{path.name} cannot be read ({error.strerror})") from error


def dump_json(value: object) -> bytes:
    """Encode `value` as canonical JSON. Raises ValueError for NaN and infinity."""
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
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def parse_object(data: bytes, what: str, most: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """Parse strict JSON.

    Args:
        data: the text, UTF-8.
        what: the name of the file, for messages.
        most: largest number of values; default `MAX_JSON_VALUES`.

    Returns:
        The object.

    Raises:
        CheckpointError: repeated names, NaN, excessive depth, too many values, or anything but an object.
    """
    if sum(map(data.count, STRUCTURE)) > most:
        raise damaged_file(f"{what} has more than {most:,} values")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise damaged_file(f"{what} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged_file(f"{what} is not a JSON object")
    return value
