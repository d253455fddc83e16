"""`make` finds a Python, or names in one line what is missing; `make fast` runs the tests of what changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .sources import ROOT, load

FIND = ROOT / ".ci" / "find-python"
GOOD = "case $1 in -c) echo {version} ;; *) echo $0 $@ >> $LOG ;; esac"
WITHOUT_VENV = "echo {version}; exit 1"
BROKEN = "exit 127"

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a program of a few lines of shell into the only folder that is searched."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, body: str, version: str = "") -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body.format(version=version)}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


def find(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the search where `folder`/bin is the whole PATH."""
    environment = {"PATH": str(folder / "bin"), "LOG": str(folder / "log")}
    return subprocess.run([FIND, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", ["python3", "python{version}"])
def test_one_python_of_the_range_is_enough(name: str, version: str, put: Put, tmp_path: Path) -> None:
    path = put(name.format(version=version), GOOD, version)
    assert find(tmp_path).stdout.strip() == str(path)


def test_pythons_that_do_not_fit_are_passed_over(put: Put, tmp_path: Path) -> None:
    put("python3", GOOD, "3.10")
    put("python3.11", BROKEN)
    put("python3.12", WITHOUT_VENV, "3.12")
    path = put("python3.13", GOOD, "3.13")
    assert find(tmp_path).stdout.strip() == str(path)


def test_a_given_python_is_the_only_one_that_counts(put: Put, tmp_path: Path) -> None:
    put("python3", GOOD, "3.11")
    other = put("mine", GOOD, "3.13")
    assert find(tmp_path, "mine").stdout.strip() == str(other)
    put("old", GOOD, "3.9")
    assert "old is 3.9" in find(tmp_path, "old").stderr


def test_without_a_python_one_line_says_what_is_missing(put: Put, tmp_path: Path) -> None:
    put("python3", GOOD, "3.14")
    put("python3.12", WITHOUT_VENV, "3.12")
    put("python3.13", BROKEN)
    done = find(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs Python 3.11, 3.12 or 3.13" in line
    for reason in ("python3 is 3.14", "python3.11 is not found", "apt install python3.12-venv", "python3.13 does not"):
        assert reason in line


def test_the_python_that_runs_this_test_is_found() -> None:
    environment = {"PATH": str(Path(sys.executable).parent)}
    done = subprocess.run([FIND, sys.executable], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == sys.executable


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("given", [[], ["PYTHON=mine"]], ids=["found", "given"])
def test_make_setup_makes_the_environment_with_it(given: list[str], put: Put, tmp_path: Path) -> None:
    """With programs that do nothing but note their arguments in place of Python and pip."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci").mkdir()
    shutil.copy(FIND, tmp_path / ".ci")
    pip = "mkdir -p $3/bin; printf '#!/bin/sh\\necho pip \"$@\" >> $LOG\\n' > $3/bin/pip; chmod +x $3/bin/pip"
    for name in ("python3.12", "mine"):
        put(name, GOOD.replace("*)", f"*) {pip};"), "3.12")
    for name in ("mkdir", "chmod", "touch"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log")}
    subprocess.run([str(shutil.which("make")), "setup", *given], cwd=tmp_path, env=environment, check=True)
    log = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert log[0] == f"{tmp_path}/bin/{'mine' if given else 'python3.12'} -m venv .venv"
    assert [line.startswith("pip install") for line in log[1:]] == [True, True]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_stops_with_that_line(put: Put, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [str(shutil.which("make")), "demo"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("diffkit needs Python")
    assert second.startswith("make: ***")


@pytest.fixture
def fast_tests() -> ModuleType:
    """.ci/fast_tests.py as a module."""
    return load(ROOT / ".ci" / "fast_tests.py")


def test_tests_of_changed_files_come_first(fast_tests: ModuleType) -> None:
    changed = [
        "diffkit/report/page.py",
        "diffkit/report/sections/gone.py",
        "plugins/diffkit-edm/src/diffkit_edm/grid.py",
        "tests/unit/cli/conftest.py",
        "tests/contract/test_laws.py",
        "tests/policy/test_make.py",
        "diffkit/level.py",
        "docs/index.md",
        "diffkit/removed/file.py",
    ]
    chosen = fast_tests.tests_for(changed, ROOT)
    first = ["tests/unit/report", "plugins/diffkit-edm/tests", "tests/contract/test_laws.py", "tests/unit/cli"]
    assert chosen[: len(first)] == first
    assert chosen[-1] == "tests/policy"
    assert "tests/unit/test_estimate.py" in chosen
    assert all((ROOT / one).exists() for one in chosen)
    assert len(chosen) == len(set(chosen))
    assert fast_tests.tests_for([], ROOT) == chosen[len(first) :]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_changes_are_those_since_the_branch_left_main(fast_tests: ModuleType, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
        environment = {**os.environ, **identity, "GIT_COMMITTER_EMAIL": "a@b"}
        subprocess.run(["git", *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True)

    assert fast_tests.changed_files(tmp_path) == set()
    git("init", "-b", "main")
    for name in ("old", "edited"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    git("checkout", "-b", "branch")
    (tmp_path / "committed").write_text("1")
    git("add", ".")
    git("commit", "-m", "second")
    (tmp_path / "edited").write_text("2")
    (tmp_path / "new").write_text("1")
    assert fast_tests.changed_files(tmp_path) == {"committed", "edited", "new"}
    git("branch", "-D", "main")
    assert fast_tests.changed_files(tmp_path) == {"edited", "new"}
