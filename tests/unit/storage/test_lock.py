"""One writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffkit.errors import LockedError, ResourceError
from diffkit.storage import lock as module
from diffkit.storage.lock import RunLock, close_inherited_locks, read_holder

HOLD = """
import sys, time; from pathlib import Path; from diffkit.storage.lock import RunLock
lock = RunLock(Path(sys.argv[1])); print("held", flush=True); time.sleep(30)
"""


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with RunLock(tmp_path) as first:
        with pytest.raises(LockedError, match=f"process {os.getpid()} on {socket.gethostname()} since") as caught:
            RunLock(tmp_path)
        assert caught.value.exit_code == 9
        first.require_held()
        assert read_holder(tmp_path / "LOCK") == first.holder
    with RunLock(tmp_path) as second:
        assert second.holder.run_id != first.holder.run_id
    second.release()


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {process.pid} "):
        RunLock(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    RunLock(tmp_path).release()


def test_a_takeover_without_flock_is_noticed(tmp_path: Path) -> None:
    """On a network file system whose flock means nothing, the run id in the file tells."""
    with RunLock(tmp_path) as lock:
        (tmp_path / "LOCK").write_text(json.dumps({"run_id": "other", "host": "node7", "pid": 12, "since": "now"}))
        with pytest.raises(LockedError, match="taken over by process 12 on node7"):
            lock.require_held()
        (tmp_path / "LOCK").unlink()
        with pytest.raises(LockedError, match="another process"):
            lock.require_held()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"{", b'{"pid": {}}'])
def test_a_strange_lock_file_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(module, "_WAIT_FOR_NAME_SECONDS", 0.02)
    (tmp_path / "LOCK").write_bytes(content)
    with RunLock(tmp_path) as lock:
        lock.require_held()
        (tmp_path / "LOCK").write_bytes(content)
        with pytest.raises(LockedError):
            RunLock(tmp_path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / "LOCK").symlink_to(tmp_path / "precious")
    with pytest.raises(ResourceError, match="symbolic link"):
        RunLock(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(module, "_WAIT_FOR_NAME_SECONDS", 0.0)
    with pytest.raises(ResourceError, match="without locks"):
        RunLock(tmp_path)


def test_a_directory_that_was_renamed_meanwhile_is_not_locked_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, another process moves the old run away and begins a new one."""
    run = tmp_path / "run"
    run.mkdir()
    real, moved = fcntl.flock, False

    def late(handle: int, operation: int) -> None:
        nonlocal moved
        if not moved:
            moved = True
            run.rename(tmp_path / "run.1")
            run.mkdir()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunLock(run) as lock:
        assert read_holder(run / "LOCK") == lock.holder
        assert read_holder(tmp_path / "run.1" / "LOCK") is None
    (tmp_path / "gone").mkdir()
    run.rename(tmp_path / "run.2")
    with pytest.raises(LockedError, match="another process"):
        RunLock(run)


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """A data worker runs for some seconds after its parent was killed. Nothing is closed in the process itself."""
    lock = RunLock(tmp_path)
    (waits, goes_on), (begun, begins) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes_on)
        close_inherited_locks()
        os.write(begins, b"!")
        os.read(waits, 1)  # until the parent closes its end
        lock.release()
        os._exit(0)
    os.read(begun, 1)
    close_inherited_locks()
    with pytest.raises(LockedError):
        RunLock(tmp_path)
    lock.release()
    with RunLock(tmp_path) as second:
        second.require_held()
        os.close(goes_on)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(LockedError):
            RunLock(tmp_path)
    for handle in (waits, begun, begins):
        os.close(handle)


def test_a_directory_that_is_gone_was_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run") as lock:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(ResourceError, match="does not exist any more") as caught:
            lock.require_held()
        assert caught.value.code == "DK412"
