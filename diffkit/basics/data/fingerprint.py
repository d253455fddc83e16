"""Fingerprints of data sets: equal for equal content and options, wherever the files lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path

from diffkit.data import Data

WHOLE = 256 << 20  # bytes up to which every byte counts
FILES, PIECES, PIECE = 256, 16, 64 << 10
PLACE = frozenset({"path", "workers", "resident"})  # options that change no example


def fingerprint(data: Data, root: Path | None = None, files: Sequence[str] = ()) -> str:
    """The class of `data`, and a hash of its options and of `files` (relative to `root`).

    Names and sizes of all files count; of their bytes all up to 256 MiB in total, else 16 pieces of 64 KiB of each
    of up to 256 files, evenly spread.
    """
    digest = sha256()
    for chunk in _options(data):
        digest.update(chunk)
    if root is not None:
        for chunk in _files(root, files):
            digest.update(chunk)
    return f"{type(data).__name__}:{digest.hexdigest()[:32]}"


def _options(data: Data) -> Iterator[bytes]:
    if is_dataclass(data):
        for option in fields(data):
            if option.name not in PLACE:
                yield f"{option.name}={getattr(data, option.name)!r}\0".encode()


def _files(root: Path, names: Sequence[str]) -> Iterator[bytes]:
    sizes = [(root / name).stat().st_size for name in names]
    for name, size in zip(names, sizes):
        yield name.encode("utf-8", "surrogateescape") + f"\0{size}\0".encode()
    whole = sum(sizes) <= WHOLE
    stride = 1 if whole else max(1, len(names) // FILES)
    for name, size in list(zip(names, sizes))[::stride]:
        with (root / name).open("rb") as file:
            if whole or size <= PIECES * PIECE:
                while chunk := file.read(1 << 20):
                    yield chunk
            else:
                for i in range(PIECES):
                    file.seek((size - PIECE) * i // (PIECES - 1))
                    yield file.read(PIECE)
