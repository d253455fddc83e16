"""Standard streams that are closed, no terminal, one that goes away, the C locale: no crash, and plain text."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from .conftest import Server, at_once, fault, finished, run, steps


@pytest.mark.parametrize(("out", "err"), [("closed", None), (None, "closed"), ("closed", "closed")])
def test_whoever_reads_along_has_left(
    diffkit: Server, recipe: Path, uninterrupted: Path, out: str | None, err: str | None
) -> None:
    """Reliability 30: `diffkit run ... | head -1`, and the same with 2>&1."""
    ended = run(diffkit, recipe, out=out, err=err)
    assert ended.code == 0, ended.err
    assert finished(recipe.parent / "run") == finished(uninterrupted)


def test_an_error_that_nobody_reads_keeps_its_code(diffkit: Server, recipe: Path) -> None:
    assert run(diffkit, recipe, options=("--set", "train.steps=x"), out="closed", err="closed").code == 3
    stopped = run(diffkit, recipe, faults=[fault("train.engine:Engine.advance", 8, "term")], err="closed")
    assert stopped.code == 75
    assert steps(recipe.parent / "run") == [5, 8]


class Terminal:
    """A terminal, and what was written to it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.name, self.said = os.ttyname(slave), b""
        self._slave = slave
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while more := os.read(self.master, 1 << 16):
                self.said += more
        except OSError:  # the last who had it open has closed it
            return

    def close(self) -> str:
        """Once nobody writes to it any more: all that was said."""
        os.close(self._slave)
        self._reader.join()
        os.close(self.master)
        return self.said.decode("utf-8")

    def leave(self, after: bytes) -> None:
        """Hang up as soon as it has said `after`."""
        while after not in self.said:
            time.sleep(0.005)
        os.close(self._slave)
        os.close(self.master)


@pytest.mark.parametrize("plain", ["", "1"])
def test_a_terminal_gets_a_bar_without_colours_where_none_are_wanted(
    diffkit: Server, recipe: Path, uninterrupted: Path, plain: str
) -> None:
    terminal = Terminal()
    environment = {"NO_COLOR": plain, "TERM": "xterm-256color", "COLUMNS": "120"}
    ended = run(diffkit, recipe, out=terminal.name, err=terminal.name, env=environment)
    said = terminal.close()
    assert ended.code == 0
    assert "training" in said
    assert "20/20" in said
    assert ("\x1b[3" in said) == (not plain)
    assert finished(recipe.parent / "run") == finished(uninterrupted)


def test_a_terminal_that_hangs_up(diffkit: Server, recipe: Path, uninterrupted: Path) -> None:
    """As after `nohup`: what is written leads to an error from then on."""
    terminal = Terminal()
    slow = fault("train.engine:Engine.advance", 8, "pause 1")
    pid = diffkit.start(
        *("run", recipe, "--out", recipe.parent / "run", "--device", "cpu"),
        out=terminal.name,
        err=terminal.name,
        faults=[at_once("nohup"), slow],
    )
    terminal.leave(b"training")
    ended = diffkit.end(pid)
    assert ended.code == 0
    assert finished(recipe.parent / "run") == finished(uninterrupted)


def test_the_c_locale_without_a_terminal(recipe: Path) -> None:
    """Only ASCII can be written, and no escape sequence is."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", "from diffkit.cli.main import entry; entry()", "run", str(recipe)]
    done = subprocess.run(
        [*command, "--out", str(recipe.parent / "run"), "--device", "cpu", "--set", "train.steps=6"],
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).decode("ascii")
    assert "\x1b" not in said
    assert "training 6/6" in said
    assert "report: " in said
