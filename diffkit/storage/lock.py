"""One writer at a time: the LOCK of a run directory."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import platform
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import LockedError, ResourceError

LOCK = "LOCK"
_LONGEST = 4096
_PATIENCE_SECONDS = 0.5

_HELD: dict[int, int] = {}  # process that opened a lock file, by file descriptor


def close_inherited_locks() -> None:
    """Close the lock files that a forked process inherited, so that it does not hold a run whose process has ended.

    Data workers call it when they start. The command line program also registers it as a hook for every fork.
    """
    for handle, process in list(_HELD.items()):
        if process != os.getpid():
            del _HELD[handle]
            os.close(handle)


class RunLock:
    """The exclusive right to write to `directory`, from construction until `release`.

    The kernel frees it when the process ends, however it ends. Where flock means nothing (some network file systems)
    `require_held` still notices that another run has written its id into the file.
    Raises: LockedError that names host and process of the holder, ResourceError where the file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        self.run_id = uuid.uuid4().hex
        self.path = directory / LOCK
        self._handle: int | None = self._acquire()
        _HELD[self._handle] = os.getpid()
        about = {"run_id": self.run_id, "host": platform.node(), "pid": os.getpid(), "since": _now()}
        try:
            text = (json.dumps(about) + "\n").encode()
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))
        except OSError as error:
            self.release()
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror}",
                code="DK412",
                fix="free some space, or choose another --out",
            ) from error

    def _acquire(self) -> int:
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError as error:  # the directory is being renamed by its present writer
                raise LockedError(
                    f"{self.path.parent} is in use by another process", fix="wait for it, or choose another --out"
                ) from error
            except OSError as error:
                raise ResourceError(
                    f"cannot open {self.path}: {error.strerror}",
                    code="DK412",
                    fix="make the directory writable, or choose another --out",
                ) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(handle):
                    return handle
            except OSError as error:
                holder = _holder(handle)
                os.close(handle)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ResourceError(
                        f"{self.path.parent} is on a file system without locks ({error.strerror})",
                        code="DK412",
                        fix="choose an --out on a local disk",
                    ) from error
                raise LockedError(
                    f"{self.path.parent} is in use by {holder}",
                    fix="wait for it, stop it, or choose another --out",
                ) from error
            os.close(handle)

    def _is_current(self, handle: int) -> bool:
        """False where the directory was renamed between opening and locking: then the lock is another run's."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        here = os.fstat(handle)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def require_held(self) -> None:
        """Called before each save: LockedError where another run has taken this directory over, ResourceError where
        it is gone."""
        if not self.path.parent.is_dir():
            raise ResourceError(
                f"{self.path.parent} has vanished", code="DK412", fix="put it back, or look at the disk it was on"
            )
        about = read_holder(self.path)
        if about.get("run_id") != self.run_id:
            raise LockedError(
                f"{self.path.parent} was taken over by {_describe(about)}", fix="stop one of the two runs"
            )

    def release(self) -> None:
        """Give the right back; the file stays, because removing it would race with the next writer."""
        if self._handle is not None and self._handle in _HELD:
            del _HELD[self._handle]
            os.close(self._handle)
        self._handle = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_holder(path: Path) -> dict[str, Any]:
    """What the last holder wrote into a LOCK: run_id, host, pid, since; empty where that cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    try:
        return _about(handle)
    finally:
        os.close(handle)


def _about(handle: int) -> dict[str, Any]:
    try:
        about = json.loads(os.pread(handle, _LONGEST, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _holder(handle: int) -> str:
    """Who holds the lock; a holder that has just taken it is given a moment to write its name."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not (about := _about(handle)) and time.monotonic() < patience:
        time.sleep(0.01)
    return _describe(about)


def _describe(about: dict[str, Any]) -> str:
    if not about:
        return "another process"
    host, pid, since = (str(about.get(key, "?"))[:80] for key in ("host", "pid", "since"))
    return f"process {pid} on {host} since {since}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
