"""Packing: write a folder of pictures, with the captions and fields beside them, as tar shards with an index."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from diffkit import DataError

from .files import require
from .pictures import find_pictures
from .shard_index import (
    CAPTION,
    CLASS,
    FIELDS,
    INDEX,
    Report,
    build_index,
    load_index,
    no_report,
    unfit,
    write_atomic,
)

JOURNAL = ".packing"
"""A hash of the files that are being packed; absent once the index is written."""
SHARD_BYTES = 256 << 20
BLOCK = tarfile.BLOCKSIZE

Example = tuple[str, list[tuple[str, int]]]
"""A picture and the files beside it: the key, and each file with its size."""


def pack(
    folder: Path, out: Path, *, labels: bool = False, shard_bytes: int = SHARD_BYTES, report: Report = no_report
) -> int:
    """Write the pictures below a folder, and the files .txt, .json and .cls beside them, as tar shards with an index.

    A call that was interrupted continues with the first shard that is not there. Equal folders give equal shards.

    Args:
        folder: the pictures, sub-folders included.
        out: the folder of the shards, created if missing.
        labels: whether the names of the sub-folders become classes, as .cls files.
        shard_bytes: size of a shard.
        report: receives the bytes that are written, then read for the index.

    Returns:
        The number of examples.

    Raises:
        DataError: DK301 or DK304, there are no pictures; DK316, files that cannot be examples, or `out` holds another
            packing.
    """
    root = require(folder, "the folder of images", "name a folder of pictures", folder=True)
    examples = list_examples(root, labels)
    digest = sha256(f"{shard_bytes} {labels}".encode())
    for key, files in examples:
        times = [(root / name).stat().st_mtime_ns for name, size in files if size >= 0]
        digest.update(f"{key}\0{files}\0{times}".encode("utf-8", "surrogateescape"))
    plan = digest.hexdigest()
    if begin(out, plan):
        return len(load_index(str(out)))
    done, total = 0, sum(map(padded_size, examples))
    for number, some in enumerate(divide(examples, shard_bytes)):
        if not (path := out / f"shard-{number:06}.tar").exists():
            _write(root, path, some)
        done += sum(map(padded_size, some))
        report(done, 2 * total)
    count = build_index(str(out), lambda read, size: report(total + total * read // size, 2 * total), plan)
    (out / JOURNAL).unlink()
    return count


def begin(out: Path, plan: str) -> bool:
    """Prepare the folder of shards, and return whether it holds this packing already, as a whole.

    Args:
        out: The folder, created if missing.
        plan: The hash of the files and options of the packing.

    Returns:
        Whether nothing is left to do.

    Raises:
        DataError: DK316, the folder holds anything but this packing.
    """
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL
    begun = journal.read_text(encoding="ascii", errors="replace") if journal.is_file() else ""
    others = [one.name for one in out.iterdir() if not one.name.startswith(".")]
    if others and begun != plan:
        if INDEX in others and load_index(str(out)).plan == plan:
            return True
        problem = f"it holds {min(others)} already, not written from the same files with the same options"
        raise unfit(str(out), problem, "choose another OUT, or remove it")
    write_atomic(journal, plan.encode())
    return False


def list_examples(root: Path, labels: bool) -> list[Example]:
    """Return each picture with the files beside it, sorted by key.

    Args:
        root: the folder.
        labels: whether the sub-folder becomes the class: a file of size -1 with the name of the class.

    Returns:
        The examples.

    Raises:
        DataError: DK304, there are none; DK305, a picture in no sub-folder; DK316, two pictures have one key.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for name in find_pictures(root).names:
        folder, _, file = name.rpartition("/")
        stem = f"{folder}/{Path(file).stem}" if folder else Path(file).stem
        key = f"{folder}/{Path(file).stem.replace('.', '-')}" if folder else Path(file).stem.replace(".", "-")
        if key in found:
            problem = f"{found[key][0][0]} and {name} would be one example"
            raise unfit(str(root), problem, "rename one of them")
        if labels and "/" not in name:
            message = f"{name} lies in {root} itself, so that it has no class"
            raise DataError(message, code="DK305", fix="put each class into a folder of its own, or leave out --labels")
        beside = [f"{stem}.{kind}" for kind in (CAPTION, FIELDS, *([] if labels else [CLASS]))]
        files = [name, *(one for one in beside if (root / one).is_file())]
        found[key] = [(one, (root / one).stat().st_size) for one in files]
        if labels:
            found[key].append((f"{name.partition('/')[0]}.{CLASS}", -1))
    if not found:
        raise DataError(f"no image below {root}", code="DK304", fix="name a folder of pictures")
    return sorted(found.items())


def padded_size(example: Example) -> int:
    """Return the bytes that an example takes in a shard, about."""
    return sum(BLOCK + -(-abs(size) // BLOCK) * BLOCK for _, size in example[1])


def divide(examples: Sequence[Example], shard_bytes: int) -> Iterator[Sequence[Example]]:
    """Yield runs of examples of about `shard_bytes` each, at least one example."""
    start, total = 0, 0
    for at, size in enumerate(map(padded_size, examples)):
        if at > start and total + size > shard_bytes:
            yield examples[start:at]
            start, total = at, 0
        total += size
    yield examples[start:]


def _write(root: Path, path: Path, examples: Sequence[Example]) -> None:
    """Write one shard, whole or not at all, with times and owners of 0."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, files in examples:
                for name, size in files:
                    content = (
                        Path(name).stem.encode("utf-8", "surrogateescape") if size < 0 else (root / name).read_bytes()
                    )
                    if 0 <= size != len(content):
                        raise unfit(str(root / name), "it changed while it was packed", "start again")
                    info = tarfile.TarInfo(f"{key}{Path(name).suffix.lower()}")
                    info.size = len(content)
                    archive.addfile(info, BytesIO(content))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
