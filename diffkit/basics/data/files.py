"""Files of data sets: find them, report missing and damaged ones, decide what fits in memory, and hash them.

Paths are relative to the working directory, and `~` is the home directory.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
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
MAX_SAMPLED_FILES, PIECES, PIECE_BYTES = 256, 16, 64 << 10
NEUTRAL_OPTIONS = frozenset(
    {"path", "workers", "resident", "captions", "classes", "numbers", "pictures", "conditions", "table"}
)
"""Options that change no example, and those of conditions, whose values enter a fingerprint themselves."""

Resident = Literal["auto", "always", "never"]


class FileData(Data):
    """Base of sets in files of any origin: the first use of a part warns of what is left out or probably not meant."""

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


def fingerprint(data: Data, root: Path | None = None, files: Sequence[str] = ()) -> str:
    """Hash a data set: equal for equal content and options, wherever the files lie.

    The hash covers the names and sizes of all files, and every byte of data sets up to 256 MiB; of larger ones it
    covers 16 evenly spread pieces of 64 KiB of each of up to 256 files.

    Args:
        data: the data set, whose class name and options count; `path`, `workers` and `resident` do not.
        root: folder of the files, None for a set without files.
        files: names relative to `root`.

    Returns:
        "Class:hash", with 32 hexadecimal digits.
    """
    digest = sha256()
    names: list[str] = [option.name for option in fields(data)] if is_dataclass(data) else []
    for name in names:
        if name not in NEUTRAL_OPTIONS:
            digest.update(f"{name}={getattr(data, name)!r}\0".encode())
    if root is not None:
        for chunk in _file_chunks(root, files):
            digest.update(chunk)
    return f"{type(data).__name__}:{digest.hexdigest()[:32]}"


def _file_chunks(root: Path, names: Sequence[str]) -> Iterator[bytes]:
    sizes = [os.stat(os.path.join(root, name)).st_size for name in names]
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
