"""Manifests: find the checkpoints of a directory and verify every byte of them, without torch.

A checkpoint is a directory `step-00003000` with one safetensors file for each group of tensors, `state.json`, and
`manifest.json`. The manifest is written last. It lists the length and SHA-256 of every other file and a digest of
itself. A directory without a valid manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from . import atomic
from .atomic import damaged_file, first_fault, parse_object, size_of

FORMAT = 1
MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"
MAX_MANIFEST_BYTES, MAX_STATE_BYTES, MAX_HEADER_BYTES = 1 << 20, 8 << 20, 8 << 20
MAX_FILES = 4096
MIN_KEPT = 2
"""Checkpoints that are never removed: the newest one may be damaged."""

_DIRECTORY = re.compile(r"step-(\d{8,18})")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_FILE = re.compile(rf"{re.escape(STATE)}|{_GROUP.pattern}(-\d{{5}}-of-\d{{5}})?{re.escape(SUFFIX)}")
_MAX_RANK = 16


@validated(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class FileDigest:
    """Length and SHA-256 of one file."""

    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def require_size(self, stream: BufferedReader, name: str) -> None:
        """Raise CheckpointError unless the open file has this length."""
        if size_of(stream) != self.bytes:
            raise damaged_file(f"{name} has {size_of(stream)} bytes, not {self.bytes}")

    def require_content(self, sha256: str, name: str) -> None:
        """Raise CheckpointError unless the content of the file has this SHA-256."""
        if sha256 != self.sha256:
            raise damaged_file(f"the content of {name} has changed since it was written (sha256)")


@validated(frozen=True, config=ConfigDict(strict=True))
class Manifest:
    """The files of a checkpoint. `meta` holds the recipe hash, versions and other notes of the writer."""

    step: NonNegativeInt
    files: Annotated[dict[str, FileDigest], Field(max_length=MAX_FILES)]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The files of each group of tensors: one, or its shards in order.

        Raises CheckpointError if the list of shards has gaps.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(name.removesuffix(SUFFIX) for name in self.files if name.endswith(SUFFIX)):
            shard = _SHARD.fullmatch(name)
            group = shard[1] if shard else name
            found[group] = (*found.get(group, ()), name + SUFFIX)
        for group, names in found.items():
            count = len(names)
            if names != (group + SUFFIX,) and names != tuple(shard_file(group, rank, count) for rank in range(count)):
                raise damaged_file(f"{MANIFEST} does not list all shards of {group}")
        return found

    @property
    def size(self) -> int:
        """Length of all files together, in bytes."""
        return sum(digest.bytes for digest in self.files.values())

    def encode(self) -> bytes:
        """Return the content of manifest.json: canonical JSON, with the SHA-256 of the JSON without that entry."""
        files = {name: asdict(digest) for name, digest in self.files.items()}
        body = {"format": FORMAT, "step": self.step, "files": files, "meta": dict(self.meta)}
        return atomic.dump_json(body | {"digest": hashlib.sha256(atomic.dump_json(body)).hexdigest()})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Parse manifest.json. Raises CheckpointError unless `encode` of the result gives the same bytes."""
        body = parse_object(data, MANIFEST)
        if type(body.get("format")) is not int or body["format"] != FORMAT:
            raise damaged_file(f"{MANIFEST} has format {str(body.get('format'))[:40]}, but only {FORMAT} is supported")
        try:
            manifest = _MANIFEST.validate_json(data)
        except ValidationError as error:
            raise damaged_file(f"{MANIFEST} is not valid: {first_fault(error)}") from error
        for name in manifest.files:
            if not _FILE.fullmatch(name):
                raise damaged_file(f"{MANIFEST} lists {name[:80]!r}, which is not a file of a checkpoint")
        if STATE not in manifest.files:
            raise damaged_file(f"{MANIFEST} does not list {STATE}")
        try:
            canonical = manifest.encode()
        except RecursionError:  # the meta is nested deeper than any that a checkpoint was saved with
            canonical = b""
        if canonical != data:
            raise damaged_file(f"{MANIFEST} does not match its own digest")
        return manifest


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Candidate:
    """A directory with the name of a checkpoint. Its content may be damaged."""

    path: Path
    step: int


@dataclass(frozen=True)
class CheckpointInfo:
    """The state of one candidate. `damage` is the first error, or None; `verified` means that every byte was read."""

    path: Path
    step: int
    verified: bool
    bytes: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    damage: str | None = None


@dataclass(frozen=True)
class TensorInfo:
    """Type ("F32", "BOOL", ...), shape, and position of the first data byte of one tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def directory_name(step: int) -> str:
    """Return the directory name of the checkpoint of `step`."""
    return f"step-{step:08d}"


def group_file(group: str) -> str:
    """Return the file name of a group of tensors. Raises ValueError if the group name cannot be in a file name."""
    if not _GROUP.fullmatch(group):
        raise ValueError(f"invalid name for a group of tensors: {group!r}")
    return group + SUFFIX


def shard_file(group: str, rank: int, size: int) -> str:
    """Return the file name of the shard of a group that one process writes.

    Args:
        group: name of the group.
        rank: number of the process, from 0.
        size: number of processes.

    Returns:
        The name, such as network-00001-of-00002.safetensors.
    """
    return f"{group_file(group).removesuffix(SUFFIX)}-{rank + 1:05d}-of-{size:05d}{SUFFIX}"


def candidates(directory: Path) -> list[Candidate]:
    """List the candidates in a `checkpoints/` directory, newest step first, without temporary directories."""
    if not os.path.isdir(directory):
        return []
    steps = [int(match[1]) for path in directory.iterdir() if (match := _DIRECTORY.fullmatch(path.name))]
    found = {step: directory / directory_name(step) for step in sorted(steps, reverse=True)}
    return [Candidate(path, step) for step, path in found.items() if os.path.lexists(path)]


def read_manifest(candidate: Candidate) -> Manifest:
    """Read the manifest of a candidate. Raises CheckpointError if it is damaged or does not list exactly the files."""
    if candidate.path.is_symlink() or not candidate.path.is_dir():
        raise damaged_file(f"{candidate.path.name} is not a directory")
    manifest = Manifest.decode(atomic.read_bounded(candidate.path / MANIFEST, MAX_MANIFEST_BYTES))
    if manifest.step != candidate.step:
        raise damaged_file(f"{MANIFEST} belongs to step {manifest.step}")
    # File managers and NFS create hidden files. They are never read.
    present = {path.name for path in candidate.path.iterdir() if not path.name.startswith(".")}
    if missing := manifest.files.keys() - present:
        raise damaged_file(f"{min(missing)} is missing")
    if extra := present - manifest.files.keys() - {MANIFEST}:
        raise damaged_file(f"{min(extra)!r} is not in {MANIFEST}")
    return manifest


def read_header(stream: BufferedReader, path: Path) -> tuple[bytes, dict[str, TensorInfo]]:
    """Read and validate the header of the safetensors file at `path`, which is open as `stream`.

    The header must be strict JSON of at most `MAX_HEADER_BYTES`. The library validates types, shapes and offsets, and
    that the tensors cover the rest of the file without holes or overlap. No tensor data is read.

    Returns:
        The header bytes, and the tensors by name. `stream` is at the first byte of the data.

    Raises:
        CheckpointError: the header is invalid.
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size_of(stream) - 8, MAX_HEADER_BYTES):
        raise damaged_file(f"{path.name} is not a safetensors file, or its header exceeds {MAX_HEADER_BYTES} bytes")
    text = stream.read(length)
    entries = parse_object(text, f"the header of {path.name}")
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise damaged_file(f"{path.name} is not a valid safetensors file ({ascii(str(error))[1:120]})") from error
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        known = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
        if not known or len(entry["shape"]) > _MAX_RANK:
            raise damaged_file(f"{path.name}: tensor {name[:80]!r} has an unknown property or too many dimensions")
    found = {n: TensorInfo(e["dtype"], tuple(e["shape"]), e["data_offsets"][0]) for n, e in entries.items()}
    return prefix + text, found


def verify_file(path: Path, digest: FileDigest) -> None:
    """Raise CheckpointError unless the file has the length, a valid header and the content of the manifest."""
    with atomic.open_regular(path) as stream:
        digest.require_size(stream, path.name)
        if path.name.endswith(SUFFIX):
            read_header(stream, path)
            stream.seek(0)
        digest.require_content(hashlib.file_digest(stream, "sha256").hexdigest(), path.name)


def verify(candidate: Candidate) -> Manifest:
    """Read every byte of a checkpoint and return its manifest. Raises CheckpointError for the first damaged file."""
    try:
        manifest = read_manifest(candidate)
        for name, digest in manifest.files.items():
            verify_file(candidate.path / name, digest)
        parse_object(atomic.read_bounded(candidate.path / STATE, MAX_STATE_BYTES), STATE)
    except OSError as error:
        raise damaged_file(f"{candidate.path.name} cannot be read ({error.strerror})") from error
    return manifest


def inspect(directory: Path, *, contents: bool = False) -> list[CheckpointInfo]:
    """List the checkpoints in a `checkpoints/` directory, newest first, damaged ones included.

    Args:
        directory: the `checkpoints/` directory of a run.
        contents: read every byte instead of the manifests alone. Default: False.
    """
    found = []
    for one in candidates(directory):
        try:
            manifest = verify(one) if contents else read_manifest(one)
            found.append(CheckpointInfo(one.path, one.step, contents, manifest.size, manifest.meta))
        except (CheckpointError, OSError) as error:
            reason = error.message if isinstance(error, CheckpointError) else str(error)
            found.append(CheckpointInfo(one.path, one.step, contents, damage=reason))
    return found


def removable_steps(
    steps: Iterable[int], undamaged: Callable[[int], bool], keep: int, protected: Collection[int] = ()
) -> list[int]:
    """Choose the checkpoints that may be removed.

    A damaged checkpoint does not count as kept, so it never displaces an undamaged one.

    Args:
        steps: the steps of all checkpoints.
        undamaged: decides whether the checkpoint of a step counts. It may read the whole checkpoint, so it is called
            only until enough are found.
        keep: the number of undamaged checkpoints to keep, at least `MIN_KEPT`.
        protected: steps that are never removed. Default: none.

    Returns:
        The steps that may be removed, newest first.

    Raises:
        ValueError: `keep` is less than `MIN_KEPT`.
    """
    if keep < MIN_KEPT:
        raise ValueError(f"keep must be at least {MIN_KEPT}, because the newest checkpoint may be damaged")
    kept, removable = 0, []
    for step in sorted(steps, reverse=True):
        if kept < keep:
            kept += undamaged(step)
        elif step not in protected:
            removable.append(step)
    return removable
