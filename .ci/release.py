"""Give every package of the repository one version, build all of them into dist/, and check what was built.

    make release VERSION=0.2.0

The version changes in the metadata of all packages, in `diffkit/__init__.py`, in CITATION.cff, in the ranges that the
plugins allow for diffkit, and in the heading of CHANGELOG.md, which must describe the release already. Nothing is
uploaded: `.github/workflows/release.yml` does that when the tag is pushed.
"""

from __future__ import annotations

import argparse
import datetime
import email.parser
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "License-Expression": "Apache-2.0",
    "License-File": "LICENSE",
    "Description-Content-Type": "text/markdown",
    "Requires-Python": ">=3.11",
}


class ReleaseError(Exception):
    """Something is missing or inconsistent; the message says what."""


def packages(root: Path) -> list[Path]:
    """Return the folder of each package: the root, then those under plugins/."""
    return [root, *sorted(path.parent for path in (root / "plugins").glob("*/pyproject.toml"))]


OURS = r'(?<=")(diffkit(?:-[a-z-]+)?)>=[^"]*(?=")'
"""A requirement of a package of this repository, of which a package may have several."""


def set_version(root: Path, version: str, today: datetime.date) -> None:
    """Write `version` wherever the repository states its version; change nothing if one place is missing."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"a version is three numbers such as 0.2.0, got {version!r}")
    major, minor, _ = (int(part) for part in version.split("."))
    allowed = f">={major}.{minor},<{major + 1 if major else f'0.{minor + 1}'}"
    changes = {
        root / "diffkit" / "__init__.py": [(r'^__version__ = ".*"$', f'__version__ = "{version}"')],
        root / "CITATION.cff": [(r"^version: .*$", f"version: {version}")],
        root / "CHANGELOG.md": [(rf"^## {re.escape(version)}\b.*$", f"## {version} ({today.isoformat()})")],
    }
    for folder in packages(root):
        changes[folder / "pyproject.toml"] = [(r'^version = ".*"$', f'version = "{version}"')]
        if folder != root:
            changes[folder / "pyproject.toml"].append((OURS, rf"\1{allowed}"))
    texts = {}
    for path, replacements in changes.items():
        text = path.read_text(encoding="utf-8")
        for pattern, new in replacements:
            text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
            if count != 1 and (pattern != OURS or not count):
                raise ReleaseError(f"{path.relative_to(root)} must have one place like {pattern}, found {count}")
        texts[path] = text
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def build(folders: list[Path], dist: Path) -> None:
    """Build the wheel and the source archive of each package into `dist`, which loses earlier builds."""
    dist.mkdir(exist_ok=True)
    for old in (*dist.glob("*.whl"), *dist.glob("*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        for folder in folders:
            place = folder
            if not (folder / "LICENSE").exists():  # a plugin: the licence of the repository belongs into its archives
                place = Path(temporary) / folder.name
                shutil.copytree(folder, place, ignore=shutil.ignore_patterns("__pycache__", "runs", "dist"))
                shutil.copy(ROOT / "LICENSE", place)
            subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(dist)], cwd=place, check=True)


def check(folders: list[Path], dist: Path) -> None:
    """Compare the archives in `dist` with the metadata of the packages; raise ReleaseError for the first difference."""
    expected = set()
    for folder in folders:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        package = project["name"].replace("-", "_")
        stem = f"{package}-{project['version']}"
        wheel, source = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
        expected |= {wheel, source}
        for archive in (wheel, source):
            if not archive.is_file():
                raise ReleaseError(f"{archive.name} was not built")
        with zipfile.ZipFile(wheel) as opened:
            names = set(opened.namelist())
            _check_metadata(wheel, opened.read(f"{stem}.dist-info/METADATA"), project["name"], project["version"])
        with tarfile.open(source) as tar:
            names |= {f"source/{member.name.partition('/')[2]}" for member in tar if member.isfile()}
            information = tar.extractfile(f"{stem}/PKG-INFO")
            assert information is not None
            _check_metadata(source, information.read(), project["name"], project["version"])
        needed = {f"{package}/__init__.py", f"{package}/py.typed", f"{stem}.dist-info/entry_points.txt"}
        needed |= {f"source/{name}" for name in ("LICENSE", "README.md", "pyproject.toml")}
        if needed - names:
            raise ReleaseError(f"{stem} lacks {', '.join(sorted(needed - names))}")
    others = {path for path in dist.iterdir() if path.name != ".gitignore"} - expected
    if others:
        raise ReleaseError(f"{dist.name}/ holds other files: {', '.join(sorted(path.name for path in others))}")


def _check_metadata(archive: Path, raw: bytes, name: str, version: str) -> None:
    found: Message = email.parser.BytesParser().parsebytes(raw)
    for key, value in {"Name": name, "Version": version, **METADATA}.items():
        if found[key] != value:
            raise ReleaseError(f"{archive.name}: {key} is {found[key]!r}, expected {value!r}")
    if not str(found.get_payload()).strip().startswith(f"# {name}"):
        raise ReleaseError(f"{archive.name}: the description must be the README")


def main() -> int:
    """Read the version from the command line; without one, build and check the present version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="three numbers, such as 0.2.0; left out: the present version")
    version = parser.parse_args().version
    try:
        if version:
            set_version(ROOT, version, datetime.date.today())
        build(packages(ROOT), ROOT / "dist")
        check(packages(ROOT), ROOT / "dist")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print(f"{2 * len(packages(ROOT))} archives in dist/ are consistent.")
    if version:
        print(
            f"Next: commit, `git tag v{version}`, `git push origin main v{version}`; the release workflow uploads them."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
