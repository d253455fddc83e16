"""`diffkit new`: a scaffold that works untouched, for every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffkit.cli.new import SUMMARIES, Package

from .conftest import Diffkit


def installed(package: Path, target: Path) -> dict[str, str]:
    """Environment of a process that has the package installed, beside everything that this one has."""
    arguments = ["install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(package)]
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True)
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def diffkit_in(environment: dict[str, str], folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands one after another in one process, which imports torch once, until one fails."""
    script = "import json, sys; from diffkit.cli.main import main\n"
    script += "sys.exit(next(filter(None, map(main, json.loads(sys.argv[1]))), 0))"
    command = [sys.executable, "-c", script, json.dumps(commands)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_a_scaffold_of_every_kind_installs_lists_keeps_the_laws_and_runs(diffkit: Diffkit, tmp_path: Path) -> None:
    kinds = [option for kind in SUMMARIES if kind != "augmentation" for option in ("--kind", kind)]
    said = diffkit("new", "quick", *kinds, "--out", tmp_path / "quick")
    assert said.code == 0, said.err
    environment = installed(tmp_path / "quick", tmp_path / "site")
    listed = json.loads(diffkit_in(environment, tmp_path, ["plugins", "--json"]).stdout)
    (mine,) = [row for row in listed if row["name"] == "quick"]
    assert mine["status"] == "ok", mine["reason"]
    assert len(mine["entries"]) == len(SUMMARIES)  # without augmentation, with the codec beside the loss
    commands = ["check", "diffkit-quick"], ["run", "quick", "--set", "train.steps=30", "-q"]
    done = diffkit_in(environment, tmp_path, *commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "quick" / "numbers.csv").read_text().startswith("30,loss,")
    assert (tmp_path / "runs" / "quick" / "progress.txt").read_text().startswith("step 30 of 30, ")


@pytest.mark.parametrize("kind", SUMMARIES)
def test_a_scaffold_of_one_kind_is_python_that_registers_it(kind: str) -> None:
    files = Package("my-idea", (kind,)).files()
    module = kind.replace("-", "_")
    source = files[f"src/diffkit_my_idea/{module}.py"]
    compile(source, kind, "exec")
    compile(files["src/diffkit_my_idea/plugin.py"], "plugin", "exec")
    assert "class MyIdea(" in source
    assert f'"diffkit_my_idea.{module}:MyIdea"' in files["src/diffkit_my_idea/plugin.py"]
    assert "$" not in "".join(files.values())
    assert max(map(len, "\n".join(files.values()).splitlines())) <= 120


def test_names_that_are_no_package_and_folders_in_use_are_refused(diffkit: Diffkit, tmp_path: Path) -> None:
    for name in ("My_Idea", "2fast", "a--b", "../up", "a b"):
        assert diffkit("new", name, "--out", tmp_path / "x").code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    assert diffkit("new", "idea", "--out", tmp_path / "full").code == 2
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert diffkit("new", "diffkit-idea", "--out", tmp_path / "ok").code == 0
    assert "diffkit-idea" in (tmp_path / "ok" / "pyproject.toml").read_text()
