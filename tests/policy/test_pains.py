"""tests/pains.md: every pain of users has a test that holds it off, or says what is still to come."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from diffkit.testing.law_registry import laws

from .sources import ROOT

TEXT = (ROOT / "tests" / "pains.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`((?:tests|plugins)/[\w./-]+\.py)::(\w+)`", TEXT)))


@functools.cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), TESTS, ids=lambda word: str(word).rpartition("/")[2])
def test_named_tests_exist(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert name in functions(ROOT / path)


def test_named_laws_exist() -> None:
    known = {f"{law.kind}/{law.name}" for law in laws()}
    assert set(re.findall(r"law `([\w/-]+)`", TEXT)) - known == set()


def test_every_pain_has_a_row_and_no_row_is_empty() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 26))
    for number, _, held in rows:
        assert "::" in held or "law `" in held or "To come" in held, number


def test_numbers_that_tests_cite_are_those_of_rows() -> None:
    for folder in (ROOT / "tests", ROOT / "plugins", ROOT / "diffkit"):
        for path in folder.rglob("*.py"):
            for found in re.findall(r"[Pp]ains? (\d+)", path.read_text(encoding="utf-8")):
                assert 1 <= int(found) <= 25, path
