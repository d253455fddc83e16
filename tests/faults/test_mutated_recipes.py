"""Mutated recipes and overrides: each is valid or ends with an error of the user, in limited time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("mutated_recipes.py")


def figures(first: int, last: int) -> dict[str, object]:
    """The figures of the cases from `first` to `last`; see mutated_recipes.py."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(first), str(last)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_twenty_mutated_recipes() -> None:
    found = figures(0, 20)
    assert found["broken"] == []


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_twenty_thousand_mutated_recipes(batch: int) -> None:
    found = figures(1000 * batch, 1000 * (batch + 1))
    assert found["broken"] == []
    assert isinstance(found["outcomes"], dict)
    assert {"valid", "3"} <= found["outcomes"].keys()
