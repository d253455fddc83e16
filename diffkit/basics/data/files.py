"""Files of data sets: find them, report missing and damaged ones, decide what fits in memory, and hash them.

Paths are relative to the working directory, and `~` is the home directory.
"""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

from diffkit import Data, DataError, Part, Split, summarize

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_RESIDENT_BYTES = 1 << 30
"""Size up to which `resident: auto` keeps a data set in memory."""
MAX_HASHED_BYTES = 256 << 20
"""Total size up to which a fingerprint covers every byte of the files."""
MIN_CACHED, RECENT_NS = 1000, 2_000_000_000
"""Files from which on hashes and sizes are kept between processes; one written just before may change again unseen."""
MAX_SAMPLED_FILES, PIECES, PIECE_BYTES = 256, 16, 64 << 10
NEUTRAL_OPTIONS = frozenset(
    {"path", "workers", "resident", "captions", "classes", "numbers", "pictures", "conditions", "table"}
)
"""Options that change no example, and those of conditions, whose values enter a fingerprint themselves."""

Resident = Literal["auto", "always", "never"]


class FileData(Data):
    """Base of data sets in files; the first use of a split warns of files that are left out and of probable
    mistakes.
    """

    @property
    @abstractmethod
    def _parts(self) -> Mapping[Part, Split]:
        """Both parts."""

    @property
    def _unused(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Numbers of files by the reason that they are not used: unexpected and expected ones."""
        return {}, {}

    @cached_property
    def summary(self) -> str:
        return summarize(self, self._parts, *self._unused)

    def split(self, part: Part) -> Split:
        _ = self.summary
        return self._parts[part]


def locate(path: str) -> Path:
    """Return `path` with `~` expanded."""
    return Path(os.path.expanduser(path))


def default_folder(path: str | None, name: str) -> Path:
    """Return the folder of the set `name`: `path`, else $DIFFKIT_DATA/name, else data/name."""
    if path is not None:
        return locate(path)
    return locate(os.environ.get("DIFFKIT_DATA") or "data") / name


def require(path: Path, what: str, fix: str, *, folder: bool = False) -> Path:
    """Return `path` if it exists.

    Args:
        path: the file or folder.
        what: its name in the message, such as "the folder of images".
        fix: the fix in the message if the path is missing.
        folder: whether it must be a folder.

    Returns:
        `path` itself.

    Raises:
        DataError: DK301, `path` does not exist, is a device or a pipe, or is not a folder as required.
    """
    try:
        path.stat()
        if path.is_dir() or (path.is_file() and not folder):
            return path
        notes = [f"{path} exists, but is not a {'folder' if folder else 'regular file or a folder'}"]
    except FileNotFoundError:
        packed = [path.with_name(path.name + suffix) for suffix in ARCHIVES]
        notes = [f"{file} is in the same folder: unpack it first" for file in packed if file.is_file()]
    except (OSError, ValueError) as error:  # such as no permission, a name that is too long, or a null byte
        notes = [f"the path cannot be used: {getattr(error, 'strerror', None) or error}"]
    if not path.is_absolute():
        notes.append("relative paths start at the working directory")
    raise DataError(f"{what} not found: {path}", code="DK301", fix=fix, notes=notes)


def archive_note(folder: Path) -> tuple[str, ...]:
    """Return a note on packed archives in `folder`, for messages about files that are missing there."""
    packed = sorted(p.name for p in folder.iterdir() if p.name.endswith(ARCHIVES))
    return (f"{folder} holds {', '.join(packed[:5])}: unpack it first",) if packed else ()


def damaged(path: Path, reason: str, fix: str) -> DataError:
    """Build the error for a file that is not what its format requires.

    Args:
        path: the file.
        reason: the fault of the file, for the message.
        fix: the fix in the message.

    Returns:
        A DataError DK302, for the caller to raise.
    """
    return DataError(f"{path} is damaged: {reason}", code="DK302", fix=fix)


def fits_in_memory(resident: Resident, size: int) -> bool:
    """Return whether a set of `size` bytes is kept in memory under the option `resident`."""
    return resident == "always" or (resident == "auto" and size <= MAX_RESIDENT_BYTES)


Stamp = tuple[int, int, int]
"""Bytes of a file, and the times at which its content and its status changed, in nanoseconds; -1 without a file."""


def stamps_of(root: Path, names: Sequence[str]) -> list[Stamp]:
    """Return a stamp of each file below `root`."""
    top, found = os.path.join(root, ""), list[Stamp]()
    for name in names:
        try:
            status = os.stat(top + name)
        except OSError:
            found.append((-1, -1, -1))
        else:
            found.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


def cache_file(kind: str, root: Path) -> Path:
    """Return the file in $XDG_CACHE_HOME/diffkit, by default ~/.cache/diffkit, that stores results about a folder."""
    top = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return top / "diffkit" / f"{kind}-{sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def write_cache(file: Path, content: object) -> None:
    """Replace a file of the cache; one that cannot be written is not an error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, file)


def fingerprint(
    data: Data, root: Path | None = None, files: Sequence[str] = (), stamps: Sequence[Stamp] | None = None
) -> str:
    """Hash a data set: equal for equal content and options, wherever the files lie.

    The hash covers the names and sizes of all files, and every byte of data sets up to 256 MiB; of larger ones it
    covers 16 evenly spread pieces of 64 KiB of each of up to 256 files. With `MIN_CACHED` files or more, the hash is
    kept between processes by the stamps of all files, unless one was written in the last two seconds.

    Args:
        data: the data set, whose class name and options count; `path`, `workers` and `resident` do not.
        root: folder of the files, None for a set without files.
        files: names relative to `root`.
        stamps: their stamps; default as they are now.

    Returns:
        "Class:hash", with 32 hexadecimal digits.
    """
    digest = sha256()
    names: list[str] = [option.name for option in fields(data)] if is_dataclass(data) else []
    for name in names:
        if name not in NEUTRAL_OPTIONS:
            digest.update(f"{name}={getattr(data, name)!r}\0".encode())
    cache, key, stamps = None, "", stamps if stamps is not None or root is None else stamps_of(root, files)
    if root is not None and stamps is not None and len(files) >= MIN_CACHED:
        listed = "\0".join([digest.hexdigest(), *files]).encode("utf-8", "surrogateescape")
        cache, key = cache_file("fingerprint", root), sha256(listed + repr(stamps).encode()).hexdigest()
        with suppress(OSError, ValueError, TypeError, KeyError):
            return f"{type(data).__name__}:{json.loads(cache.read_bytes())[key]:.32}"
    if root is not None and stamps is not None:
        for chunk in _file_chunks(root, files, [size for size, _, _ in stamps]):
            digest.update(chunk)
    found = digest.hexdigest()[:32]
    if cache is not None and stamps is not None and max(map(max, stamps)) < time.time_ns() - RECENT_NS:
        write_cache(cache, {key: found})
    return f"{type(data).__name__}:{found}"


def _file_chunks(root: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[bytes]:
    for name, size in zip(names, sizes):
        yield name.encode("utf-8", "surrogateescape") + f"\0{size}\0".encode()
    whole = sum(sizes) <= MAX_HASHED_BYTES
    stride = 1 if whole else max(1, len(names) // MAX_SAMPLED_FILES)
    for name, size in list(zip(names, sizes))[::stride]:
        with open(os.path.join(root, name), "rb", buffering=0) as file:
            if whole or size <= PIECES * PIECE_BYTES:
                while chunk := file.read(1 << 20):
                    yield chunk
            else:
                for i in range(PIECES):
                    file.seek((size - PIECE_BYTES) * i // (PIECES - 1))
                    yield file.read(PIECE_BYTES)
