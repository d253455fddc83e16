"""The index of first-party plugins says what the plugins in plugins/ register."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from diffkit import load_recipe
from diffkit.cli.main import cli
from diffkit.errors import RecipeError, UsageError
from diffkit.host import Registry, known
from diffkit.host.entry import NAME
from diffkit.host.switches import Switches

PLUGINS = sorted(path.parent for path in (Path(__file__).parents[3] / "plugins").glob("*/pyproject.toml"))


def offered(folder: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Distribution and names of one plugin, read from its sources."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, module),) = project["entry-points"]["diffkit"].items()
    assert project["name"] == f"diffkit-{name}"
    file = folder / "src" / Path(*module.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"known_{name.replace('-', '_')}", file)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    names: dict[str, tuple[str, ...]] = {}
    for entry in plugin.diffkit_components():
        names[entry.kind] = (*names.get(entry.kind, ()), entry.name)
    return project["name"], names


@pytest.mark.skipif(not PLUGINS, reason="this checkout holds no plugins")
def test_the_index_is_what_the_plugins_register() -> None:
    assert dict(offered(folder) for folder in PLUGINS) == known.FIRST_PARTY


@pytest.mark.skipif(not PLUGINS, reason="this checkout holds no plugins")
def test_the_index_has_every_recipe() -> None:
    found = {
        folder.name: tuple(sorted(path.stem for path in folder.glob("src/*/recipes/*.yaml"))) for folder in PLUGINS
    }
    assert found == known.RECIPES


def test_a_recipe_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "RECIPES", {"diffkit-zzz": ("digits-zzz",)})
    with pytest.raises(RecipeError, match="comes with the package diffkit-zzz, which is not installed") as caught:
        load_recipe("digits-zzz")
    assert "pip install diffkit-zzz" in (caught.value.fix or "")
    said = CliRunner().invoke(cli, ["cp", "digits-zzz"], standalone_mode=False).exception
    assert isinstance(said, UsageError)
    assert said.fix == "pip install diffkit-zzz, which has it"


def test_no_name_is_in_two_plugins_or_in_a_default() -> None:
    defaults = Registry.discover(Switches(frozenset()))
    for kind in defaults.kinds:
        names = [*known.names(kind), *(one.name for one in defaults.entries(kind))]
        assert len(names) == len(set(names))
        assert all(NAME.fullmatch(name) for name in names)
        assert all(len(known.holders(kind, name)) == 1 for name in known.names(kind))
