"""Every deliberate fault is caught: by a law, or by a test of what is no component."""

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

from fault import Fault  # noqa: E402
from faults import FAULTS  # noqa: E402

pytestmark = pytest.mark.xdist_group("mutations")


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: one.name)
def test_the_edit_is_one(one: Fault) -> None:
    """Text that moved on would make a fault that changes nothing."""
    assert (ROOT / one.file).read_text(encoding="utf-8").count(one.old) == 1
    assert one.old != one.new


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 250
    assert sum(not one.by_tests and not one.slow for one in FAULTS) >= 190
    assert len({one.name for one in FAULTS}) == len(FAULTS)


def verdicts(room: Path, *switches: str) -> Mapping[str, Mapping[str, object]]:
    """Run all faults of one kind; their processes end at once, without tidying up `room`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": str(room)}
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *switches],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        cwd=ROOT,
    )
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def by_laws(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Mapping[str, Mapping[str, object]]:
    return verdicts(tmp_path_factory.mktemp("laws"), *(["--slow"] if request.config.getoption("--slow") else []))


@pytest.fixture(scope="module")
def by_tests(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, object]]:
    return verdicts(tmp_path_factory.mktemp("tests"), "--tests")


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, marks=[pytest.mark.slow] * one.slow) for one in FAULTS if not one.by_tests],
    ids=lambda one: one.name,
)
def test_caught_by_a_law(one: Fault, by_laws: Mapping[str, Mapping[str, object]]) -> None:
    verdict = by_laws[one.name]
    known = {law.name for law in laws()}
    assert verdict["caught"] in known, f"no law of {', '.join(one.targets)} noticed: {verdict['error'] or 'all passed'}"


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in FAULTS if one.by_tests], ids=lambda one: one.name)
def test_caught_by_a_test(one: Fault, by_tests: Mapping[str, Mapping[str, object]]) -> None:
    verdict = by_tests[one.name]
    assert verdict["caught"], f"{', '.join(one.targets)} did not notice: {verdict['error'] or 'all passed'}"
