"""Commands of plugins: added one plugin at a time, undone where one fails."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from diffkit.host import registry

GOOD = """
@hookimpl
def diffkit_commands(group):
    @group.command()
    def hello():
        print("hello")

@hookimpl
def diffkit_components():
    yield Entry("schedule", "mine", "a:B", "x")
"""
HOOK = "@hookimpl\ndef diffkit_commands(group):\n"
BAD = {
    "raises": HOOK + "    group.command()(lambda: 0)\n    raise OSError('no')\n",
    "exits": HOOK + "    raise SystemExit(3)\n",
    "replaces": HOOK + "    import click\n    group.add_command(click.Command('run'))\n",
    "removes": HOOK + "    del group.commands['run']\n",
}


@pytest.fixture
def group() -> click.Group:
    """A group with one command, `run`."""
    made = click.Group("diffkit")
    made.add_command(click.Command("run"))
    return made


def test_a_command_is_added(group: click.Group, site) -> None:
    site.install("good", GOOD)
    registry().commands(group)
    assert sorted(group.commands) == ["hello", "run", "shards"]
    assert CliRunner().invoke(group, ["hello"]).output == "hello\n"


@pytest.mark.parametrize("case", BAD)
def test_a_plugin_that_fails_is_undone_and_unregistered_whole(case: str, group: click.Group, site) -> None:
    site.install(
        "bad", BAD[case] + "@hookimpl\ndef diffkit_components():\n    yield Entry('grid', 'odd', 'a:B', 'x')\n"
    )
    site.install("good", GOOD)
    assert registry().has("grid", "odd")
    run = group.commands["run"]
    registry().commands(group)
    assert sorted(group.commands) == ["hello", "run", "shards"]
    assert group.commands["run"] is run
    status = {plugin.name: plugin.status for plugin in registry().plugins}
    assert status == {"ddpm": "ok", "basics": "ok", "bad": "broken", "good": "ok"}
    assert not registry().has("grid", "odd")
    assert "Traceback" in registry().why("bad") or "is taken" in registry().why("bad")


def test_of_two_plugins_with_one_command_the_second_is_broken(group: click.Group, site) -> None:
    site.install("aa", GOOD)
    site.install("bb", GOOD.replace("mine", "other"))
    registry().commands(group)
    assert [plugin.status for plugin in registry().plugins[2:]] == ["ok", "broken"]
    assert 'the command "hello" is taken' in (registry().plugins[3].reason or "")


def test_what_needs_a_plugin_that_breaks_here_breaks_with_it(group: click.Group, site) -> None:
    kind = "@hookimpl\ndef diffkit_kinds():\n    yield Kind('odd', 'builtins:object', 'odd')\n"
    site.install("aa", BAD["raises"] + kind)
    site.install(
        "bb",
        HOOK + "    raise AssertionError('not asked')\n@hookimpl\ndef diffkit_components():\n"
        "    yield Entry('odd', 'x', 'builtins:int', 'x')\n",
    )
    assert registry().has("odd", "x")
    registry().commands(group)
    assert 'there is no kind "odd"' in (registry().plugins[3].reason or "")
