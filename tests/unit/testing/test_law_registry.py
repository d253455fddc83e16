"""Laws of plugins: who owns them, to which components they apply, and what happens if their module is broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffkit import Level, Weighting
from diffkit.host import configure, load_file
from diffkit.scalar import Scalar
from diffkit.testing import check, check_class, law, law_registry, laws

PLUGIN = """
from dataclasses import dataclass
from diffkit import Entry, Level, Weighting, hookimpl
from diffkit.testing import law

DIFFKIT_API = 1

@dataclass(frozen=True)
class Constant(Weighting):
    def __call__(self, level):
        return {value} + 0.0 * level.sigma

@hookimpl
def diffkit_components():
    yield Entry("weighting", "{component}", __name__ + ":Constant", "a constant weight")

@hookimpl
def diffkit_laws():
    yield "{laws}"

@law("weighting", statement="w = {value}", source="test", tolerance=0.0, only=("{component}",))
def formula(case, result):
    "A constant."
    result.compare(case.component(Level(0.6, 0.8)), {value}, "w")
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins and laws of each test."""
    laws()
    monkeypatch.setattr(law_registry, "_LAWS", dict(law_registry._LAWS))
    monkeypatch.setattr(law_registry, "_OWNERS", dict(law_registry._OWNERS))
    yield
    configure()
    for name in ("one_plugin", "other_plugin"):
        sys.modules.pop(name, None)


class P2(Weighting):
    """A stranger's weighting that has the name of another plugin's."""

    def __call__(self, level: Level) -> Scalar:
        return level.snr


def load(folder: Path, name: str, component: str, value: float, laws: str | None = None) -> None:
    file = folder / f"{name}.py"
    file.write_text(PLUGIN.format(component=component, value=value, laws=laws or name))
    load_file(file)


def test_a_law_applies_to_the_component_of_its_own_plugin_only() -> None:
    stranger = {row.law for row in check_class("weighting", "p2", P2, plugin="stranger")}
    assert "p2-formula" not in stranger
    assert "weights" in stranger
    (own,) = check_class("weighting", "p2", P2, plugin="p2", only=["p2-formula"])
    assert own.verdict == "fail"


def test_two_plugins_may_use_one_name_for_components_and_laws(tmp_path: Path) -> None:
    load(tmp_path, "one_plugin", "constant", 2.0)
    load(tmp_path, "other_plugin", "constant", 3.0)
    found = [(one.plugin, one.statement) for one in laws("weighting") if one.name == "formula"]
    assert found == [("one-plugin", "w = 2.0"), ("other-plugin", "w = 3.0")]
    for plugin, statement in found:
        rows = [row for row in check([plugin]).rows if row.law == "formula"]
        assert [(row.plugin, row.statement, row.verdict) for row in rows] == [(plugin, statement, "pass")]


def test_a_law_outside_of_plugins_applies_by_name() -> None:
    @law("weighting", statement="w = 0", source="test", tolerance=0.0, only=("mine",))
    def zero(case, result):  # type: ignore[no-untyped-def]
        result.compare(case.component(Level(0.6, 0.8)), 0.0, "w")

    for plugin in ("", "any"):
        assert [row.verdict for row in check_class("weighting", "mine", P2, plugin=plugin, only=["zero"])] == ["fail"]
    assert check_class("weighting", "other", P2, only=["zero"]) == []


def test_a_qualified_name_means_the_component_of_another_plugin() -> None:
    @law("weighting", statement="w = 0", source="test", tolerance=0.0, only=("p2/p2",))
    def zero(case, result):  # type: ignore[no-untyped-def]
        result.compare(case.component(Level(0.6, 0.8)), 0.0, "w")

    assert check_class("weighting", "p2", P2, plugin="stranger", only=["zero"]) == []
    assert len(check_class("weighting", "p2", P2, plugin="p2", only=["zero"])) == 1


def test_a_module_of_laws_that_cannot_be_imported_fails_for_its_plugin_only(tmp_path: Path) -> None:
    load(tmp_path, "one_plugin", "constant", 2.0, laws="no.such.module")
    broken = check(["one-plugin"])
    (row,) = broken.failures
    assert (row.component, row.law) == ("plugin/one-plugin", "laws-import")
    assert "No module named 'no'" in row.example
    assert check(["codec/identity"]).ok


def test_two_laws_of_one_name_in_one_module_of_a_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(case, result):  # type: ignore[no-untyped-def]
        """One of two."""

    for module in ("diffkit.testing.first", "diffkit.testing.second"):
        same.__module__ = module
        law("codec", statement="s", source="s", tolerance=0.0)(same)
    with pytest.raises(ValueError, match="two laws same"):
        laws("codec")
