"""Every deliberate fault is caught by a law."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from diffkit.testing.law_registry import laws

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from faults import FAULTS, Fault  # noqa: E402


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: one.name)
def test_the_edit_is_one(one: Fault) -> None:
    """Text that moved on would make a fault that changes nothing."""
    assert (ROOT / one.file).read_text(encoding="utf-8").count(one.old) == 1
    assert one.old != one.new


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 180
    assert len({one.name for one in FAULTS}) == len(FAULTS)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, object]]:
    room = str(tmp_path_factory.mktemp("mutations"))  # its processes end at once, without tidying up
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": room}
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py")], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: one.name)
def test_caught(one: Fault, verdicts: Mapping[str, Mapping[str, object]]) -> None:
    verdict = verdicts[one.name]
    known = {law.name for law in laws()}
    assert verdict["law"] in known, f"no law of {', '.join(one.targets)} noticed: {verdict['error'] or 'all passed'}"
