"""What a visitor of the repository looks for is there, and can be read by the programs that read it."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .sources import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
SCRIPTS = sorted(path for path in (ROOT / ".ci").iterdir() if path.suffix == "" and path.is_file())


def load(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def test_the_workflows_are_those_that_contributing_names() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "nightly", "release"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] == path.stem
    assert workflow[True], "the key `on`, which YAML 1.1 reads as a truth value"
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] > 0
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@\S+", step["uses"])
    assert "secrets." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_of_a_workflow_exist(path: Path) -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for step in steps(load(path)):
        for line in step.get("run", "").splitlines():
            assert set(re.findall(r"\bmake (\w+)", line)) <= targets
            for script in re.findall(r"\.ci/[\w.-]+", line):
                assert (ROOT / script).is_file(), script
                assert line.startswith("python ") or os.access(ROOT / script, os.X_OK), script


def test_tests_run_on_every_python_that_the_metadata_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in project["classifiers"]]
    versions = [one[1] for one in found if one is not None]
    jobs = load(GITHUB / "workflows" / "tests.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert project["requires-python"] == f">={versions[0]}"
    lowest = [step for step in jobs["lowest"]["steps"] if "setup-python" in step.get("uses", "")]
    assert [step["with"]["python-version"] for step in lowest] == [versions[0]]


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    jobs = load(GITHUB / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(path: Path) -> None:
    shell = path.read_text(encoding="utf-8").partition("\n")[0].rpartition("/")[2].split()[-1]
    assert shell in ("sh", "bash")
    subprocess.run([shell, "-n", path], check=True)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_whole(path: Path) -> None:
    form = load(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_there_is_a_form_for_faults_and_a_template_for_pull_requests() -> None:
    assert "bug" in {path.stem for path in FORMS}
    (template,) = GITHUB.glob("*.md")
    assert template.stem == "pull_request_template"
    assert "make test" in template.read_text(encoding="utf-8")


def test_the_dev_container_is_set_up_by_make() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert re.search(r"python:3\.1[123]\b", container["image"])
    assert container["postCreateCommand"].endswith("make setup")


def test_editors_get_the_line_length_of_ruff() -> None:
    parser = configparser.ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text(encoding="utf-8"))
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert parser["top"]["root"] == "true"
    assert parser["*"]["max_line_length"] == str(ruff["line-length"])
    assert parser["Makefile"]["indent_style"] == "tab"


def test_the_code_of_conduct_names_whom_to_write_to() -> None:
    text = (ROOT / "CODE_OF_CONDUCT.md").read_text(encoding="utf-8")
    assert "security advisories" in text


@pytest.mark.slow
def test_a_typo_in_build_fails_the_type_check(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from diffkit import Sampler, build\n"
        "right: Sampler[object] = build('sampler', 'ancestral')\n"
        "build('smapler', 'ancestral')\n"
        "wrong: Sampler[object] = build('grid', 'trailing')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["3", "4"]
