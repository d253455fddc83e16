"""Fake distributions: a dist-info folder and modules on `sys.path`, as pip would leave them."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffkit.host import configure, discovery

HEAD = "from diffkit.host import Entry, Kind, hookimpl\n"


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(
        self,
        plugin: str,
        source: str,
        *,
        version: str = "0.1",
        distribution: str | None = None,
        head: str = HEAD,
        **more: str,
    ) -> str:
        """Distribution diffkit-PLUGIN with the module `diffkit_PLUGIN/plugin.py`; `more` are its other modules."""
        distribution = distribution or f"diffkit-{plugin}"
        package = distribution.replace("-", "_")
        self.write(f"{package}/__init__.py", "")
        self.write(f"{package}/plugin.py", head + textwrap.dedent(source))
        for name, text in more.items():
            self.write(f"{package}/{name}.py", textwrap.dedent(text))
        self.metadata(distribution, version, f"[diffkit]\n{plugin} = {package}.plugin\n")
        return package

    def metadata(self, distribution: str, version: str, entry_points: str) -> None:
        """The dist-info folder alone."""
        folder = f"{distribution.replace('-', '_')}-{version}.dist-info"
        self.write(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nText\n")
        self.write(f"{folder}/entry_points.txt", entry_points)

    def write(self, path: str, text: str) -> Path:
        """A file below the folder."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return file


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No switches, no registry, no modules left by the test before, and no plugins that the machine happens to have."""
    everything, ours = discovery.distributions, [importlib.metadata.distribution("diffkit")]
    here = lambda one: tmp_path in Path(str(one.locate_file(""))).parents  # noqa: E731
    monkeypatch.setattr(discovery, "distributions", lambda: [*filter(here, everything()), *ours])
    monkeypatch.delenv("DIFFKIT_PLUGINS", raising=False)
    # A fake diffkit-edm must not find the real one that another test of this process has imported.
    aside = {name: sys.modules.pop(name) for name in _imported()}
    configure()
    yield
    monkeypatch.undo()
    configure()
    for name in _imported():
        del sys.modules[name]
    sys.modules.update(aside)


def _imported() -> list[str]:
    return [name for name in sys.modules if name.startswith("diffkit_")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty site folder that comes first on `sys.path`."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.folder))
    return made


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A second one, which comes before `site` if the test requests it after `site`."""
    made = Site(tmp_path / "another")
    monkeypatch.syspath_prepend(str(made.folder))
    return made
