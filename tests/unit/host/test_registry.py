"""Names: what they resolve to, which plugin may have them, and the errors for names that do not resolve."""

from __future__ import annotations

from itertools import permutations

import pytest

from diffkit.errors import PluginError, RecipeError, UsageError
from diffkit.host import LoadError, Registry, UnknownNameError, unknown_names
from diffkit.host.discovery import Switches
from diffkit.host.registry import resolve_conflicts
from diffkit.host.unknown_names import KnownNames

ONE = """
@hookimpl
def diffkit_components():
    yield Entry("schedule", "{name}", "{package}.parts:Mine", "a schedule", "key2020")
"""
PARTS = """
class Fake:
    pass

class Mine(Fake):
    pass
"""


def offering(site, plugin: str, name: str, version: str = "0.1", **more: str) -> None:
    site.install(plugin, ONE.format(name=name, package=f"diffkit_{plugin.replace('-', '_')}"), version=version, **more)


def test_the_defaults_are_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Registry.discover()
    assert [(plugin.name, plugin.status, plugin.essential) for plugin in installed.plugins[:2]] == [
        ("ddpm", "ok", True),
        ("basics", "ok", True),
    ]
    assert installed.plugins[0].version is not None
    monkeypatch.setattr("diffkit.host.discovery.distributions", list)
    bare = Registry.discover()
    assert [one.entry for one in bare.entries()] == [one.entry for one in installed.entries() if one.plugin.essential]


def test_a_name_resolves_bare_and_qualified(site) -> None:
    offering(site, "edm", "mine", "0.3")
    found = Registry.discover()
    for name in ("mine", "edm/mine", "diffkit-edm/mine"):
        assert found.find("schedule", name).qualified == "edm/mine"
    assert found.find("schedule", "ddpm/linear").name == "linear"
    one = found.find("schedule", "mine")
    assert (one.kind, one.name, one.plugin.label, one.plugin.version) == ("schedule", "mine", "diffkit-edm 0.3", "0.3")


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_two_plugins_with_one_name_are_both_listed_and_the_name_is_refused(names, site, another) -> None:
    """Reliability row 19: whichever comes first on the path."""
    for folder, plugin in zip((site, another), names, strict=True):
        offering(folder, plugin, "mine")
    found = Registry.discover()
    assert [one.qualified for one in found.entries("schedule") if one.name == "mine"] == ["a/mine", "b/mine"]
    with pytest.raises(PluginError) as caught:
        found.find("schedule", "mine")
    assert (caught.value.code, caught.value.exit_code) == ("DK202", 4)
    assert caught.value.choices == ["a/mine", "b/mine"]
    assert found.find("schedule", "b/mine").plugin.name == "b"


@pytest.mark.parametrize("first", ["site", "another"])
def test_two_entry_points_with_one_name_the_second_is_broken_and_not_imported(first, site, another) -> None:
    one, other = (site, another) if first == "site" else (another, site)
    one.install("edm", ONE.format(name="mine", package="diffkit_edm"))
    other.install("edm", "raise SystemExit('imported')", distribution="other-edm")
    plugins = [plugin for plugin in Registry.discover().plugins if plugin.name == "edm"]
    assert [(plugin.distribution, plugin.status) for plugin in plugins] == [
        ("diffkit-edm", "ok"),
        ("other-edm", "broken"),
    ]
    assert 'the name "edm" is taken by diffkit_edm.plugin (diffkit-edm 0.1)' in (plugins[1].reason or "")
    why = Registry.discover().why("edm")
    assert "diffkit_edm.plugin): ok" in why
    assert "other_edm.plugin): broken" in why


@pytest.mark.parametrize("default", ["ddpm", "basics"])
def test_a_default_cannot_be_replaced_by_an_entry_point_of_its_name(default: str, site) -> None:
    site.install(default, ONE.format(name="mine", package="x"), distribution="aaa-evil")
    plugins = {plugin.origin: plugin for plugin in Registry.discover().plugins}
    assert plugins[f"diffkit.{default}.plugin"].status == "ok"
    assert plugins["aaa_evil.plugin"].status == "broken"


def test_an_older_copy_further_down_the_path_is_no_second_plugin(site, another) -> None:
    offering(site, "edm", "old", "0.1")
    offering(another, "edm", "new", "0.2")
    found = Registry.discover()
    assert [(plugin.name, plugin.version) for plugin in found.plugins[2:]] == [("edm", "0.2")]
    assert found.has("schedule", "new")
    assert not found.has("schedule", "old")


def test_verdicts_do_not_depend_on_the_order_of_plugins(site) -> None:
    """Two plugins that add one kind are both broken, and so is the one that relies on it."""
    kind = "@hookimpl\ndef diffkit_kinds():\n    yield Kind('odd', 'builtins:object', 'odd things')\n"
    site.install("first", kind)
    site.install("second", kind)
    site.install("third", "@hookimpl\ndef diffkit_components():\n    yield Entry('odd', 'x', 'builtins:int', 'x')\n")
    alone = Registry.discover(Switches(frozenset({"first", "third"})))
    assert alone.find("odd", "x").load() is int
    assert alone.kinds["odd"].summary == "odd things"
    loaded = [plugin for plugin in Registry.discover(Switches(frozenset({"first"}))).plugins if plugin.status == "ok"]
    others = [
        plugin
        for name in ("second", "third")
        for plugin in Registry.discover(Switches(frozenset({"first", name}))).plugins
        if plugin.name == name and name == "third"
    ]
    second = next(p for p in Registry.discover(Switches(frozenset({"second"}))).plugins if p.name == "second")
    for order in permutations([*loaded, *others, second]):
        status = {plugin.name: plugin.status for plugin in resolve_conflicts(order)}
        assert status == {"ddpm": "ok", "basics": "ok", "first": "broken", "second": "broken", "third": "broken"}


def test_the_message_for_an_unknown_name_is_the_one_of_the_design(site, monkeypatch: pytest.MonkeyPatch) -> None:
    offering(site, "improved-ddpm", "cosine")
    site.install("edm", "import no_such_module_anywhere\n")
    monkeypatch.setattr(unknown_names, "known_names", lambda: KnownNames({}, {}))
    with pytest.raises(UnknownNameError) as caught:
        Registry.discover().find("schedule", "cosin")
    assert isinstance(caught.value, RecipeError)
    assert caught.value.exit_code == 3
    assert caught.value.render() == (
        'error[DK102] unknown schedule "cosin"\n'
        '  did you mean "cosine"? (diffkit-improved-ddpm 0.1)\n'
        "  installed: linear, scaled-linear (diffkit), cosine (diffkit-improved-ddpm 0.1)      "
        "more: diffkit ls schedule\n"
        '  note: plugin "edm" is installed but failed to load (ModuleNotFoundError: no_such_module_anywhere); '
        "see diffkit plugins --why edm"
    )


@pytest.mark.parametrize(
    ("kind", "typed", "meant"),
    [
        ("schedule", "Linear", "linear"),
        ("schedule", "scaled_linear", "scaled-linear"),
        ("sampler", "ancestal", "ancestral"),
    ],
)
def test_the_nearest_name_is_offered(kind: str, typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry.discover(Switches(frozenset())).find(kind, typed)
    assert caught.value.hint == f'did you mean "{meant}"? (diffkit)'


def test_a_name_of_another_kind_is_pointed_out() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry.discover(Switches(frozenset())).find("sampler", "trailing")
    assert '"trailing" is a grid' in caught.value.notes


def test_a_first_party_plugin_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, site) -> None:
    known = KnownNames({"diffkit-zzz": {"schedule": ["quartic"]}}, {})
    monkeypatch.setattr(unknown_names, "known_names", lambda: known)
    with pytest.raises(PluginError) as caught:
        Registry.discover().find("schedule", "quartic")
    assert (caught.value.code, caught.value.exit_code, caught.value.fix) == ("DK205", 4, "pip install diffkit-zzz")
    with pytest.raises(UnknownNameError) as near:
        Registry.discover().find("schedule", "quartc")
    assert near.value.hint == 'did you mean "quartic"? (pip install diffkit-zzz)'
    with pytest.raises(PluginError, match="belongs to diffkit-zzz"):
        Registry.discover().find("schedule", "zzz/anything")
    site.install("zzz", "raise OSError('no')")
    with pytest.raises(PluginError) as broken:
        Registry.discover().find("schedule", "quartic")
    assert (broken.value.code, broken.value.exit_code) == ("DK201", 4)
    with pytest.raises(PluginError, match="switched off"):
        Registry.discover(Switches(frozenset())).find("schedule", "quartic")


def test_a_name_withheld_by_a_broken_plugin_names_it(site) -> None:
    site.install(
        "bad",
        "@hookimpl\ndef diffkit_components():\n    yield Entry('schedule', 'mine', 'a:B', 'x')\n"
        "    yield Entry('schedule', 'linear', 'a:B', 'x')\n",
    )
    found = Registry.discover()
    assert found.find("schedule", "linear").plugin.name == "ddpm"
    with pytest.raises(PluginError) as caught:
        found.find("schedule", "mine")
    assert caught.value.code == "DK201"
    assert '"linear" is taken by plugin "ddpm"' in caught.value.message


def test_unknown_plugins_and_kinds(site) -> None:
    offering(site, "edm", "mine")
    found = Registry.discover()
    with pytest.raises(PluginError, match='no plugin "edn"') as caught:
        found.find("schedule", "edn/mine")
    assert caught.value.hint == 'did you mean "edm"?'
    with pytest.raises(UnknownNameError, match='unknown schedule "other" in plugin "edm"') as other:
        found.find("schedule", "edm/other")
    assert other.value.choices == "mine (diffkit-edm 0.1)      more: diffkit ls schedule"
    with pytest.raises(UsageError, match='unknown kind "shedule"') as kind:
        found.find("shedule", "linear")
    assert kind.value.hint == 'did you mean "schedule"?'
    with pytest.raises(PluginError, match='no plugin "nobody"'):
        found.why("nobody")


BASE = "@hookimpl\ndef diffkit_kinds():\n    yield Kind('odd', 'diffkit_edm.parts:Base', 'odd')\n"
ODD = BASE + "@hookimpl\ndef diffkit_components():\n    yield Entry('odd', 'x', 'diffkit_edm.parts:X', 'x')\n"
TARGETS = {
    "no such class": ("class Base: pass\nclass Xx: pass\n", "AttributeError"),
    "not a class": ("class Base: pass\ndef X(): pass\n", "is a function, not a class"),
    "another class": ("class Base: pass\nclass X: pass\n", "does not derive from diffkit_edm.parts:Base"),
    "abstract": (
        "from abc import ABC, abstractmethod\nclass Base(ABC):\n    @abstractmethod\n    def go(self): ...\n"
        "class X(Base): pass\n",
        "is abstract: it does not define go",
    ),
    "missing import": ("import no_such_module_anywhere\n", "ModuleNotFoundError: no_such_module_anywhere"),
    "exits": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "base is no class": ("Base = 3\nclass X: pass\n", "is not a class"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_a_target_that_cannot_be_used(case: str, site) -> None:
    text, expected = TARGETS[case]
    site.install("edm", ODD, parts=text)
    found = Registry.discover()
    assert found.plugins[-1].status == "ok"
    with pytest.raises(LoadError, match='plugin "edm"') as caught:
        found.find("odd", "x").load()
    assert (caught.value.code, caught.value.exit_code) == ("DK203", 4)
    assert expected in caught.value.message
    if "Error" in expected or "Exit" in expected:
        assert "Traceback" in (caught.value.traceback or "")
        assert caught.value.__cause__ is not None
    if case == "no such class":
        assert "the module has Xx" in caught.value.notes
    if case == "exits":
        assert any("parts.py:1" in note for note in caught.value.notes)


def test_a_good_target_is_imported_on_first_use_only(site) -> None:
    import sys

    site.install("edm", ODD, parts="class Base: pass\nclass X(Base): pass\n")
    one = Registry.discover().find("odd", "x")
    assert "diffkit_edm.parts" not in sys.modules
    assert one.load().__name__ == "X"


def test_recipes_by_name(site) -> None:
    """The defaults keep their names, and a name that two others have is qualified."""
    source = (
        "from pathlib import Path\n@hookimpl\ndef diffkit_recipes():\n    yield Path(__file__).parent / 'recipes'\n"
    )
    default = next(iter(Registry.discover().recipes()), None)
    for plugin in ("a", "b"):
        package = site.install(plugin, source)
        for name in ("shared", f"only-{plugin}", *([default] if default else [])):
            site.write(f"{package}/recipes/{name}.yaml", "name: x\n")
    recipes = Registry.discover().recipes()
    assert {"a/shared", "b/shared", "only-a", "only-b"} <= recipes.keys()
    assert "shared" not in recipes
    if default:
        assert "diffkit" in recipes[default].parts
        assert {f"a/{default}", f"b/{default}"} <= recipes.keys()
    site.write("diffkit_a/recipes/bad name.yaml", "")
    assert next(plugin for plugin in Registry.discover().plugins if plugin.name == "a").status == "broken"
