"""Manifests: which checkpoints of a directory are whole, decided without torch.

A checkpoint is a directory `step-00003000` with one safetensors file a group of tensors, `state.json`, and
`manifest.json`, which is written last and names every other file with its length and sha256, and carries a digest of
itself. A directory without a whole manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import atomic
from .atomic import fault, parse_object, size_of

FORMAT = 1
MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"
MAX_MANIFEST, MAX_STATE, MAX_FILES = 1 << 20, 64 << 20, 64
LEAST = 2
_DIRECTORY = re.compile(r"step-(\d{8,18})")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Stamp:
    """Length and sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of; `meta` holds the recipe hash, the versions, and whatever else the writer noted."""

    step: int
    files: Mapping[str, Stamp]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return tuple(sorted(name.removesuffix(SUFFIX) for name in self.files if name.endswith(SUFFIX)))

    @property
    def size(self) -> int:
        """Length of all files together, in bytes."""
        return sum(stamp.bytes for stamp in self.files.values())

    def encode(self) -> bytes:
        """The content of manifest.json: canonical JSON with the sha256 of itself without that entry."""
        body = {
            "format": FORMAT,
            "step": self.step,
            "files": {name: {"bytes": stamp.bytes, "sha256": stamp.sha256} for name, stamp in self.files.items()},
            "meta": dict(self.meta),
        }
        return atomic.dump_json(body | {"digest": hashlib.sha256(atomic.dump_json(body)).hexdigest()})


@dataclass(frozen=True)
class Candidate:
    """A directory that bears the name of a checkpoint, whole or not."""

    path: Path
    step: int


@dataclass(frozen=True)
class Status:
    """What is known about one candidate; `fault` says why it cannot be loaded, None where nothing was found."""

    path: Path
    step: int
    bytes: int
    meta: Mapping[str, Any]
    fault: str | None
    verified: bool


def directory_name(step: int) -> str:
    """The name of the checkpoint of `step`."""
    return f"step-{step:08d}"


def group_file(group: str) -> str:
    """The file that holds `group`; raises ValueError where the group's name cannot be part of a file's name."""
    if not _GROUP.fullmatch(group):
        raise ValueError(f"a group of tensors cannot be called {group!r}")
    return group + SUFFIX


def candidates(directory: Path) -> list[Candidate]:
    """Every candidate of a `checkpoints/` directory, newest step first; temporaries are not candidates."""
    if not directory.is_dir():
        return []
    found = []
    for path in directory.iterdir():
        match = _DIRECTORY.fullmatch(path.name)
        if match and path.name == directory_name(int(match[1])):
            found.append(Candidate(path, int(match[1])))
    return sorted(found, key=lambda candidate: -candidate.step)


def read_manifest(candidate: Candidate) -> Manifest:
    """The manifest of a candidate; a CheckpointError unless it is whole and the directory holds just its files."""
    if candidate.path.is_symlink() or not candidate.path.is_dir():
        raise fault(f"{candidate.path.name} is not a directory")
    data = atomic.read_bounded(candidate.path / MANIFEST, MAX_MANIFEST)
    manifest = _decode(atomic.parse_object(data, MANIFEST))
    if not _canonical(manifest, data):
        raise fault(f"{MANIFEST} does not match its own digest")
    if manifest.step != candidate.step:
        raise fault(f"{MANIFEST} is of step {manifest.step}")
    # Hidden files are what file managers and NFS leave behind; they are never read.
    present = {path.name for path in candidate.path.iterdir() if not path.name.startswith(".")}
    if missing := manifest.files.keys() - present:
        raise fault(f"{min(missing)} is missing")
    if extra := present - manifest.files.keys() - {MANIFEST}:
        raise fault(f"{min(extra)!r} is not in {MANIFEST}")
    return manifest


def _canonical(manifest: Manifest, data: bytes) -> bool:
    try:
        return manifest.encode() == data
    except RecursionError:  # a meta that is nested deeper than anything that was ever written
        return False


def _decode(body: Mapping[str, Any]) -> Manifest:
    if type(body.get("format")) is not int or body["format"] != FORMAT:
        raise fault(f"{MANIFEST} has format {str(body.get('format'))[:40]}; this version reads format {FORMAT}")
    step, stamps, meta = body.get("step"), body.get("files"), body.get("meta")
    if type(step) is not int or step < 0:
        raise fault(f"{MANIFEST} has no step")
    if not isinstance(meta, dict) or not isinstance(stamps, dict) or not 1 <= len(stamps) <= MAX_FILES:
        raise fault(f"{MANIFEST} has no meta, no files, or more than {MAX_FILES} files")
    if STATE not in stamps:
        raise fault(f"{MANIFEST} does not name {STATE}")
    return Manifest(step, {name: _stamp(name, entry) for name, entry in stamps.items()}, meta)


def _stamp(name: str, entry: object) -> Stamp:
    if name != STATE and not (name.endswith(SUFFIX) and _GROUP.fullmatch(name.removesuffix(SUFFIX))):
        raise fault(f"{MANIFEST} names the file {name[:80]!r}, which no checkpoint has")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
        raise fault(f"{MANIFEST} has no length and hash of {name}")
    length, digest = entry["bytes"], entry["sha256"]
    if type(length) is not int or length < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise fault(f"{MANIFEST} has an impossible length or hash of {name}")
    return Stamp(length, digest)


def check_size(stream: BufferedReader, name: str, stamp: Stamp) -> None:
    """A fault unless the file is as long as the manifest says."""
    if atomic.size_of(stream) != stamp.bytes:
        raise fault(f"{name} has {atomic.size_of(stream)} bytes, not {stamp.bytes}")


def check_digest(digest: str, name: str, stamp: Stamp) -> None:
    """A fault unless the file's content is what was written."""
    if digest != stamp.sha256:
        raise fault(f"the content of {name} has changed since it was written (sha256)")


def verify_file(path: Path, stamp: Stamp) -> None:
    """A fault unless the file is as long as the manifest says, has a sound header, and its content is unchanged."""
    with atomic.open_regular(path) as stream:
        check_size(stream, path.name, stamp)
        if path.name.endswith(SUFFIX):
            read_header(stream, path.name)
            stream.seek(0)
        check_digest(hashlib.file_digest(stream, "sha256").hexdigest(), path.name, stamp)


def verify(candidate: Candidate) -> Manifest:
    """The manifest of a whole checkpoint: lengths, headers and hashes of every file are right, or CheckpointError."""
    try:
        manifest = read_manifest(candidate)
        for name, stamp in manifest.files.items():
            verify_file(candidate.path / name, stamp)
        atomic.parse_object(atomic.read_bounded(candidate.path / STATE, MAX_STATE), STATE)
    except OSError as error:
        raise fault(f"{candidate.path.name} cannot be read ({error.strerror})") from error
    return manifest


def inspect(directory: Path, *, contents: bool = False) -> list[Status]:
    """The state of every candidate, newest first; with `contents` every byte is read, else only the manifests."""
    found = []
    for candidate in candidates(directory):
        try:
            manifest = verify(candidate) if contents else read_manifest(candidate)
            status = Status(candidate.path, candidate.step, manifest.size, manifest.meta, None, contents)
        except (CheckpointError, OSError) as error:
            status = Status(candidate.path, candidate.step, 0, {}, str(getattr(error, "message", error)), contents)
        found.append(status)
    return found


def superfluous(
    steps: Iterable[int], whole: Callable[[int], bool], keep: int, protect: Collection[int] = ()
) -> list[int]:
    """The steps whose checkpoints may go: those older than the newest `keep` whole ones, except the protected.

    Only checkpoints for which `whole(step)` holds count, so a damaged one never displaces a good one, and the newest
    two whole ones always stay. `whole` is asked only as often as needed, for it may read the whole checkpoint.
    """
    if keep < LEAST:
        raise ValueError(f"keep must be at least {LEAST}: the last checkpoint may be the one that is damaged")
    kept, gone = 0, []
    for step in sorted(steps, reverse=True):
        if kept < keep:
            kept += whole(step)
        elif step not in protect:
            gone.append(step)
    return gone


WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 8 << 20
MAX_RANK = 16


@dataclass(frozen=True)
class Span:
    """One tensor of a file: its type, its shape, and the bytes [begin, end) of the data that it occupies."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encode_header(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[bytes, list[str]]:
    """The header of a file with these {name: (dtype, shape)}, and the order in which the data must follow.

    Wide types come first and the header is padded to 8 bytes, so that every tensor is aligned in the file.
    """
    order = sorted(tensors, key=lambda name: (-WIDTH[tensors[name][0]], name))
    entries, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        begin, end = end, end + WIDTH[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"{len(tensors)} tensors need a header of {len(text)} bytes; at most {MAX_HEADER} are allowed")
    return len(text).to_bytes(8, "little") + text, order


def read_header(stream: BufferedReader, what: str) -> tuple[bytes, dict[str, Span]]:
    """The header bytes of a file and its tensors in the order of their data; the stream is left at the data.

    A fault (CheckpointError) unless names are unique, types known, spans as long as shape and type say, and the
    spans cover the rest of the file exactly, without holes or overlap.
    """
    size = size_of(stream)
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise fault(f"{what} is shorter than its header says, or is no safetensors file")
    if length > MAX_HEADER:
        raise fault(f"{what} has a header of {length} bytes, more than the {MAX_HEADER} allowed")
    text = stream.read(length)
    entries = parse_object(text, f"the header of {what}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise fault(f"the header of {what} has metadata that is not text")
    spans = {name: _span(name, entry, what) for name, entry in entries.items()}
    ordered = sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end))
    end = 0
    for name, span in ordered:
        if span.begin != end:
            raise fault(f"{what}: tensor {name[:80]!r} starts at byte {span.begin} of the data, not at {end}")
        end = span.end
    if end != size - 8 - length:
        raise fault(f"{what} has {size - 8 - length} bytes of data where its header describes {end}")
    return prefix + text, dict(ordered)


def _span(name: str, entry: object, what: str) -> Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault(f"{what}: tensor {name[:80]!r} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTH:
        raise fault(f"{what}: tensor {name[:80]!r} has the unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise fault(f"{what}: tensor {name[:80]!r} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2:
        raise fault(f"{what}: tensor {name[:80]!r} has impossible offsets")
    begin, end = offsets
    if end - begin != WIDTH[dtype] * math.prod(shape):
        raise fault(f"{what}: tensor {name[:80]!r} of type {dtype} and shape {shape} cannot take {end - begin} bytes")
    return Span(dtype, tuple(shape), begin, end)


def _naturals(value: object) -> bool:
    """Whether `value` is a list of integers in [0, 2^63); True and False are not numbers here."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
