"""Every error code has a page, every page a code, and every page the form of the others."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from diffkit.errors import DiffkitError

from .sources import ROOT, shipped

PAGES = sorted((ROOT / "docs" / "errors").glob("*.md"))
CODE = re.compile(r"DK\d{3}")
SEEN_BY_NOBODY = {"DK001"}  # the base class, which is never raised itself


def codes() -> dict[str, str]:
    """Each code and one file that uses it."""
    found = {}
    for source in shipped():
        for node in source.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found[node.value] = source.path
    return {code: path for code, path in found.items() if code not in SEEN_BY_NOBODY}


def test_every_code_has_a_page() -> None:
    pages = {page.stem for page in PAGES}
    assert {code: path for code, path in codes().items() if code not in pages} == {}


def test_every_code_is_named_by_a_test() -> None:
    tests = [path for folder in ("tests", "plugins") for path in (ROOT / folder).rglob("test_*.py")]
    named = {code for path in tests for code in CODE.findall(path.read_text(encoding="utf-8"))}
    assert set(codes()) - named == set()


def test_every_page_has_a_code() -> None:
    assert {page.stem for page in PAGES} - set(codes()) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_say_what_and_how_to_fix(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"# {page.stem}: \S.*", lines[0])
    text = "\n".join(lines[1:])
    assert "Fix" in text or "fix" in text, "no fix"
    assert len(lines) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_quote_messages_of_the_code(page: Path) -> None:
    """The first line of each message on a page is a text of the source, with values in place of its expressions."""
    for message in re.findall(r"^error\[DK\d{3}\] (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert any(text.search(message) for text in messages()), f"no source prints: {message}"


@functools.cache
def messages() -> list[re.Pattern[str]]:
    """The texts of the source with at least six letters beside their expressions: messages, or the start of one."""
    found = set()
    for source in shipped():
        parts = {id(value) for node in source.nodes if isinstance(node, ast.JoinedStr) for value in node.values}
        for node in source.nodes:
            if id(node) not in parts and len(re.findall(r"[a-z]", _literal(node))) > 5:
                found.add(_pattern(node))
    return [re.compile(rf"^(?:.*: )?{text}(?:, .*| in .*|(?<= ).+)?$") for text in found]


def _literal(node: ast.AST) -> str:
    """The fixed part of a text."""
    return re.sub(r"\\(.)", r"\1", _pattern(node).replace(".+", "  "))


def _pattern(node: ast.AST) -> str:
    """A regular expression for a text; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(value) if isinstance(value, ast.Constant) else ".+" for value in node.values)
    return ""


def test_exit_codes_are_those_of_the_design() -> None:
    """0, 1 and 2 mean what they mean everywhere; schedulers of jobs test for 75."""
    found: dict[str, int] = {}
    waiting = [DiffkitError]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__ == "diffkit.errors":
            found[one.__name__] = one.exit_code
    assert found == {
        "DiffkitError": 1,
        "UsageError": 2,
        "ArgumentError": 2,
        "RecipeError": 3,
        "LevelError": 3,
        "PluginError": 4,
        "DataError": 5,
        "ResourceError": 6,
        "DivergedError": 7,
        "CheckpointError": 8,
        "LockedError": 9,
        "ViolationError": 10,
        "PeerError": 11,
        "StoppedError": 75,
    }
