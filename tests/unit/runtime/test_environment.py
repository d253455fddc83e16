"""What a run was made with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from diffkit.runtime import environment as module
from diffkit.runtime.environment import environment, git_state, versions


def test_the_environment_is_json_and_the_same_at_each_start() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert environment() == found
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert {"ddpm", "basics"} <= found["plugins"].keys()
    assert found["threads"]["intra_op"] == torch.get_num_threads()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["device"] == "cpu"


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("pydantic", "no-such-distribution"))
    assert versions().keys() == {"python", "pydantic"}


def test_the_commit_and_whether_the_tree_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["clean"]
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == state | {"clean": False}


def test_no_git_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
