"""Misbehaving plugins: the host survives each, reports what is wrong, and registers nothing of it (pains 24).

Reliability rows 18, 20 and 21.
"""

from __future__ import annotations

import pytest

from diffkit.cli.main import main
from diffkit.errors import DiffkitError
from diffkit.host import Registry, configure, registry

GOOD = """
@hookimpl
def diffkit_components():
    yield Entry("schedule", "mine", "diffkit_zoo.parts:Mine", "a schedule")
"""


def components(body: str) -> str:
    """A plugin with one good entry before `body`: nothing of it may be registered either."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return f'@hookimpl\ndef diffkit_components():\n    yield Entry("schedule", "mine", "a:B", "fine")\n{lines}\n'


ZOO = {
    "missing module": ("import no_such_module_anywhere\n" + GOOD, "ModuleNotFoundError: no_such_module_anywhere"),
    "syntax error": ("def broken(:\n", "SyntaxError"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "exits without a word": ("raise SystemExit\n", "SystemExit"),
    "raises": ("1 / 0\n", "ZeroDivisionError"),
    "raises a base exception": ("raise BaseException('odd')\n", "BaseException: odd"),
    "raises an unprintable": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n",
        "Odd: (its message cannot be shown)",
    ),
    "recursion": ("def f(): f()\nf()\n", "RecursionError"),
    "no hook": ("x = 1\n", "implements no hook"),
    "unmarked hook": (GOOD.replace("@hookimpl", ""), "not marked with @hookimpl"),
    "unmarked second hook": (GOOD + "def diffkit_recipes():\n    return []\n", "diffkit_recipes"),
    "misspelled hook": (GOOD + "@hookimpl\ndef diffkit_recipe():\n    return []\n", 'did you mean "diffkit_recipes"?'),
    "foreign hook": ("@hookimpl\ndef pytest_configure(config):\n    pass\n", 'no hook "pytest_configure"'),
    "wrong hook argument": ("@hookimpl\ndef diffkit_commands(grp):\n    pass\n", "grp"),
    "hook that needs an argument": ("@hookimpl\ndef diffkit_components(registry):\n    yield\n", "registry"),
    "wrapper": ("@hookimpl(wrapper=True)\ndef diffkit_components():\n    return (yield)\n", "wrapper"),
    "hook raises": ("@hookimpl\ndef diffkit_components():\n    raise KeyError('x')\n", "KeyError"),
    "hook raises when iterated": (components("raise OSError('late')"), "OSError: late"),
    "hook exits when iterated": (components("raise SystemExit(2)"), "SystemExit: 2"),
    "hook returns None": (
        "@hookimpl\ndef diffkit_components():\n    Entry('a', 'b', 'c:D', 'e')\n",
        "must yield Entry",
    ),
    "hook returns one": ("@hookimpl\ndef diffkit_components():\n    return Entry('a', 'b', 'c:D', 'e')\n", "a Entry"),
    "hook returns a text": ("@hookimpl\ndef diffkit_components():\n    return 'linear'\n", "returned a str"),
    "hook never ends": (
        components("n = 0\nwhile True:\n    n += 1\n    yield Entry('data', f'n{n}', 'a:B', 'x')"),
        "1000",
    ),
    "wrong type": (components("yield ('schedule', 'other', 'a:B', 'x')"), "yielded a tuple"),
    "yields None": (components("yield"), "yielded a NoneType"),
    "unknown kind": (components("yield Entry('shedule', 'other', 'a:B', 'x')"), 'no kind "shedule"'),
    "name twice": (components("yield Entry('schedule', 'mine', 'a:C', 'x')"), "schedule mine is yielded twice"),
    "upper case": (components("yield Entry('schedule', 'Mine', 'a:B', 'x')"), "kebab-case"),
    "underscore": (components("yield Entry('schedule', 'my_own', 'a:B', 'x')"), "kebab-case"),
    "slash": (components("yield Entry('schedule', 'a/b', 'a:B', 'x')"), "kebab-case"),
    "line end": (components("yield Entry('schedule', 'ab\\n', 'a:B', 'x')"), "one line"),
    "empty name": (components("yield Entry('schedule', '', 'a:B', 'x')"), "one line"),
    "long name": (components("yield Entry('schedule', 'x' * 65, 'a:B', 'x')"), "64 characters"),
    "name is a number": (components("yield Entry('schedule', 7, 'a:B', 'x')"), "name is a int"),
    "target without class": (components("yield Entry('schedule', 'other', 'a.b', 'x')"), "module:Class"),
    "target is a call": (components("yield Entry('schedule', 'other', 'os:system(\"x\")', 'x')"), "module:Class"),
    "target is a class": (components("yield Entry('schedule', 'other', int, 'x')"), "target is a type"),
    "summary of two lines": (components("yield Entry('schedule', 'other', 'a:B', 'x\\ny')"), "one line"),
    "missing field": (components("yield Entry('schedule', 'other')"), "TypeError"),
    "shadows a default": (components("yield Entry('sampler', 'ancestral', 'a:B', 'x')"), 'taken by plugin "ddpm"'),
    "shadows a kind": (
        GOOD + "@hookimpl\ndef diffkit_kinds():\n    yield Kind('data', 'a:B', 'x')\n",
        "taken by diffkit",
    ),
    "kind twice": (
        "@hookimpl\ndef diffkit_kinds():\n    return [Kind('odd', 'a:B', 'x')] * 2\n",
        "kind odd is yielded twice",
    ),
    "kind is an entry": ("@hookimpl\ndef diffkit_kinds():\n    yield Entry('a', 'b', 'c:D', 'e')\n", "not a Kind"),
    "kind without base": ("@hookimpl\ndef diffkit_kinds():\n    yield Kind('odd', 'int', 'x')\n", "module:Class"),
    "recipes are texts": (GOOD + "@hookimpl\ndef diffkit_recipes():\n    yield '/tmp'\n", "not a Path"),
    "recipes are relative": (
        GOOD + "from pathlib import Path\n@hookimpl\ndef diffkit_recipes():\n    yield Path('.')\n",
        "not an absolute path",
    ),
    "recipes are missing": (
        GOOD + "from pathlib import Path\n@hookimpl\ndef diffkit_recipes():\n    yield Path('/no/such/folder')\n",
        "/no/such/folder",
    ),
    "API of the past": ("DIFFKIT_API = 0\n" + GOOD, "version 0"),
    "API of the near future": ("DIFFKIT_API = 2\n" + GOOD, "version 2"),
    "API of the far future": ("DIFFKIT_API = 99\n" + GOOD, "version 99"),
    "API is a text": ("DIFFKIT_API = '1'\n" + GOOD, "not a whole number"),
    "API is true": ("DIFFKIT_API = True\n" + GOOD, "not a whole number"),
    "uses the registry": ("from diffkit.host import registry\nregistry()\n" + GOOD, "while it is being loaded"),
}


@pytest.mark.parametrize("case", ZOO)
def test_a_misbehaving_plugin_is_listed_as_broken_and_nothing_of_it_is_registered(case: str, site) -> None:
    source, expected = ZOO[case]
    site.install("zoo", source)
    site.install("good", GOOD.replace("mine", "fine"))
    found = registry()
    status = {plugin.name: plugin.status for plugin in found.plugins}
    assert status == {"ddpm": "ok", "basics": "ok", "good": "ok", "zoo": "broken"}
    zoo = next(plugin for plugin in found.plugins if plugin.name == "zoo")
    assert zoo.entries == ()
    assert zoo.contributions.kinds == ()
    assert zoo.contributions.recipes == ()
    assert zoo.manager is None
    assert expected in (zoo.reason or "")
    assert "Traceback" in (zoo.error or "") or "Error: " in (zoo.error or "")
    assert (zoo.error or "") in found.why("zoo")
    assert {one.plugin.name for one in found.entries()} == {"ddpm", "basics", "good"}
    assert not found.has("schedule", "mine")
    assert found.find("schedule", "fine").plugin.distribution == "diffkit-good"


@pytest.mark.parametrize("case", ZOO)
def test_a_recipe_that_needs_it_is_told_the_culprit(case: str, site) -> None:
    site.install("zoo", ZOO[case][0])
    found = registry()
    for name in ("zoo/mine", "diffkit-zoo/mine", "qqqq"):
        with pytest.raises(DiffkitError) as caught:
            found.find("schedule", name)
        if name == "qqqq" and next(p for p in found.plugins if p.name == "zoo").lost_contributions is not None:
            continue  # what it would have offered is known, and this is not in it
        assert caught.value.exit_code == 4
        assert "zoo" in caught.value.render()
        assert "diffkit plugins --why zoo" in caught.value.render()


def test_there_are_enough_of_them() -> None:
    assert len(ZOO) >= 25


@pytest.mark.parametrize("value", ["not a reference!", "module:attribute", "", "diffkit_zoo.plugin [extra]"])
def test_an_entry_point_that_names_no_module(value: str, site) -> None:
    site.install("zoo", GOOD)
    site.metadata("diffkit-zoo", "0.1", f"[diffkit]\nzoo = {value}\n")
    zoo = next(plugin for plugin in Registry.discover().plugins if plugin.name == "zoo")
    assert zoo.status == "broken"
    assert "does not name a module" in (zoo.reason or "")


@pytest.mark.parametrize("name", ["none", "a/b", "with space", "../up"])
def test_a_name_that_no_plugin_may_have(name: str, site) -> None:
    site.install("zoo", GOOD)
    site.metadata("diffkit-zoo", "0.1", f"[diffkit]\n{name} = diffkit_zoo.plugin\n")
    zoo = next(plugin for plugin in Registry.discover().plugins if plugin.name == name)
    assert zoo.status == "broken"
    assert "cannot be the name" in (zoo.reason or "")


def test_damaged_metadata_of_one_distribution_is_reported_and_hides_no_other(site) -> None:
    site.install("good", GOOD)
    folder = site.folder / "diffkit_bad-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: diffkit-bad\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_bytes(b"[diffkit]\n\xff\xfe = x\n")
    other = site.folder / "diffkit_worse-0.1.dist-info"
    other.mkdir()
    (other / "entry_points.txt").write_text("[diffkit]\nno equals sign\n")
    status = {plugin.name: plugin.status for plugin in Registry.discover().plugins}
    assert status == {
        "ddpm": "ok",
        "basics": "ok",
        "good": "ok",
        "diffkit_bad-0.1": "broken",
        "diffkit_worse-0.1": "broken",
    }


def test_a_distribution_without_metadata_is_named_after_its_folder(site) -> None:
    site.install("good", GOOD)
    (site.folder / "diffkit_good-0.1.dist-info" / "METADATA").unlink()
    good = Registry.discover().find("schedule", "mine").plugin
    assert (good.distribution, good.version) == ("diffkit-good", "0.1")


def test_a_broken_plugin_cannot_be_checked(site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("zoo", "1 / 0\n" + GOOD)
    configure()
    assert main(["check", "zoo"]) != 0
    assert "error[DK711]" in capsys.readouterr().err


def test_an_interrupt_is_not_swallowed(site) -> None:
    site.install("zoo", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Registry.discover()


def test_what_a_plugin_prints_goes_to_stderr(site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("zoo", "print('hello')\n" + GOOD)
    Registry.discover()
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_a_slow_import_and_a_heavy_one_are_noted(site, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("diffkit.host.loader.MAX_IMPORT_SECONDS", 0.0)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    site.install("zoo", "import sys\nsys.modules['torch'] = sys\n" + GOOD)
    notes = Registry.discover().why("zoo")
    assert "delays every command" in notes
    assert "imports torch" in notes
