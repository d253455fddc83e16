"""What a run was made with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from diffkit.runtime import environment as module
from diffkit.runtime.environment import environment, git_commit, versions


def test_the_environment_is_json_and_the_same_at_each_start() -> None:
    found = environment("cpu", {"basics": "0.1.0"})
    assert json.loads(json.dumps(found)) == found
    assert environment("cpu", {"basics": "0.1.0"}) == found
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert found["plugins"] == {"basics": "0.1.0"}
    assert found["threads"]["intra_op"] == torch.get_num_threads()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["device"] == "cpu"


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("pydantic", "no-such-distribution"))
    assert versions().keys() == {"python", "pydantic"}


def commit_file(directory: Path, name: str) -> None:
    """A repository with one commit of one file."""
    git = ["git", "-C", str(directory), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (directory / name).write_text("1")
    for command in (["init", "-q"], ["add", name], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)


@pytest.fixture(autouse=True)
def no_repository_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def test_the_commit_of_the_work_tree(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert git_commit(tmp_path) is None
    commit_file(tmp_path, "a")
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    (tmp_path / "below").mkdir()
    assert git_commit(tmp_path / "below") == commit


def test_a_hostile_repository_executes_nothing(tmp_path: Path) -> None:
    """Its configuration names programs for filters and fsmonitor, which `git status` executes."""
    repository, proof = tmp_path / "repository", tmp_path / "executed"
    repository.mkdir()
    commit_file(repository, "a.txt")
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {proof}\ncat\n")
    program.chmod(0o755)
    with open(repository / ".git" / "config", "a") as config:
        config.write(f"[core]\n\tfsmonitor = {program}\n\tpager = {program}\n\thooksPath = {tmp_path}\n")
        config.write(f'[filter "evil"]\n\tclean = {program}\n\tprocess = {program}\n\trequired = true\n')
        config.write(f'[diff "evil"]\n\tcommand = {program}\n\ttextconv = {program}\n')
    (repository / "a.txt").write_text("other")
    assert git_commit(repository) is not None
    assert not proof.exists()
    subprocess.run(["git", "-C", str(repository), "status"], capture_output=True, timeout=20)
    assert proof.exists(), "this repository is not hostile: the test would pass whatever git_commit does"


def test_no_git_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
