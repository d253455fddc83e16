"""Texts of files and plugins are printed as text: never as markup, and without characters that control a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from diffkit.cli.console import say_json
from diffkit.cli.main import main
from diffkit.errors import plain
from diffkit.host import configure

HOSTILE = "min(snr, [gamma]) [/snr] [red]x :warning: \x1b]0;title\x07\x9b31m \u202e \ud800"
SHOWN = r"min(snr, [gamma]) [/snr] [red]x :warning: \x1b]0;title\x07\x9b31m \u202e \ud800"
PLUGIN = """
from diffkit import Entry, Guidance, hookimpl

class Bad(Guidance):
    law_exemptions = {{"consistent": {text!a}}}
    def __call__(self, denoise):
        raise RuntimeError({text!a})

@hookimpl
def diffkit_components():
    yield Entry("guidance", "bad", __name__ + ":Bad", {text!a})
"""


@pytest.fixture
def called(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Calls the command line with a plugin of one file, and returns its exit code and all that it prints."""
    names = iter("abcdefgh")

    def call(source: str, *arguments: str) -> tuple[int, str]:
        file = tmp_path / f"told_{next(names)}.py"
        file.write_text(source, encoding="utf-8")
        code = main(["-P", str(file), *arguments])
        out, err = capsys.readouterr()
        return code, out + err

    yield call
    configure()


def test_plain_keeps_text_and_shows_what_controls_a_terminal() -> None:
    assert plain("Größe, 数, α²\n\tb") == "Größe, 数, α²\n\tb"
    assert plain(HOSTILE) == SHOWN
    assert plain("a\nb", keep="") == r"a\nb"


def test_json_stays_equal_and_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({HOSTILE: ["ä", HOSTILE]})
    text = capsys.readouterr().out
    assert json.loads(text) == {HOSTILE: ["ä", HOSTILE]}
    assert plain(text) == text
    assert "ä" in text


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["ls", "guidance"], ["ls", "--json"], ["check", "guidance/bad"], ["check", "guidance/bad", "--json"]],
    ids=" ".join,
)
def test_texts_of_a_plugin_are_not_read_as_markup(arguments: list[str], called) -> None:
    code, text = called(PLUGIN.format(text=HOSTILE), *arguments)
    assert code == (10 if "check" in arguments else 0)
    assert plain(text) == text
    if "--json" not in arguments:
        assert SHOWN.partition(" :")[0] in " ".join(text.split())


def test_an_error_with_markup_is_listed(tmp_path: Path, site_of, capsys: pytest.CaptureFixture[str]) -> None:
    site_of(f"raise RuntimeError({HOSTILE!a})")
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    assert plain(text) == text
    assert "[/snr]" in text


def test_the_command_line_itself_is_printed_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ls", "\x1b[31m"], ["\x1b[31m"], ["check", "\x1b[31m"], ["ls", "--\x1b[31m"]):
        assert main(arguments) == 2
        text = capsys.readouterr().err
        assert plain(text) == text
        assert r"\x1b" in text


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_plain_line(site_of, capsys: pytest.CaptureFixture[str]) -> None:
    site_of("import warnings\nwarnings.warn('odd \\x1b[31m')\nfrom diffkit.host import hookimpl")
    main(["plugins"])
    assert capsys.readouterr().err == "warning: odd \\x1b[31m\n"


@pytest.fixture
def site_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs one distribution with the plugin `told`."""

    def install(source: str) -> None:
        (tmp_path / "told_plugin.py").write_text(source, encoding="utf-8")
        folder = tmp_path / "told-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: told\nVersion: 1.0\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text("[diffkit]\ntold = told_plugin\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        configure()

    yield install
    sys.modules.pop("told_plugin", None)
    monkeypatch.undo()
    configure()


COMMANDS = """
from diffkit import hookimpl

@hookimpl
def diffkit_commands(group):
    from no_such_module import polish
    group.add_command(polish)
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["polish"], 2), (["--help"], 0), (["plugins"], 0), (["doctor"], 0), (["ls", "grid"], 0)]
)
def test_a_plugin_with_commands_that_cannot_be_imported_is_named(arguments: list[str], code: int, called) -> None:
    """Its commands are missing, which is stated once by each command that could show them."""
    found, text = called(COMMANDS, *arguments)
    text = " ".join(text.split())
    assert found == code
    assert text.count("ModuleNotFoundError: no_such_module") == (arguments[0] != "ls")
    assert ("diffkit plugins --why told-a" in text) == (arguments[0] in ("polish", "--help", "doctor"))
    assert "Traceback" not in text
