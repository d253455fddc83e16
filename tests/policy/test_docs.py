"""Documentation cannot rot: its Python runs, its recipes are valid, its commands parse, its lists are complete."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml

from diffkit import load_recipe
from diffkit.cli.main import COMMANDS, cli, take_switches
from diffkit.host import configure, load_file, registry
from diffkit.recipe.load import read
from diffkit.testing import law_registry

from .blocks import ROOT, Block, blocks, pages

REFERENCE = ROOT / "docs"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One-file plugins and laws of a page are forgotten after it, and its random numbers are its own."""
    law_registry.laws()
    monkeypatch.setattr(law_registry, "_LAWS", dict(law_registry._LAWS))
    configure()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
    configure()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks share a namespace; those with a file name are written, and loaded if they are plugins; recipes
    are validated, parts of recipes in place of the same parts of `digits`."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    for block in blocks(page):
        if block.language == "python" and not block.included:
            run(block, module)
        elif block.language == "yaml":
            validate(block)
            if block.title is not None and not block.included:
                Path(block.title).write_text(block.text, encoding="utf-8")


def run(block: Block, module: types.ModuleType) -> None:
    """Execute one block; with a file name, write it, and load it where it has a hook."""
    code = compile("\n" * block.line + block.text, str(ROOT / block.page), "exec")
    exec(code, vars(module))
    if block.title is None:
        return
    path = Path(block.title)
    path.write_text(block.text, encoding="utf-8")
    if "@hookimpl" in block.text:
        plugin = load_file(path)
        assert plugin.status == "ok", plugin.error
        for entry in plugin.entries:
            assert registry().find(entry.kind, entry.name).load()


def validate(block: Block) -> None:
    """A whole recipe as it is; a part of one in the place of the same part of `digits-conditional`."""
    given = yaml.safe_load(block.text)
    if "train" not in given or "name" not in given:
        whole: Any = read("digits-conditional")[1].plain()
        whole.update(given)
        load_recipe(whole)
    else:
        load_recipe(block.text)


SHELL = [block for page in pages() for block in blocks(page) if block.language == "sh"]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist_with_their_options(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffkit.host.load_file", Path)  # a file that the page has written elsewhere
    for line in block.text.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|--no-python )diffkit (.*)", line)
        if found is None:
            continue
        words = take_switches(shlex.split(found[1].partition("#")[0].partition("&")[0]))
        if words == [] or words[0].startswith("-"):
            cli.make_context("diffkit", list(words), resilient_parsing=True)
            continue
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None, f"{block}: there is no command {words[0]}"
        command.make_context(words[0], words[1:])
        if words[0] == "show":
            registry().find(words[1], words[2])


def test_every_page_is_reached_from_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert yaml.safe_load(navigation)
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    written = {str(path.relative_to(REFERENCE)) for path in REFERENCE.rglob("*.md")}
    assert {page for page in written if not page.startswith("errors/")} <= listed


def test_markdown_files_that_code_names_exist() -> None:
    """A docstring that sends its reader to a page must not send him nowhere."""
    folders = [ROOT / name for name in ("docs", "tests", "plugins", "benchmarks")]
    known = {path.name for folder in folders for path in folder.rglob("*.md")} | {
        path.name for path in ROOT.glob("*.md")
    }
    generated = {"recipe.md", "cli.md", "laws.md", "errors.md"}
    missing = {}
    for folder in ("diffkit", "tests", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\b[\w-]+\.md\b", path.read_text(encoding="utf-8")):
                if name not in known | generated:
                    missing[str(path.relative_to(ROOT))] = name
    assert missing == {}


def test_every_command_is_in_the_reference() -> None:
    """docs/generate.py prints the help of each of these, so what is left to see is that it has one."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, f"diffkit {name} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                told = parameter.help or isinstance(parameter.type, click.Choice) or parameter.show_default
                assert told, f"diffkit {name} {parameter.opts[0]} has no help"


def test_identities_that_laws_cite_are_explained() -> None:
    page = (REFERENCE / "theory" / "identities.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\*\*(\w+)\*\*", page, flags=re.MULTILINE))
    assert {i for law in law_registry.laws() for i in law.identities.split()} <= explained


def test_changelog_names_the_version() -> None:
    import diffkit

    assert f"## {diffkit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_folders_of_tests_are_those_of_the_architecture() -> None:
    page = (REFERENCE / "develop" / "architecture.md").read_text(encoding="utf-8")
    folders = {f"tests/{path.name}/" for path in (ROOT / "tests").iterdir() if list(path.rglob("test_*.py"))}
    assert folders == set(re.findall(r"tests/\w+/", page))


def test_the_picture_shows_every_room_and_every_file_of_the_algebra() -> None:
    shown = set(re.findall(r"[a-z]+", (REFERENCE / "assets" / "house.svg").read_text(encoding="utf-8")))
    places = [path for path in (ROOT / "diffkit").iterdir() if path.is_dir() or path.suffix == ".py"]
    assert {path.stem for path in places if not path.name.startswith("__")} - shown == set()


def test_relative_links_of_the_files_at_the_root_lead_somewhere() -> None:
    for path in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{path.name}: {target}"
