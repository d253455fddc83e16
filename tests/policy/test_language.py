"""Docstrings, comments, messages and pages use plain technical English; public functions explain their arguments."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .language import ROOT, breaches, files
from .sources import shipped

READERS = (
    ROOT / "diffkit",
    ROOT / "plugins",
    ROOT / "docs",
    ROOT / "tests" / "pains.md",
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
)
EXPLAINED = 2
"""A public function with more parameters than this has an `Args:` section."""


def test_the_word_list_finds_what_it_bans(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text('"""The network is told the level anew."""\n\nX = f"this is no sampler but {1}"\n', encoding="utf-8")
    assert [line for line, _ in breaches(bad)] == [1, 1, 3]
    good = tmp_path / "good.py"
    good.write_text('"""Pass the level to the network again, as `told` requires."""\n', encoding="utf-8")
    assert breaches(good) == []


@pytest.mark.parametrize("path", files(*READERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_uses_plain_words(path: Path) -> None:
    assert [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in breaches(path)] == []


MODULES = sorted(s.module for s in shipped() if not s.module.startswith("diffkit.testing.pytest_plugin"))


@pytest.mark.parametrize("module", MODULES)
def test_functions_with_many_parameters_explain_them(module: str) -> None:
    assert sorted(unexplained(module)) == []


def unexplained(module: str) -> Iterator[str]:
    """Public functions and methods that lack `Args:` or `Returns:`; what overrides an interface has the text there."""
    loaded = importlib.import_module(module)
    for name, value in vars(loaded).items():
        if name.startswith(("_", "diffkit_")) or getattr(value, "__module__", None) != module:
            continue
        if inspect.isfunction(value):
            yield from missing(name, value)
        elif inspect.isclass(value):
            for method, raw in vars(value).items():
                inner = getattr(raw, "__func__", raw)
                inherited = any(method in vars(base) for base in value.__mro__[1:])
                if inspect.isfunction(inner) and not method.startswith("_") and not inherited:
                    yield from missing(f"{name}.{method}", inner)


def missing(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """`name: section` for each section that the docstring of a function lacks."""
    text = inspect.getdoc(function) or ""
    parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    if len(parameters) <= EXPLAINED or not text:
        return
    if not re.search(r"^Args:$", text, re.MULTILINE):
        yield f"{name}: Args"
    returned = function.__annotations__.get("return")
    if returned not in (None, "None", "NoReturn") and not re.search(r"^(Returns|Yields):$", text, re.MULTILINE):
        yield f"{name}: Returns"
