"""The core knows no paper, and a paper's idea is a few lines: what the architecture promises, counted."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from diffkit.host import registry
from diffkit.host.unknown_names import known_names

from .sources import Source, core

ALSO_OURS = {"cosine", "flow", "angle", "diffusers", "pairs", "likelihood", "mask", "downsample", "grey", "interval"}
ALSO_OURS |= {"kl", "trained"}
"""Names with a second meaning in the core: a decay of the learning rate, two charts, a library, a word, a folder, a
condition, an option of the U-Net, pictures of one channel, a confidence interval; a term of the bound, a method."""
REFEREES = "diffkit.testing"
"""The laws hold published components against their published form."""
LIMITS = {"schedule": 30, "weighting": 30, "parameterization": 30, "sampler": 60}
FIRST_PARTY = known_names().components
PAPERS = {name for kinds in FIRST_PARTY.values() for names in kinds.values() for name in names} - ALSO_OURS


@pytest.mark.parametrize(
    "source", [s for s in core() if not s.module.startswith(REFEREES)], ids=lambda source: source.module
)
def test_no_file_of_the_core_names_a_component_of_a_paper(source: Source) -> None:
    named = set(re.findall(r"""[`"']([a-z0-9-]+)[`"']""", source.text)) & (PAPERS - {e.name for e in ours()})
    assert named == set(), f"{source.path} knows plugins that it should not"


def ours() -> list[Any]:
    """The entries of the core."""
    return [entry for plugin in registry().plugins if plugin.distribution == "diffkit" for entry in plugin.entries]


def components() -> Iterator[tuple[str, str, str]]:
    """(kind, name, target) of everything of a limited kind that a paper's plugin registers."""
    for plugin in registry().plugins:
        for entry in plugin.entries:
            if entry.kind in LIMITS and plugin.distribution in {"diffkit", *FIRST_PARTY} - {"diffkit-diffusers"}:
                yield entry.kind, entry.name, entry.target


@pytest.mark.parametrize(("kind", "name", "target"), sorted(components()))
def test_a_component_is_a_few_lines_of_code(kind: str, name: str, target: str) -> None:
    """Without docstrings, comments, empty lines, and what only the laws read."""
    module, _, attribute = target.partition(":")
    tree = ast.parse(inspect.getsource(getattr(importlib.import_module(module), attribute)))
    (cls,) = tree.body
    assert isinstance(cls, ast.ClassDef)
    cls.body = [member for member in cls.body if not names(member).startswith("law_")]
    code = [line for line in ast.unparse(without_documents(tree)).splitlines() if line.strip()]
    assert len(code) <= LIMITS[kind]


def names(member: ast.stmt) -> str:
    """What a member of a class is called, or nothing."""
    target = member.targets[0] if isinstance(member, ast.Assign) else getattr(member, "target", member)
    return str(getattr(target, "name", getattr(target, "id", "")))


def without_documents(tree: ast.Module) -> ast.Module:
    """The same code without docstrings; `unparse` leaves out comments."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
