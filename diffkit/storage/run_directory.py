"""The run directory: its layout, and the rules for starting a run in it or resuming one.

    runs/<name>/  recipe.yaml  effective.yaml  environment.json  metrics.jsonl  events.jsonl  results.json  report.html
                  checkpoints/  samples/  likelihood/  LOCK

Torch is not imported here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..errors import ArgumentError, CheckpointError, RecipeError, UsageError
from . import atomic
from .jsonl import EVENTS, METRICS
from .lock import LOCK, RunLock
from .manifest import candidates

Resume = Literal["auto", "never", "must"]
Record = TypeVar("Record", bound=BaseModel)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HALF_WRITTEN = re.compile(r"\.tmp-.+-[0-9a-f]{32}")
_MAX_NAME_LENGTH = 64
_MAX_TEXT_BYTES, _MAX_JSON_BYTES = 1 << 20, 8 << 20
SAMPLES, TRAJECTORY, GRID = "samples.npz", "trajectory.npz", "grid.png"
RECIPE, EFFECTIVE, ENVIRONMENT = "recipe.yaml", "effective.yaml", "environment.json"


MEANING = (
    *("seed", "data", "conditions", "codec", "schedule", "parameterization", "network", "objective"),
    *("train.ema", "train.init", "train.strict_init", "train.optimizer.name"),
)
"""The values of a recipe that determine what is trained: a run with other values of them is another run."""


@dataclass(frozen=True)
class _File:
    """Attribute of a `RunDirectory`: the path of one of its files. Raises UsageError if the path is a symbolic link."""

    file: str

    def __get__(self, run: RunDirectory, owner: type[RunDirectory]) -> Path:
        return run._inside(self.file)


@dataclass(frozen=True)
class RunDirectory:
    """The paths of the files of one run. Creating the object reads and writes nothing.

    Raises:
        UsageError: the last part of `path` is not a valid run name, or `path` is a symbolic link.
    """

    path: Path
    recipe = _File(RECIPE)
    """The recipe as the user wrote it."""
    effective = _File(EFFECTIVE)
    """The recipe with all defaults."""
    environment = _File(ENVIRONMENT)
    """Versions, plugins, hardware, threads and git commit of the last start."""
    metrics = _File(METRICS)
    """One JSON line for each log point."""
    events = _File(EVENTS)
    """One JSON line for each event."""
    checkpoints = _File("checkpoints")
    """The directory of the checkpoints."""
    samples = _File("samples")
    """The directory of the samples."""
    likelihood = _File("likelihood")
    """The directory of the terms of likelihoods."""
    results = _File("results.json")
    """The results of the evaluation."""
    report = _File("report.html")
    """The report."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not RUN_NAME.fullmatch(self.path.name):
            allowed = "at most 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
            fix = "choose another name: or --out"
            raise UsageError(f"invalid run name {self.path.name!r}", code="DK611", choices=allowed, fix=fix)
        if os.path.islink(self.path):
            raise _link(self.path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Return the run directory at `path`. Raises UsageError if there is none, ArgumentError for a wrong type."""
        run = cls(as_path(path, "argument 1 (`path`)"))
        if not run.exists:
            raise UsageError(f"{path} is not a run directory", code="DK612", fix="list the runs: diffkit ls runs")
        return run

    @property
    def exists(self) -> bool:
        """Whether the directory contains a run: effective.yaml exists, which is written last when a run starts.

        Raises UsageError if the directory cannot be read.
        """
        try:
            return stat.S_ISREG(os.lstat(self.effective).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def effective_text(self) -> str:
        """Return the text of effective.yaml.

        Raises:
            UsageError: the file cannot be opened.
            CheckpointError: it is not a file of UTF-8 text.
        """
        try:
            return atomic.read_bounded(self.effective, _MAX_TEXT_BYTES).decode()
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise _unreadable(self.effective, error.__cause__) from error
            raise self._damaged(error.message) from error
        except UnicodeDecodeError as error:
            raise self._damaged(f"{EFFECTIVE} is not UTF-8 text") from error

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.path.name

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if os.path.islink(path):
            raise _link(path)
        return path

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Replace a JSON file of this run atomically. Raises ResourceError if it cannot be written."""
        return self.write_bytes(name, atomic.dump_json(dict(value)))

    def write_text(self, name: str, text: str) -> Path:
        """Replace a text file of this run atomically. Raises ResourceError if it cannot be written."""
        return self.write_bytes(name, text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of this run, empty if the file is missing. Raises CheckpointError if it is damaged."""
        path = self._inside(name)
        if not os.path.lexists(path):
            return {}
        return atomic.parse_object(atomic.read_bounded(path, _MAX_JSON_BYTES), name, atomic.MAX_RECORD_VALUES)

    def read_record(self, name: str, kind: type[Record], fix: str) -> Record:
        """Read a JSON file of this run as a pydantic model.

        Args:
            name: the name of the file; a missing file counts as an empty object.
            kind: the model.
            fix: the advice if the file is damaged.

        Returns:
            The model.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return kind.model_validate(self.read_json(name))
        except ValidationError as error:
            raise self._damaged(f"{name} is damaged: {atomic.first_fault(error)}", fix) from error
        except CheckpointError as error:
            raise self._damaged(error.message, fix) from error

    def _damaged(self, reason: str, fix: str = "restore the file from a backup") -> CheckpointError:
        """Return the error for a damaged file, whose name `reason` begins with."""
        return CheckpointError(f"{self.path}/{reason}", code="DK601", fix=fix)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Replace a file of this run atomically. Raises ResourceError if it cannot be written."""
        path = self._inside(name)
        with atomic.writing(path):
            path.parent.mkdir(exist_ok=True)
            atomic.replace(path, data)
        return path


@dataclass(frozen=True)
class OpenRun:
    """A locked run directory, as a context that releases the lock.

    `resumed` is True if the directory contained the run already. `changes` lists the differences to the environment of
    the last start, `recipe_changes` those to its recipe. `renamed` is the new path of an old run that was moved away.
    """

    directory: RunDirectory
    lock: RunLock
    resumed: bool
    changes: tuple[str, ...] = ()
    recipe_changes: tuple[str, ...] = ()
    renamed: Path | None = None

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def begin(
    path: Path | str,
    recipe: str,
    effective: str,
    environment: Mapping[str, Any],
    resume: Resume = "auto",
    *,
    parse: Callable[[str], object],
) -> OpenRun:
    """Create the run directory at `path`, or open an existing one to resume it, and lock it. Nothing is deleted.

    Args:
        path: the run directory; its last part is the name of the run.
        recipe: the text of recipe.yaml, as the user wrote it.
        effective: the text of effective.yaml, the recipe with all defaults.
        environment: the content of environment.json.
        resume: "auto" resumes a run of the same recipe, or starts one; "must" requires a checkpoint to resume from;
            "never" renames an existing run to NAME.1, NAME.2, ... and starts a new one. The recipe of an existing run
            may change in all that is not `MEANING`, such as more steps; its files are then replaced.
        parse: converts the text of effective.yaml to plain values, by which two recipes are compared.

    Returns:
        The open run. Its `__exit__` releases the lock.

    Raises:
        LockedError: another process writes to the directory.
        RecipeError: the directory holds a run whose recipe has another meaning; the notes list the differences.
        CheckpointError: `resume` is "must" and there is no checkpoint.
        UsageError: `path` is a symbolic link, has an invalid name, or is a directory of something else.
        ResourceError: the directory cannot be written.
    """
    if resume not in get_args(Resume):
        raise UsageError(f"unknown resume mode {resume!r}", code="DK010", choices=get_args(Resume))
    run = RunDirectory(Path(path))
    if resume == "must" and not (run.exists and candidates(run.checkpoints)):
        raise CheckpointError(f"{run.path} holds no checkpoint to resume from", fix="leave out --resume must")
    _make(run.path)
    lock, renamed = RunLock(run.path), None
    try:
        if run.exists and resume == "never":
            renamed, lock = _move_away(run, lock)
        if run.exists:
            recipe_changes = _recipe_changes(run, effective, parse)
            _clean(run)
            changes = _environment_changes(run, environment)
            run.write_json(ENVIRONMENT, environment)
            if recipe_changes:
                run.write_text(RECIPE, recipe)
                run.write_text(EFFECTIVE, effective)
            return OpenRun(run, lock, resumed=True, changes=changes, recipe_changes=recipe_changes)
        _refuse_foreign(run)
        run.write_text(RECIPE, recipe)
        run.write_json(ENVIRONMENT, environment)
        run.write_text(EFFECTIVE, effective)
        return OpenRun(run, lock, resumed=False, renamed=renamed)
    except BaseException:
        lock.release()
        raise


def _clean(run: RunDirectory) -> None:
    """Remove half-written files of a crashed process."""
    for folder in (run.path, run.samples):
        for path in folder.glob(".tmp-*") if folder.is_dir() else ():
            if _HALF_WRITTEN.fullmatch(path.name):
                with contextlib.suppress(OSError):  # a leftover file is harmless
                    path.unlink()


def _environment_changes(run: RunDirectory, environment: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(difference(run.read_json(ENVIRONMENT), environment))
    except CheckpointError as error:  # results do not depend on this file, so damage to it stops no run
        return (f"the environment of the last start is unknown: {error.message}",)


def _make(path: Path) -> None:
    """Create the directory if it is missing; another process may rename it meanwhile."""
    for place in path.parents:
        if os.path.islink(place) and not os.path.exists(place):
            fix = f"create {os.path.realpath(place)}, or choose another --out"
            raise UsageError(f"{place} is a symbolic link to a missing directory", code="DK614", fix=fix)
    with atomic.writing(path):
        while True:
            try:
                path.mkdir(parents=True)
                return
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):  # renamed since mkdir: try again
                    if stat.S_ISDIR(os.stat(path).st_mode):
                        return
                    raise


def _move_away(run: RunDirectory, lock: RunLock) -> tuple[Path, RunLock]:
    """Rename the old run, which stays locked, and lock a new directory in its place."""
    suffixes = (f".{number}" for number in itertools.count(1))
    targets = (run.path.with_name(run.name[: _MAX_NAME_LENGTH - len(suffix)] + suffix) for suffix in suffixes)
    target = next(path for path in targets if not os.path.lexists(path))
    with atomic.writing(run.path):
        run.path.rename(target)
        atomic.sync_directory(run.path.parent)
    _make(run.path)
    fresh = RunLock(run.path)
    lock.release()
    return target, fresh


def _recipe_changes(run: RunDirectory, effective: str, parse: Callable[[str], object]) -> tuple[str, ...]:
    """Return the differences to the recipe of an existing run. Raises RecipeError if it cannot continue with them."""
    old, new = parse(run.effective_text()), parse(effective)
    changes = difference(old, new)
    refused = [line for line in changes if _changes_meaning(line.partition(": ")[0], old, new)]
    if refused:
        fix = f"--out another directory, or --resume never, which renames the old run to {run.name}.1"
        raise RecipeError(f"{run.path} holds a run of another recipe", code="DK613", notes=refused, fix=fix)
    return tuple(changes)


def _changes_meaning(path: str, old: object, new: object) -> bool:
    """Return whether a run with another value at `path` is another run; data that has moved is the same data."""
    section, _, option = path.partition(".")
    before, now = (_data_option(tree, option) for tree in (old, new))
    if section == "data" and isinstance(before, str) and isinstance(now, str) and os.path.isabs(now):
        return False
    return any(path == name or path.startswith(f"{name}.") for name in MEANING)


def _data_option(recipe: object, name: str) -> object:
    data = recipe.get("data") if isinstance(recipe, Mapping) else None
    return data.get(name) if isinstance(data, Mapping) else None


def _refuse_foreign(run: RunDirectory) -> None:
    """Raise UsageError unless the directory is empty, or contains only files of a crash during `begin`."""
    ours = {LOCK, RECIPE, ENVIRONMENT}
    foreign = sorted(path.name for path in run.path.iterdir() if path.name not in ours and path.name[0] != ".")
    if foreign:
        message = f"{run.path} is not a run directory and is not empty (it holds {foreign[0]!r})"
        raise UsageError(message, code="DK612", fix="choose another --out")


def runs_in(root: Path) -> list[RunDirectory]:
    """List the runs in the directory `root`, sorted by name, without symbolic links.

    A directory that cannot be read is listed as well. Raises UsageError if `root` cannot be read.
    """
    if not os.path.isdir(root):
        return []
    try:
        names = sorted(name for name in os.listdir(root) if RUN_NAME.fullmatch(name))
    except OSError as error:
        raise _unreadable(root, error) from error
    return [RunDirectory(root / name) for name in names if _may_be_run(root / name)]


def _may_be_run(path: Path) -> bool:
    try:
        return not path.is_symlink() and stat.S_ISREG(os.lstat(path / EFFECTIVE).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _unreadable(path: Path, error: OSError) -> UsageError:
    message = f"{path} cannot be read: {error.strerror}"
    return UsageError(message, code="DK612", fix="check the path and the permissions of the directory")


def _link(path: Path) -> UsageError:
    fix = "pass the path of the directory itself"
    return UsageError(f"{path} is a symbolic link", code="DK614", fix=fix)


def as_path(path: object, argument: str) -> Path:
    """Return `path` as a Path. Raises ArgumentError, which names the argument, if it is neither text nor a path."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError.of(argument, "the path of a run directory", path, 'pass a path, such as "runs/digits"')
    return Path(path)


def difference(old: object, new: object, path: str = "") -> list[str]:
    """List the differences of two plain values.

    Args:
        old: the value before: mappings, lists, strings, numbers, booleans and None.
        new: the value after.
        path: the dotted path of both values. Default: the root.

    Returns:
        One line for each difference, such as `train.steps: 100 -> 200`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in new:
                lines.append(f"{below}: {_shown(old[key])} -> (absent)")
            elif key not in old:
                lines.append(f"{below}: (absent) -> {_shown(new[key])}")
            else:
                lines += difference(old[key], new[key], below)
        return lines
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [f"{path}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
