"""Checkpoints: saving loses no checkpoint if the process crashes, and loading skips damaged checkpoints.

`CheckpointStore.save` writes a temporary directory, syncs each file and the manifest last, renames it, syncs the
parent, verifies every byte, and only then removes old checkpoints. `CheckpointStore.load` tries the newest checkpoint
first and returns the first undamaged one. Tensors are safetensors, everything else is JSON, so nothing in a
checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ..errors import CheckpointError, PeerError, ResourceError
from . import atomic
from .atomic import damaged_file
from .manifest import (
    MANIFEST,
    MAX_STATE_BYTES,
    MIN_KEPT,
    STATE,
    Candidate,
    FileDigest,
    Manifest,
    candidates,
    directory_name,
    group_file,
    read_manifest,
    removable_steps,
    shard_file,
    verify,
    verify_file,
)
from .tensor_files import Shapes, Tensors, read_group, split_shards, write_tensors

Expected = Mapping[str, Shapes | None]
OnEvent = Callable[[str, Mapping[str, Any]], None]
RowsOf = Callable[[str, str, Sequence[int]], range | None]

_DIGESTS = TypeAdapter(dict[str, FileDigest])
_STALE = re.compile(r"\.(tmp|old)-(step-\d{8,18})-[0-9a-f]{32}")


class Peers(Protocol):
    """The processes that save one checkpoint together, an interface that `diffkit.runtime.distributed.Ranks`
    implements.
    """

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def exchange(self, text: str = "") -> list[str]:
        """Return the texts of all processes, in order."""

    def together(self) -> AbstractContextManager[None]:
        """Return a context that raises an error of one process on all of them."""


class Alone:
    """The `Peers` of a single process."""

    rank, size = 0, 1

    def exchange(self, text: str = "") -> list[str]:
        """Return the text itself."""
        return [text]

    def together(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


class SaveFailed(ResourceError):  # noqa: N818 - the name of an outcome
    """Raised if a checkpoint was not written. Every older checkpoint is intact, so training can continue and try
    again.
    """

    code = "DK410"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `tensors[group][name]`, the JSON `state`, and the `meta` of its manifest.

    `digest` is the SHA-256 of the manifest, and so of all files.
    """

    step: int
    path: Path
    tensors: Mapping[str, dict[str, Tensor]]
    state: Mapping[str, Any]
    meta: Mapping[str, Any]
    digest: str = ""


class CheckpointStore:
    """The checkpoints of one run.

    Reading needs no lock. A process that saves or cleans must hold the `RunLock` of the run directory.

    Args:
        directory: the `checkpoints/` directory of the run; it may be missing.
        keep: the number of undamaged checkpoints to keep, at least 2. Default: 3.
        on_event: called with a name and fields: `save`, `damaged-checkpoint` (step and reason), `rotate`, and
            `remove-failed`. Default: no call.
    """

    def __init__(self, directory: Path, keep: int = 3, on_event: OnEvent | None = None) -> None:
        if keep < MIN_KEPT:
            raise ValueError(f"keep must be at least {MIN_KEPT}, not {keep}")
        self.directory = Path(directory)
        self.keep = keep
        self._on_event = on_event or (lambda name, fields: None)
        self._undamaged: dict[int, bool] = {}

    def clean(self) -> None:
        """Remove half-written checkpoints after a crash, and restore a half-replaced checkpoint. Call it once at the
        start.

        Raises:
            ResourceError: the directory cannot be written.
        """
        with atomic.writing(self.directory):
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                match = _STALE.fullmatch(path.name)
                if match and match[1] == "old" and not (self.directory / match[2]).exists():
                    path.rename(self.directory / match[2])
                elif match:
                    shutil.rmtree(path)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        protect: Collection[int] = (),
        peers: Peers | None = None,
    ) -> Path:
        """Write and verify the checkpoint of `step`, then remove old checkpoints.

        Several processes that hold shards of the tensors call it together. Each writes its shards, the first one
        publishes, verifies and removes; all of them fail if one does.

        Args:
            step: the step; an existing checkpoint of this step is replaced.
            tensors: named tensors by group (network, ema-0.999, optimizer, ...). Tensors that share memory are
                written separately.
            state: a JSON object.
            meta: a JSON object for the manifest (recipe hash, versions).
            protect: steps whose checkpoints are not removed. Default: none.
            peers: the processes that hold shards. Default: this process has all tensors.

        Returns:
            The directory of the checkpoint.

        Raises:
            SaveFailed: the disk is full or failed. No older checkpoint was changed.
            ValueError: a type of a tensor or a value of `state` or `meta` cannot be stored.
        """
        final, peers = self.directory / directory_name(step), peers or Alone()
        temporary = self.directory / f".tmp-{final.name}-{peers.exchange(uuid.uuid4().hex)[0]}"
        first = peers.rank == 0
        try:
            with peers.together():
                if first and not self.directory.is_dir():
                    self.directory.mkdir(parents=True)
                    atomic.sync_directory(self.directory.parent)
                if first:
                    temporary.mkdir()
            with peers.together():
                files = _write(temporary, tensors, peers)
            shards = [_DIGESTS.validate_json(text) for text in peers.exchange(_DIGESTS.dump_json(files).decode())]
            with peers.together():
                if first:
                    files = {name: digest for part in shards for name, digest in part.items()}
                    manifest = _write_manifest(temporary, step, files, state, meta)
                    self._publish(temporary, final, manifest)
        except (OSError, CheckpointError, PeerError) as error:
            fix = "free some space; every older checkpoint is intact"
            raise SaveFailed(f"the checkpoint of step {step} was not saved: {error}", fix=fix) from error
        finally:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
        if first:
            self._undamaged[step] = True
            self._on_event("save", {"step": step, "bytes": manifest.size})
            self._rotate({step, *protect})
        return final

    def load(
        self,
        expected: Expected | None = None,
        device: torch.device | str = "cpu",
        *,
        state: Mapping[str, Any] | None = None,
        must: bool = False,
        rows: RowsOf | None = None,
    ) -> Checkpoint | None:
        """Return the newest undamaged checkpoint; each damaged one is reported as a `damaged-checkpoint` event.

        Args:
            expected: the groups to read. Each maps to its tensors or shapes, which are compared with the headers
                before data is read, or to None for any content. Default: all groups, any content.
            device: the device of the tensors. Default: "cpu".
            state: an example of the state; see `validate_state`. Default: any state.
            must: raise if there is no checkpoint at all. Default: False.
            rows: the rows of each tensor to keep, see `read_checkpoint`. Default: all.

        Returns:
            The checkpoint; None if there is none at all and `must` is False.

        Raises:
            CheckpointError: checkpoints exist and none can be loaded, or none exists and `must` is True.
        """
        found = candidates(self.directory)
        reasons = []
        for candidate in found:
            try:
                checkpoint = read_checkpoint(candidate, expected, device, rows)
                validate_state(checkpoint.state, state or {}, candidate.step)
            except CheckpointError as error:
                self._undamaged[candidate.step] = False
                reasons.append(f"{candidate.path.name}: {error.message}")
                self._on_event("damaged-checkpoint", {"step": candidate.step, "reason": error.message})
            else:
                self._undamaged[candidate.step] = True
                return checkpoint
        if not found and not must:
            return None
        message = f"none of the {len(found)} checkpoints in {self.directory} can be loaded"
        fix = "start again with --resume never, which keeps the old run under another name"
        raise CheckpointError(
            message if reasons else f"there is no checkpoint in {self.directory}", fix=fix, notes=reasons
        )

    def load_chosen(
        self,
        step: int,
        digest: str,
        expected: Expected | None = None,
        device: torch.device | str = "cpu",
        rows: RowsOf | None = None,
    ) -> Checkpoint:
        """Return the checkpoint that another process has chosen, and no other.

        Args:
            step: its step.
            digest: the SHA-256 of its manifest.
            expected: as for `load`.
            device: the device of the tensors. Default: "cpu".
            rows: as for `load`.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: this process reads another checkpoint of this step, a damaged one, or none.
        """
        path = self.directory / directory_name(step)
        try:
            checkpoint = read_checkpoint(Candidate(path, step), expected, device, rows)
            if checkpoint.digest != digest:
                raise damaged_file(f"{path.name} has another manifest")
        except CheckpointError as error:
            raise CheckpointError(
                f"this process cannot load the checkpoint of step {step} that the first process chose: {error.message}",
                code="DK605",
                fix="put the run directory on a file system that all hosts share, and start again",
                notes=[f"the directory is {self.directory} on {platform.node()}"],
            ) from error
        return checkpoint

    def consolidate(self) -> Path:
        """Replace the shards of the newest undamaged checkpoint by one file for each group; returns its directory.

        Raises:
            CheckpointError: there is no checkpoint, or none can be loaded.
            SaveFailed: the disk is full or failed. The checkpoint is as it was.
        """
        found = self.load(must=True)
        assert found is not None
        self._undamaged.clear()
        kept = {candidate.step for candidate in candidates(self.directory)}
        return self.save(found.step, found.tensors, found.state, found.meta, protect=kept)

    def preflight(self, tensors: Mapping[str, Tensors]) -> None:
        """Raise ResourceError unless the disk has space for two checkpoints of `tensors`, or for one more."""
        one = sum(tensor.numel() * tensor.element_size() for group in tensors.values() for tensor in group.values())
        needed = one * max(1, MIN_KEPT - len(candidates(self.directory)))
        parent = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(parent).free
        if free < needed:
            message = f"checkpoints need {needed / 1e6:.1f} MB, but {self.directory} has {free / 1e6:.1f} MB free"
            raise ResourceError(message, code="DK411", fix="free some space or choose another --out")

    def _publish(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        """Rename a complete temporary directory and verify it; restore a replaced checkpoint if that fails."""
        if not final.exists():
            temporary.rename(final)
            atomic.sync_directory(self.directory)
            verify(Candidate(final, manifest.step))
        elif (present := _verified(Candidate(final, manifest.step))) is None or present.encode() != manifest.encode():
            aside = final.with_name(f".old-{final.name}-{uuid.uuid4().hex}")
            final.rename(aside)
            try:
                self._publish(temporary, final, manifest)
            except (OSError, CheckpointError):
                shutil.rmtree(final, ignore_errors=True)
                aside.rename(final)
                raise
            shutil.rmtree(aside)

    def _rotate(self, protected: Collection[int]) -> None:
        """Remove old checkpoints. Each is renamed first, so that a half-removed checkpoint is never loaded."""
        paths = {candidate.step: candidate.path for candidate in candidates(self.directory)}
        removed = []
        for step in removable_steps(paths, self._is_undamaged, self.keep, protected):
            temporary = paths[step].with_name(f".tmp-{paths[step].name}-{uuid.uuid4().hex}")
            try:
                paths[step].rename(temporary)
                shutil.rmtree(temporary)
            except OSError as error:
                self._on_event("remove-failed", {"step": step, "reason": error.strerror})
            else:
                removed.append(step)
        if removed:
            self._on_event("rotate", {"removed": sorted(removed)})

    def _is_undamaged(self, step: int) -> bool:
        if step not in self._undamaged:
            self._undamaged[step] = _verified(Candidate(self.directory / directory_name(step), step)) is not None
        return self._undamaged[step]


def _verified(candidate: Candidate) -> Manifest | None:
    """Return the manifest of a checkpoint after verification of every byte; None if it is damaged."""
    try:
        return verify(candidate)
    except CheckpointError:
        return None


def read_checkpoint(
    candidate: Candidate,
    expected: Expected | None = None,
    device: torch.device | str = "cpu",
    rows: RowsOf | None = None,
) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Args:
        candidate: the checkpoint.
        expected: the groups to read, see `CheckpointStore.load`; other groups are only verified.
        device: the device of the tensors. Default: "cpu".
        rows: returns the rows of a tensor to keep, by group, name and whole shape; None means all. Default: all.

    Returns:
        The checkpoint, with the tensors of the groups in `expected`.

    Raises:
        CheckpointError: names the first damaged file.
    """
    try:
        manifest = read_manifest(candidate)
        wanted: Expected = dict.fromkeys(manifest.groups) if expected is None else expected
        for group in wanted:
            if group not in manifest.groups:
                raise damaged_file(f"group {group!r} is missing; groups: {', '.join(manifest.groups)}")
        state = atomic.read_bounded(candidate.path / STATE, MAX_STATE_BYTES)
        manifest.files[STATE].require_content(hashlib.sha256(state).hexdigest(), STATE)
        tensors = {}
        for group, names in manifest.groups.items():
            files = {candidate.path / name: manifest.files[name] for name in names}
            if group in wanted:
                named = read_group(files, wanted[group], partial(rows, group) if rows is not None else None)
                tensors[group] = {name: tensor.to(device) for name, tensor in named.items()}
            else:
                for path, digest in files.items():
                    verify_file(path, digest)
    except OSError as error:
        raise damaged_file(f"{candidate.path.name} cannot be read ({error.strerror})") from error
    sha256 = hashlib.sha256(manifest.encode()).hexdigest()
    return Checkpoint(candidate.step, candidate.path, tensors, atomic.parse_object(state, STATE), manifest.meta, sha256)


def _write(directory: Path, tensors: Mapping[str, Tensors], peers: Peers) -> dict[str, FileDigest]:
    """Write and sync the files of tensors of this process; returns their digests by name."""
    files = {}
    for group, named in tensors.items():
        parts = split_shards(named)
        sharded = peers.size > 1 and parts.sharded
        name = shard_file(group, peers.rank, peers.size) if sharded else group_file(group)
        own = parts.sharded | (parts.whole if peers.rank == 0 else {})
        if sharded or peers.rank == 0:
            files[name] = write_tensors(directory / name, own)
    return files


def _write_manifest(
    directory: Path, step: int, files: Mapping[str, FileDigest], state: Mapping[str, Any], meta: Mapping[str, Any]
) -> Manifest:
    """Write and sync the state, and the manifest of all files last."""
    text = atomic.dump_json(dict(state))
    atomic.write_synced(directory / STATE, text)
    digest = FileDigest(len(text), hashlib.sha256(text).hexdigest())
    manifest = Manifest(step, {**files, STATE: digest}, meta)
    atomic.write_synced(directory / MANIFEST, manifest.encode())
    atomic.sync_directory(directory)
    return manifest


def validate_state(state: Mapping[str, Any], example: Mapping[str, Any], step: int) -> None:
    """Raise CheckpointError unless `state` has everything that `example` has, with the same JSON types.

    Args:
        state: the state of a checkpoint.
        example: a state with the required names. Integers and floats are one type. A mapping that is empty in the
            example may hold numbers or null under any name.
        step: the value that `state["step"]` must have, if the example has a step.
    """
    _validate(state, example, "state")
    if "step" in example and state["step"] != step:
        raise damaged_file(f"state.step is {str(state['step'])[:40]} in a checkpoint of step {step}")


def _validate(state: Mapping[str, Any], example: Mapping[str, Any], path: str) -> None:
    for name, want in example.items():
        where = f"{path}.{name}"
        if name not in state:
            raise damaged_file(f"{where} is missing")
        have = state[name]
        if _json_type(have) is not _json_type(want):
            raise damaged_file(f"{where} must be {type(want).__name__}, not {type(have).__name__}")
        if isinstance(want, Mapping) and want:
            _validate(have, want, where)
        elif isinstance(want, Mapping) and not all(v is None or _json_type(v) is float for v in have.values()):
            raise damaged_file(f"{where} may hold numbers only")


def _json_type(value: object) -> type:
    return float if type(value) is int else list if isinstance(value, tuple) else type(value)
