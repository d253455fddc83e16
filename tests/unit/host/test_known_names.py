"""The index of first-party plugins is what the packages in plugins/ register."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from diffkit import load_recipe
from diffkit.cli.main import cli
from diffkit.errors import RecipeError, UsageError
from diffkit.host import Registry, unknown_names
from diffkit.host.discovery import Switches
from diffkit.host.entry import NAME
from diffkit.host.unknown_names import KnownNames, first_party_names, holders

ROOT = Path(__file__).parents[3]
PLUGINS = ROOT / "plugins"
FILE = ROOT / "diffkit" / "host" / "known_names.json"


@pytest.mark.skipif(not PLUGINS.is_dir(), reason="this checkout has no plugins")
def test_the_file_is_current() -> None:
    """In a process of its own: the fixtures of this folder hide the plugins that are installed."""
    code = f"import runpy; print(runpy.run_path({str(PLUGINS / 'known_names.py')!r})['text'](), end='')"
    environment = {name: value for name, value in os.environ.items() if name != "DIFFKIT_PLUGINS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == FILE.read_text(encoding="utf-8"), "run python plugins/known_names.py"


def test_a_recipe_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown_names, "known_names", lambda: KnownNames({}, {"diffkit-zzz": ["digits-zzz"]}))
    with pytest.raises(RecipeError, match="comes with the package diffkit-zzz, which is not installed") as caught:
        load_recipe("digits-zzz")
    assert "pip install diffkit-zzz" in (caught.value.fix or "")
    said = CliRunner().invoke(cli, ["cp", "digits-zzz"], standalone_mode=False).exception
    assert isinstance(said, UsageError)
    assert said.fix == "pip install diffkit-zzz"


def test_no_name_is_in_two_plugins_or_in_a_default() -> None:
    defaults = Registry.discover(Switches(frozenset()))
    for kind in defaults.kinds:
        names = [*first_party_names(kind), *(one.name for one in defaults.entries(kind))]
        assert len(names) == len(set(names))
        assert all(NAME.fullmatch(name) for name in names)
        assert all(len(holders(kind, name)) == 1 for name in first_party_names(kind))
