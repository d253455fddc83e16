"""Manifests: which checkpoints of a directory are whole, decided without torch.

A checkpoint is a directory `step-00003000` with one safetensors file a group of tensors, `state.json`, and
`manifest.json`, which is written last and names every other file with its length and sha256, and carries a digest of
itself. A directory without a whole manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import files
from .files import fault
from .tensorfile import read_header

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
        return files.dump_json(body | {"digest": hashlib.sha256(files.dump_json(body)).hexdigest()})


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
    data = files.read_bounded(candidate.path / MANIFEST, MAX_MANIFEST)
    manifest = _decode(files.parse_object(data, MANIFEST))
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
    if files.size_of(stream) != stamp.bytes:
        raise fault(f"{name} has {files.size_of(stream)} bytes, not {stamp.bytes}")


def check_digest(digest: str, name: str, stamp: Stamp) -> None:
    """A fault unless the file's content is what was written."""
    if digest != stamp.sha256:
        raise fault(f"the content of {name} has changed since it was written (sha256)")


def verify_file(path: Path, stamp: Stamp) -> None:
    """A fault unless the file is as long as the manifest says, has a sound header, and its content is unchanged."""
    with files.open_regular(path) as stream:
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
        files.parse_object(files.read_bounded(candidate.path / STATE, MAX_STATE), STATE)
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
