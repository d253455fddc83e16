"""Two runs never write to one directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lock_race.py")


def race(directory: Path, rounds: int) -> None:
    command = [sys.executable, str(SCRIPT), str(directory), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ["".join(sorted(outcome)) for outcome in found["outcomes"]] == ["lllllllw"] * (3 * rounds), done.stderr
    names = [name for number in range(rounds) for name in (f"fresh{number}", f"fresh{number}.1")]
    assert found["directories"] == sorted(names)


def test_eight_processes_one_winner(tmp_path: Path) -> None:
    """New runs, runs that go on, and runs that are renamed."""
    race(tmp_path, 5)


@pytest.mark.slow
def test_eight_processes_one_winner_fifty_times(tmp_path: Path) -> None:
    race(tmp_path, 50)
