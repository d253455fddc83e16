"""Which plugins load: the switches are read before anything is looked for, and never touch the defaults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diffkit.errors import UsageError
from diffkit.host import configure, registry

SOURCE = "@hookimpl\ndef diffkit_components():\n    yield Entry('schedule', '{0}', 'a:B', 'x')\n"


@pytest.fixture(autouse=True)
def _two(site) -> None:
    for plugin in ("aa", "bb"):
        site.install(plugin, SOURCE.format(plugin))


def status() -> dict[str, str]:
    """The plugins that are not defaults; those must be there, whatever the switches."""
    found = {plugin.name: plugin.status for plugin in registry().plugins}
    assert found.pop("ddpm") == "ok"
    assert found.pop("basics") == "ok"
    return found


@pytest.mark.parametrize(
    ("plugins", "without", "expected"),
    [
        (None, (), {"aa": "ok", "bb": "ok"}),
        ("none", (), {"aa": "off", "bb": "off"}),
        ("aa", (), {"aa": "ok", "bb": "off"}),
        ("aa, bb", (), {"aa": "ok", "bb": "ok"}),
        ("diffkit-bb", (), {"aa": "off", "bb": "ok"}),
        (["bb"], (), {"aa": "off", "bb": "ok"}),
        ([], (), {"aa": "off", "bb": "off"}),
        ("ddpm", (), {"aa": "off", "bb": "off"}),
        (None, ("aa",), {"aa": "off", "bb": "ok"}),
        ("aa,bb", ("bb",), {"aa": "ok", "bb": "off"}),
    ],
)
def test_switches(plugins, without, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(plugins=plugins, without=without)
    assert status() == expected
    assert "diffkit_aa.plugin" not in sys.modules or expected["aa"] == "ok"
    if isinstance(plugins, str):
        monkeypatch.setenv("DIFFKIT_PLUGINS", plugins)
        configure(without=without)
        assert status() == expected


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_PLUGINS", "none")
    configure(plugins="aa")
    assert status() == {"aa": "ok", "bb": "off"}
    monkeypatch.setenv("DIFFKIT_PLUGINS", "")
    configure()
    assert status() == {"aa": "ok", "bb": "ok"}


@pytest.mark.parametrize("plugins", ["", ",", "none,aa"])
def test_a_text_that_means_nothing(plugins: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure(plugins=plugins)
    assert caught.value.code == "DK011"


def test_a_name_that_is_not_installed() -> None:
    configure(plugins="a")
    with pytest.raises(UsageError, match='--plugins: no plugin "a" is installed') as caught:
        registry()
    assert caught.value.hint == 'did you mean "aa"?'
    assert "bb" in caught.value.choices
    configure(without=["cc"])
    with pytest.raises(UsageError, match='-p no:cc: no plugin "cc" is installed'):
        registry()


def test_a_default_cannot_be_dropped() -> None:
    configure(without=["ddpm"])
    with pytest.raises(UsageError, match="is part of diffkit"):
        registry()


def test_why_a_plugin_is_off() -> None:
    configure(plugins="aa", without=())
    assert registry().why("bb").endswith("off: not named by --plugins")
    configure(without=["bb"])
    assert registry().why("bb").endswith("off: disabled by -p no:bb")


def test_neither_torch_nor_a_component_is_imported(site) -> None:
    """With twenty plugins, in a fresh process (reliability finding 9, goal 15)."""
    for number in range(20):
        site.install(f"p{number}", SOURCE.format(f"n{number}"))
    program = (
        "import sys, diffkit.host as host\n"
        "found = host.registry()\n"
        "assert len([p for p in found.plugins if p.status == 'ok']) >= 24, found.plugins\n"
        "assert found.has('schedule', 'n7')\n"
        "found.recipes(); found.why('ddpm')\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'click', 'yaml', 'diffkit.schedule', 'diffkit.level'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    registry()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DIFFKIT_TRACE_PLUGINS", "1")
    configure()
    registry()
    assert "diffkit: aa: diffkit_components() " in capsys.readouterr().err
