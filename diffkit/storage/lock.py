"""Locks: one process writes at a time to a run directory, by its file LOCK, or encodes into a folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import LockedError, ResourceError
from .atomic import require_regular, writing

LOCK = "LOCK"
_MAX_LOCK_BYTES = 4096
_WAIT_FOR_NAME_SECONDS = 0.5
_HELD: dict[int, int] = {}  # process that opened a lock file, by file descriptor


def close_inherited_locks() -> None:
    """Close the lock files that a forked process inherited, so that it does not hold a run whose process has ended.

    Data workers call it when they start. The command line program also registers it as a hook for every fork.
    """
    for handle, process in list(_HELD.items()):
        if process != os.getpid():
            del _HELD[handle]
            os.close(handle)


@dataclass(frozen=True)
class LockHolder:
    """The content of a LOCK: the process that holds it or held it last. `since` is a time in UTC."""

    run_id: str
    host: str
    pid: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @classmethod
    def current(cls) -> LockHolder:
        """Describe this process, with a new run id."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, platform.node(), str(os.getpid()), now)

    @classmethod
    def read(cls, handle: int) -> LockHolder | None:
        """Read an open LOCK. Returns None if it is empty or damaged."""
        try:
            found = json.loads(os.pread(handle, _MAX_LOCK_BYTES, 0))
            return cls(*(str(found[field.name])[:80] for field in fields(cls)))
        except (OSError, ValueError, RecursionError, TypeError, KeyError):
            return None


class RunLock:
    """The exclusive right to write to a run directory, from construction until `release`.

    The kernel releases it when the process ends, however it ends. If flock has no effect, as on some network file
    systems, `require_held` still detects another run from the id in the file.

    Args:
        directory: the run directory, which must exist.

    Raises:
        LockedError: another process holds the lock; the message names its host and process id.
        ResourceError: the file cannot be written, or the file system does not support locks.
        CheckpointError: the file is not a regular file.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self.holder = LockHolder.current()
        self._handle: int | None = self._acquire()
        _HELD[self._handle] = os.getpid()
        text = (json.dumps(asdict(self.holder)) + "\n").encode()
        try:
            with writing(self.path):
                os.pwrite(self._handle, text, 0)
                os.ftruncate(self._handle, len(text))
        except ResourceError:
            self.release()
            raise

    def _acquire(self) -> int:
        while True:
            with writing(self.path):
                try:
                    handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
                except FileNotFoundError as error:  # its present writer renames the directory
                    raise self._in_use(None) from error
            require_regular(handle, self.path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_path(handle):
                    return handle
            except OSError as error:
                holder = _wait_for_holder(handle)
                os.close(handle)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise self._in_use(holder) from error
                reason = f"{self.path.parent} is on a file system without locks ({error.strerror})"
                raise ResourceError(reason, code="DK412", fix="choose an --out on a local disk") from error
            os.close(handle)

    def _in_use(self, holder: LockHolder | None) -> LockedError:
        fix = "wait for it, stop it, or choose another --out"
        return LockedError(f"{self.path.parent} is in use by {holder or 'another process'}", fix=fix)

    def _is_at_path(self, handle: int) -> bool:
        """Return whether the open file is still at the path; if the directory was renamed, it is another run's lock."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        here = os.fstat(handle)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def require_held(self) -> None:
        """Raise unless this process still holds the directory. Called before each save.

        Raises:
            LockedError: another run took the directory over.
            ResourceError: the directory was removed or renamed.
        """
        if not self.path.parent.is_dir():
            fix = "restore the directory, or check its disk"
            raise ResourceError(f"{self.path.parent} does not exist any more", code="DK412", fix=fix)
        holder = read_holder(self.path)
        if holder is None or holder.run_id != self.holder.run_id:
            reason = f"{self.path.parent} was taken over by {holder or 'another process'}"
            raise LockedError(reason, fix="stop one of the two runs")

    def release(self) -> None:
        """Release the lock. The file stays, because its removal would race with the next writer."""
        if self._handle is not None and self._handle in _HELD:
            del _HELD[self._handle]
            os.close(self._handle)
        self._handle = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Wait until no other process is inside this context of the same file; for short work, such as a rename. The file
    stays.

    Raises OSError if the file cannot be opened or its file system does not support locks.
    """
    handle = _opened(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def locked(path: Path) -> int | None:
    """Lock a file until the handle is closed, or this process ends. Returns None if another process has locked it.

    Raises OSError as `exclusively` does.
    """
    handle = _opened(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        raise
    return handle


def _opened(path: Path) -> int:
    """Create or open a file to write, since network file systems lock only such files exclusively."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def read_holder(path: Path) -> LockHolder | None:
    """Read the LOCK at `path`. Returns None if it is missing, empty or damaged."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return LockHolder.read(handle)
    finally:
        os.close(handle)


def _wait_for_holder(handle: int) -> LockHolder | None:
    """Read the holder; a process that has just taken the lock may not have written its name yet, so wait a moment."""
    deadline = time.monotonic() + _WAIT_FOR_NAME_SECONDS
    while (holder := LockHolder.read(handle)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return holder
