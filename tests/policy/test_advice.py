"""Commands and options that messages and error pages recommend exist, and those that only list or check are run."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from diffkit.cli.main import cli, main, take_switches

from .sources import ROOT, shipped

COMMAND = re.compile(r"\bdiffkit ([a-z][^`;,()\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
CODE = re.compile(r"`([^`]+)`|^  (?:fix|installed): (.*)$", re.MULTILINE)
NO_COMMAND = re.compile(r"(after|and|has|instead|itself|or|recipe|supports|that|import [A-Z(].*)\b")
"""What follows the name diffkit in sentences of messages, and in lines of Python."""
FOREIGN = {
    "--upgrade",
    "--force-reinstall",
    "--master-port",
    "--nproc-per-node",
    "--diffkit-contract",
    "--diffkit-deep",
}
"""Options of pip, torchrun and pytest."""
EXAMPLES = {"cp": ["digits"], "ls": ["sampler"], "plugins": ["ddpm"], "show": ["sampler", "ancestral"]}
"""Commands that are run, since they are quick and write at most into the present folder, with their arguments."""
PLACEHOLDER = re.compile(r"[A-Z]+|\{\}|edm")


@functools.cache
def advice() -> tuple[tuple[str, str], ...]:
    """Return (place, text): every text of the source except docstrings, and the code on each page of an error."""
    pages = {
        page.name: page.read_text("utf-8").replace("```", "")
        for page in sorted((ROOT / "docs" / "errors").glob("*.md"))
    }
    code = [
        (name, " ".join(part.split())) for name, text in pages.items() for found in CODE.findall(text) for part in found
    ]
    return (*code, *(found for source in shipped() for found in _messages(source.path, source.tree)))


def _messages(path: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    nodes = list(ast.walk(tree))
    skip = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    skip |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if id(node) not in skip and isinstance(node, ast.JoinedStr | ast.Constant):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
            yield f"{path}:{node.lineno}", text


RECOMMENDED = {
    found.strip(" ."): place
    for place, text in advice()
    for found in COMMAND.findall(text)
    if not NO_COMMAND.match(found)
}


def test_recommended_commands_are_found() -> None:
    found = {words.split()[0] for words in RECOMMENDED}
    assert found >= {"ls", "plugins", "show", "cp", "run", "sample", "evaluate", "reflow", "shards", "import", "check"}


@pytest.mark.parametrize("text", sorted(RECOMMENDED))
def test_a_recommended_command_exists_with_its_options(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command may stand without its arguments, or end with an option without its value."""
    monkeypatch.setattr("diffkit.host.load_file", Path)
    name, *words = take_switches({"N": "2", "H": "2", "HOST:PORT": "a:1"}.get(word, word) for word in text.split())
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{RECOMMENDED[text]}: there is no command {name}; end a command by ; or a comma"
    try:
        command.make_context(name, list(words))
    except click.MissingParameter:
        return
    except click.BadOptionUsage as error:
        assert error.option_name == words[-1]  # noqa: PT017
        return
    if name in EXAMPLES:
        monkeypatch.chdir(tmp_path)
        values = iter(EXAMPLES[name])
        given = [next(values) if PLACEHOLDER.fullmatch(word) else word for word in words]
        assert main([name, *given]) == 0, f"{RECOMMENDED[text]}: {capsys.readouterr().err}"


def test_recommended_options_exist() -> None:
    """Those of any command: a message may name an option without its command."""
    commands = [cli, *(cli.get_command(click.Context(cli), name) for name in cli.list_commands(click.Context(cli)))]
    known = {name for one in commands if one for p in one.params for name in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--version", *FOREIGN}
    assert {(place, name) for place, text in advice() for name in OPTION.findall(text) if name not in known} == set()
