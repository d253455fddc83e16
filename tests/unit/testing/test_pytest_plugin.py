"""`pytest --diffkit-contract NAME` in an author's own suite."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    installed = any(one.value == "diffkit.testing.pytest_plugin" for one in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "diffkit.testing.pytest_plugin"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, *arguments, str(folder)],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


def test_contract(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n", encoding="utf-8")
    done = run(tmp_path, "--diffkit-contract", "weighting", "--diffkit-contract", "grid/leading", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "n/a: declares_deficit is set, so the first level depends on n" in done.stdout
    assert " passed" in done.stdout


def test_a_broken_law_is_shown_as_text(tmp_path: Path) -> None:
    conftest = """
from diffkit.basics import grid
grid.Trailing.points = lambda self, schedule, n: [schedule.t_noise / (j + 1) for j in range(n)]
"""
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n", encoding="utf-8")
    done = run(tmp_path, "--diffkit-contract", "grid/trailing")
    assert done.returncode == 1
    assert "grid/trailing breaks trailing-points: t_j = T (1 - j / n)" in done.stdout
    assert "expected: 7.0" in done.stdout
    assert "Traceback" not in done.stdout


def test_without_the_option_nothing_is_added(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n", encoding="utf-8")
    assert "1 passed" in run(tmp_path).stdout
