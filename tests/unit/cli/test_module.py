"""`python -m diffkit` is the command `diffkit`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import diffkit

REPORT = """
import json, runpy, sys
sys.argv = ["diffkit", *{arguments!r}]
try:
    runpy.run_module("diffkit", run_name="__main__")
except SystemExit as end:
    print("\\n" + json.dumps([end.code, "torch" in sys.modules]))
"""


def module(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m diffkit` in a fresh process."""
    return subprocess.run([sys.executable, "-m", "diffkit", *arguments], capture_output=True, text=True, cwd=folder)


def test_it_prints_the_version_under_the_name_of_the_command(tmp_path: Path) -> None:
    done = module("--version", folder=tmp_path)
    assert done.stdout == f"diffkit, version {diffkit.__version__}\n"
    assert done.returncode == 0


def test_it_returns_the_exit_code_of_the_command(tmp_path: Path) -> None:
    assert module("validate", "missing.yaml", folder=tmp_path).returncode == 3


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "sampler"]], ids=lambda a: a[0])
def test_listing_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = REPORT.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False]
