"""Checkpoints: saved so that a crash at any moment loses none, loaded so that damage is found and never trusted.

Saving writes a temporary sibling, syncs each file, the manifest last, syncs, renames, syncs the parent, reads
everything back, and only then removes old ones. Loading goes from the newest to the oldest and takes the first that
is whole. Tensors are safetensors, everything else is JSON; nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ResourceError
from . import atomic
from .atomic import fault
from .manifest import (
    LEAST,
    MANIFEST,
    MAX_STATE,
    STATE,
    Candidate,
    Manifest,
    Stamp,
    candidates,
    check_digest,
    directory_name,
    group_file,
    read_manifest,
    superfluous,
    verify,
    verify_file,
)
from .tensor_files import Shapes, Tensors, read_tensors, write_tensors

Expected = Mapping[str, Shapes | None]
OnEvent = Callable[[str, Mapping[str, Any]], None]

_STALE = re.compile(r"\.(tmp|old)-(step-\d{8,18})-[0-9a-f]{32}")


class SaveFailed(ResourceError):  # noqa: N818 - it says what happened
    """A checkpoint could not be written; every older one is untouched, so training may go on and try again."""

    code = "DK410"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `tensors[group][name]`, the JSON `state`, and the `meta` of its manifest."""

    step: int
    path: Path
    tensors: Mapping[str, dict[str, Tensor]]
    state: Mapping[str, Any]
    meta: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in `directory`; `keep` >= 2 whole ones stay.

    `on_event(name, fields)` is told of `save`, `fault` (one that was passed over, and why) and `rotate`. Reading needs
    nothing; whoever saves or cleans must hold the lock of the run directory.
    """

    def __init__(self, directory: Path, keep: int = 3, on_event: OnEvent | None = None) -> None:
        if keep < LEAST:
            raise ValueError(f"keep must be at least {LEAST}, not {keep}")
        self.directory = Path(directory)
        self.keep = keep
        self._on_event = on_event or (lambda name, fields: None)
        self._whole: dict[int, bool] = {}

    def clean(self) -> None:
        """Remove what a crash left half-written, and put back what it left half-replaced. Call it once, at the start.

        Raises: ResourceError where the directory cannot be written.
        """
        try:
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                match = _STALE.fullmatch(path.name)
                if match and match[1] == "old" and not (self.directory / match[2]).exists():
                    path.rename(self.directory / match[2])
                elif match:
                    shutil.rmtree(path)
        except OSError as error:
            raise ResourceError(
                f"cannot clean {self.directory}: {error}", code="DK412", fix="make the directory writable"
            ) from error

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        protect: Collection[int] = (),
    ) -> Path:
        """Write the checkpoint of `step` and return its directory, once it is on the disk and was read back whole.

        `tensors` maps a group (network, ema-0.999, optimizer, ...) to its named tensors; `state` is JSON; `meta` goes
        to the manifest (recipe hash, versions); the checkpoints of the steps in `protect` are not rotated away.
        Raises: SaveFailed where the disk is full or fails: then nothing older was touched.
        """
        final = self.directory / directory_name(step)
        temporary = self.directory / f".tmp-{final.name}-{uuid.uuid4().hex}"
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True)
                atomic.sync_directory(self.directory.parent)
            manifest = _write(temporary, step, tensors, state, meta)
            self._publish(temporary, final, manifest)
        except (OSError, CheckpointError) as error:
            raise SaveFailed(
                f"the checkpoint of step {step} was not saved: {error}",
                fix="free some space; every older checkpoint is intact",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._whole[step] = True
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
    ) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none of any kind and `must` is not set.

        `expected` maps each group that is wanted to its tensors, real ones or shapes (None: whatever it holds); they
        are compared with the headers before anything is read. Without it every group is read. `state` is an example:
        what it has must be there, of the same JSON types. Each checkpoint that is passed over is reported to
        `on_event` as a `fault`.
        Raises: CheckpointError where candidates exist and none loads, or where none exists and `must` is set.
        """
        found = candidates(self.directory)
        reasons = []
        for candidate in found:
            try:
                checkpoint = read_checkpoint(candidate, expected, device)
                check_state(checkpoint.state, state or {}, candidate.step)
            except CheckpointError as error:
                self._whole[candidate.step] = False
                reasons.append(f"{candidate.path.name}: {error.message}")
                self._on_event("fault", {"step": candidate.step, "reason": error.message})
            else:
                self._whole[candidate.step] = True
                return checkpoint
        if not reasons and not must:
            return None
        message = f"none of the {len(found)} checkpoints in {self.directory} can be loaded"
        raise CheckpointError(
            message if reasons else f"there is no checkpoint in {self.directory}",
            fix="start again with --resume never, which keeps the old run under another name",
            notes=reasons,
        )

    def preflight(self, tensors: Mapping[str, Tensors]) -> None:
        """Raise ResourceError unless the disk has room for what is about to be saved: two checkpoints, or one more."""
        one = sum(tensor.numel() * tensor.element_size() for group in tensors.values() for tensor in group.values())
        needed = one * max(1, LEAST - len(candidates(self.directory)))
        parent = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(parent).free
        if free < needed:
            raise ResourceError(
                f"checkpoints need {needed / 1e6:.1f} MB, and {self.directory} has {free / 1e6:.1f} MB free",
                code="DK411",
                fix="free some space or choose another --out",
            )

    def _publish(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        """Give a complete temporary its name and read it back; one of the same step is put aside until then."""
        if not final.exists():
            temporary.rename(final)
            atomic.sync_directory(self.directory)
            verify(Candidate(final, manifest.step))
        elif not self._same(final, manifest):
            aside = final.with_name(f".old-{final.name}-{uuid.uuid4().hex}")
            final.rename(aside)
            try:
                self._publish(temporary, final, manifest)
            except (OSError, CheckpointError):
                shutil.rmtree(final, ignore_errors=True)
                aside.rename(final)
                raise
            shutil.rmtree(aside)

    def _same(self, final: Path, manifest: Manifest) -> bool:
        try:
            return verify(Candidate(final, manifest.step)).encode() == manifest.encode()
        except CheckpointError:
            return False

    def _rotate(self, protect: Collection[int]) -> None:
        paths = {candidate.step: candidate.path for candidate in candidates(self.directory)}
        removed = []
        for step in superfluous(paths, self._is_whole, self.keep, protect):
            grave = paths[step].with_name(f".tmp-{paths[step].name}-{uuid.uuid4().hex}")
            try:
                paths[step].rename(grave)  # one atomic step, so that no half-removed checkpoint is ever a candidate
                shutil.rmtree(grave)
            except OSError as error:
                self._on_event("fault", {"step": step, "reason": f"could not be removed ({error.strerror})"})
            else:
                removed.append(step)
        if removed:
            self._on_event("rotate", {"removed": sorted(removed)})

    def _is_whole(self, step: int) -> bool:
        if step not in self._whole:
            try:
                verify(Candidate(self.directory / directory_name(step), step))
            except CheckpointError:
                self._whole[step] = False
            else:
                self._whole[step] = True
        return self._whole[step]


def read_checkpoint(
    candidate: Candidate, expected: Expected | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """One checkpoint, every byte of it verified; what `expected` names is read, the rest only verified.

    Raises: CheckpointError that names the first fault.
    """
    try:
        manifest = read_manifest(candidate)
        wanted: Expected = dict.fromkeys(manifest.groups) if expected is None else expected
        for group in wanted:
            if group not in manifest.groups:
                raise fault(f"there is no group {group!r}; there are: {', '.join(manifest.groups)}")
        state = atomic.read_bounded(candidate.path / STATE, MAX_STATE)
        check_digest(hashlib.sha256(state).hexdigest(), STATE, manifest.files[STATE])
        tensors = {}
        for group in manifest.groups:
            path, stamp = candidate.path / group_file(group), manifest.files[group_file(group)]
            if group in wanted:
                tensors[group] = read_tensors(path, stamp, wanted[group], device)
            else:
                verify_file(path, stamp)
    except OSError as error:
        raise fault(f"{candidate.path.name} cannot be read ({error.strerror})") from error
    return Checkpoint(candidate.step, candidate.path, tensors, atomic.parse_object(state, STATE), manifest.meta)


def _write(
    directory: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], meta: Mapping[str, Any]
) -> Manifest:
    """Write every file of a checkpoint, the manifest last, all on the disk when this returns."""
    directory.mkdir()
    stamps = {}
    for group, named in tensors.items():
        stamps[group_file(group)] = write_tensors(directory / group_file(group), named)
    text = atomic.dump_json(dict(state))
    atomic.write_synced(directory / STATE, text)
    stamps[STATE] = Stamp(len(text), hashlib.sha256(text).hexdigest())
    manifest = Manifest(step, stamps, meta)
    atomic.write_synced(directory / MANIFEST, manifest.encode())
    atomic.sync_directory(directory)
    return manifest


def check_state(state: Mapping[str, Any], example: Mapping[str, Any], step: int) -> None:
    """A fault unless `state` has all that `example` has, of the same JSON types; a `step` in it must be `step`.

    Integers and other numbers are one type. A mapping that is empty in the example may hold numbers under any name,
    or null for those that JSON does not have.
    """
    _check(state, example, "state")
    if "step" in example and state["step"] != step:
        raise fault(f"state.step is {str(state['step'])[:40]} in a checkpoint of step {step}")


def _check(state: Mapping[str, Any], example: Mapping[str, Any], path: str) -> None:
    for name, want in example.items():
        where = f"{path}.{name}"
        if name not in state:
            raise fault(f"{where} is missing")
        have = state[name]
        if _kind(have) is not _kind(want):
            raise fault(f"{where} is a {type(have).__name__} where a {type(want).__name__} is expected")
        if isinstance(want, Mapping) and want:
            _check(have, want, where)
        elif isinstance(want, Mapping) and not all(v is None or _kind(v) is float for v in have.values()):
            raise fault(f"{where} holds something else than numbers")


def _kind(value: object) -> type:
    return float if type(value) is int else list if isinstance(value, tuple) else type(value)
