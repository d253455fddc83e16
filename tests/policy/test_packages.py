"""Packages under plugins/ look alike, and constraints.txt pins what all of them and we depend on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import diffkit

from .sources import ROOT

PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def metadata(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    """ "pillow" of "Pillow[extra]>=10; python_version < '4'"."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_metadata(folder: Path) -> None:
    found = metadata(folder)
    project = found["project"]
    bare = folder.name.removeprefix("diffkit-")
    package = folder.name.replace("-", "_")
    assert project["name"] == folder.name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["requires-python"] == metadata(ROOT)["project"]["requires-python"]
    assert project["license"] == "Apache-2.0"
    assert project["readme"] == "README.md"
    assert "diffkit-plugin" in project["keywords"]
    assert project["entry-points"]["diffkit"] == {bare: f"{package}.plugin"}
    assert found["build-system"] == metadata(ROOT)["build-system"]
    assert found["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{package}"]
    (ours,) = [d for d in project["dependencies"] if name_of(d) == "diffkit"]
    major, minor, _ = diffkit.__version__.split(".")
    assert f">={major}.{minor}" in ours, "it depends on another minor version of diffkit"


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_content(folder: Path) -> None:
    package = folder / "src" / folder.name.replace("-", "_")
    for name in ("__init__.py", "plugin.py", "py.typed"):
        assert (package / name).is_file(), name
    assert re.search(r"^DIFFKIT_API = \d+$", (package / "plugin.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert list((folder / "tests").glob("test_*.py"))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {folder.name}\n")
    assert f"pip install {folder.name}" in readme
    assert "| what changes against DDPM | DDPM |" in readme or folder.name == "diffkit-diffusers"


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_entries_cite_what_the_bibliography_holds(folder: Path) -> None:
    from diffkit.host import bibtex, registry

    entries = [one for one in registry().entries() if one.plugin.distribution == folder.name]
    for one in entries:
        if one.entry.reference is not None:
            assert bibtex(one.entry.reference, one.plugin), f"{one.kind}/{one.name}"


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        name_of(line)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    for folder in (ROOT, *PLUGINS):
        project = metadata(folder)["project"]
        extras = [r for group in project.get("optional-dependencies", {}).values() for r in group]
        wanted = {
            name_of(r) for r in (*project["dependencies"], *extras, *metadata(folder)["build-system"]["requires"])
        }
        ours = {name for name in wanted if name.startswith("diffkit")}
        assert wanted - ours - pinned == set(), f"{folder.name} needs what constraints.txt does not pin"


def test_the_core_has_few_dependencies() -> None:
    assert len(metadata(ROOT)["project"]["dependencies"]) <= 12


def test_version_is_stated_once_for_code_and_package() -> None:
    assert metadata(ROOT)["project"]["version"] == diffkit.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: \"?{re.escape(diffkit.__version__)}\"?$", citation, re.MULTILINE)


def test_readme_names_every_plugin() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {folder.name for folder in PLUGINS if folder.name not in readme} == set()
    assert readme.count("\n") < 150
