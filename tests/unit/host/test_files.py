"""One-file plugins enter through the same door as installed ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffkit.errors import PluginError, UsageError
from diffkit.host import configure, load_file, registry

SOURCE = """
from diffkit.host import Entry, Kind, hookimpl

class Base: pass
class Mine(Base): pass

@hookimpl
def diffkit_kinds():
    yield Kind("odd", f"{__name__}:Base", "odd")

@hookimpl
def diffkit_components():
    yield Entry("odd", "mine", f"{__name__}:Mine", "mine")
"""


def write(folder: Path, name: str, text: str = SOURCE) -> Path:
    """A file in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    plugin = load_file(write(tmp_path, "my_odd_things.py"))
    assert (plugin.name, plugin.distribution, plugin.status) == ("my-odd-things", None, "ok")
    one = registry().find("odd", "mine")
    assert one.plugin.label == "my_odd_things.py"
    assert one.load().__name__ == "Mine"
    assert registry().find("odd", "my-odd-things/mine") == one


def test_the_switches_do_not_touch_it(tmp_path: Path) -> None:
    configure(plugins="none")
    assert load_file(write(tmp_path, "odd_file.py")).status == "ok"


def test_another_file_of_that_name(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "odd_file.py")
    load_file(first)
    with pytest.raises(UsageError, match='there already is a module "odd_file"') as caught:
        load_file(write(tmp_path / "b", "odd_file.py"))
    assert str(first) in caught.value.render()
    configure()
    changed = SOURCE.replace('"mine"', '"other"')
    load_file(write(tmp_path / "b", "odd_file.py", changed))
    assert [one.name for one in registry().entries("odd")] == ["other"]


def test_a_registry_that_is_held_keeps_its_files(tmp_path: Path) -> None:
    """`configure` releases the name of the file, but what was loaded from it must go on working."""
    load_file(write(tmp_path, "held_file.py", SOURCE + "    yield Entry('odd', 'base', f'{__name__}:Base', 'base')\n"))
    held = registry().entries("odd")
    made = held[0].load()()
    configure()
    assert sys.modules["held_file"].Mine is type(made)
    assert held[1].load() is sys.modules["held_file"].Base


@pytest.mark.parametrize(
    ("name", "expected"),
    [("json.py", "already is a module"), ("my-file.py", "cannot be imported"), ("my_file.txt", "not a Python file")],
)
def test_a_path_that_cannot_be_a_plugin(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        load_file(write(tmp_path, name))
    assert caught.value.code == "DK012"
    with pytest.raises(UsageError, match="not a Python file"):
        load_file(tmp_path / "absent.py")


@pytest.mark.parametrize("text", ["raise OSError('no')", "import sys; sys.exit(3)", "x = 1", SOURCE + "1 / 0", "def"])
def test_a_broken_file_is_an_error_and_is_listed(text: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        load_file(write(tmp_path, "odd_file.py", text))
    assert (caught.value.code, caught.value.exit_code) == ("DK201", 4)
    assert "odd_file.py" in caught.value.render()
    assert registry().plugins[-1].status == "broken"
    assert "odd" not in registry().kinds
    assert "odd_file" not in sys.modules or text == "x = 1"


def test_a_file_cannot_take_the_name_of_a_plugin(tmp_path: Path, site) -> None:
    site.install("odd-file", SOURCE)
    with pytest.raises(PluginError, match=r"is taken by diffkit_odd_file\.plugin"):
        load_file(write(tmp_path, "odd_file.py"))
    with pytest.raises(PluginError, match='"ddpm" is taken'):
        load_file(write(tmp_path, "ddpm.py"))


def test_a_file_that_adds_what_another_added_breaks_both(tmp_path: Path) -> None:
    load_file(write(tmp_path, "one_file.py"))
    with pytest.raises(PluginError, match='the kind "odd" is taken by plugin "one-file"'):
        load_file(write(tmp_path, "two_file.py"))
    assert [plugin.status for plugin in registry().plugins] == ["ok", "ok", "broken", "broken"]
