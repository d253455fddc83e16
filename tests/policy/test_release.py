"""One command gives all packages one version and builds archives that are consistent."""

from __future__ import annotations

import datetime
import shutil
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from .sources import ROOT, load

pytestmark = pytest.mark.xdist_group("release")

TODAY = datetime.date(2030, 1, 2)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """.ci/release.py as a module."""
    return load(ROOT / ".ci" / "release.py")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that state a version, with a changelog that describes 0.7.3 and 1.4.0."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "diffkit/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for path in ROOT.glob("plugins/*/pyproject.toml"):
        place = tmp_path / path.relative_to(ROOT)
        place.parent.mkdir(parents=True)
        shutil.copy(path, place)
    with (tmp_path / "CHANGELOG.md").open("a", encoding="utf-8") as log:
        log.write("\n## 0.7.3 (unreleased)\n\n## 1.4.0 (unreleased)\n")
    return tmp_path


@pytest.mark.parametrize(("version", "allowed"), [("0.7.3", ">=0.7,<0.8"), ("1.4.0", ">=1.4,<2")])
def test_one_version_everywhere(version: str, allowed: str, release: ModuleType, copy: Path) -> None:
    release.set_version(copy, version, TODAY)
    assert f'\n__version__ = "{version}"\n' in (copy / "diffkit" / "__init__.py").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (copy / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} (2030-01-02)\n" in (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    folders = release.packages(copy)
    assert len(folders) == 1 + len(list(ROOT.glob("plugins/*/pyproject.toml")))
    for folder in folders:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["version"] == version
        if folder != copy:
            ours = [one for one in project["dependencies"] if one.startswith("diffkit")]
            assert ours[0] == f"diffkit{allowed}"
            assert all(one.endswith(allowed) for one in ours)


@pytest.mark.parametrize(
    ("version", "message"),
    [("0.7", "three numbers"), ("0.7.3rc1", "three numbers"), ("0.8.0", "CHANGELOG.md must have one place")],
)
def test_a_refused_release_changes_nothing(version: str, message: str, release: ModuleType, copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(release.ReleaseError, match=message):
        release.set_version(copy, version, TODAY)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_archives_of_a_plugin_are_built_and_checked(release: ModuleType, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "diffkit_ddim-0.0.1-py3-none-any.whl").write_bytes(b"an earlier build")
    folder = ROOT / "plugins" / "diffkit-ddim"
    release.build([folder], dist)
    release.check([folder], dist)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (licence,) = (name for name in opened.namelist() if name.endswith("licenses/LICENSE"))
        assert opened.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert not [name for name in opened.namelist() if "test" in name]
    assert not (folder / "LICENSE").exists()

    (dist / "other.whl").write_bytes(b"")
    with pytest.raises(release.ReleaseError, match=r"holds other files: other\.whl"):
        release.check([folder], dist)
    (dist / "other.whl").unlink()
    wheel.unlink()
    with pytest.raises(release.ReleaseError, match="was not built"):
        release.check([folder], dist)


def test_a_wheel_of_another_version_is_refused(release: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "diffkit-ddim"
    shutil.copytree(ROOT / "plugins" / "diffkit-ddim", folder)
    release.build([folder], tmp_path / "dist")
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    present = tomllib.loads(text)["project"]["version"]
    (folder / "pyproject.toml").write_text(text.replace(f'"{present}"', '"9.9.9"'), encoding="utf-8")
    with pytest.raises(release.ReleaseError, match=r"diffkit_ddim-9\.9\.9"):
        release.check([folder], tmp_path / "dist")
