"""A SIGKILL at any line of saving, rotating or cleaning loses no checkpoint (pains 6)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_points.py")


def crash(directory: Path, scenario: str, count: int) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), str(directory), scenario, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("scenario", "count"), [("save", 10), ("replace", 5), ("clean", 4)])
def test_sampled_crash_points(tmp_path: Path, scenario: str, count: int) -> None:
    found = crash(tmp_path, scenario, count)
    assert found["failures"] == []
    assert found["killed"] == count


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "least"), [("save", 200), ("replace", 200), ("clean", 20)])
def test_every_crash_point(tmp_path: Path, scenario: str, least: int) -> None:
    found = crash(tmp_path, scenario, 0)
    assert found["failures"] == []
    assert found["killed"] == found["lines"]
    assert int(str(found["lines"])) >= least
