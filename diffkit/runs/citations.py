"""Whom to cite: the papers behind the components that a recipe names, found without importing any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..host import Registered, registry


@dataclass(frozen=True)
class Cited:
    """One paper: its BibTeX key and entry, and which components of the recipe come from it."""

    key: str
    bibtex: str
    used_for: str


def citations(recipe: str) -> list[Cited]:
    """The papers behind the recipe in a file or under a built-in name. Raises RecipeError where it cannot be read."""
    from ..recipe.load import read

    _, root = read(recipe)
    return cited(list(_named(root.plain())))


def cited(found: list[Registered]) -> list[Cited]:
    """The papers behind components, each once, in the order of first use."""
    used: dict[str, list[Registered]] = {}
    for one in found:
        if one.entry.reference:
            used.setdefault(one.entry.reference, []).append(one)
    return [
        Cited(key, text, ", ".join(dict.fromkeys(f"{one.kind}/{one.name}" for one in components)))
        for key, components in used.items()
        if (text := registry().bibtex(components[0]))
    ]


def _named(tree: Any, kind: str | None = None, section: str = "") -> Iterator[Registered]:
    """Every registered component that a plain recipe names, whatever is wrong with the rest of it."""
    host = registry()
    if isinstance(tree, dict):
        name = tree.get("name")
        if kind and isinstance(name, str):
            yield from _find(kind, name)
        for key, value in tree.items():
            # The schedule of training is that of the learning rate, no component.
            found = None if (section, key) == ("train", "schedule") else _kind_of(key, host.kinds)
            yield from _named(value, found, key)
    elif isinstance(tree, list):
        for item in tree:
            yield from _named(item, kind)
    elif kind and isinstance(tree, str):
        yield from _find(kind, tree)


def _kind_of(key: str, kinds: dict[str, Any]) -> str | None:
    if key in kinds:
        return key
    plural = {"evaluate": "metric", "metrics": "metric", "augment": "augmentation", "trackers": "tracker"}
    return plural.get(key)


def _find(kind: str, name: str) -> Iterator[Registered]:
    bare = name.rpartition("/")[2]
    yield from (one for one in registry().entries(kind) if one.name == bare)


def readable(bibtex: str) -> str:
    """A BibTeX entry as one readable line: authors, title, year."""
    fields = {k.lower(): v for k, v in re.findall(r"(\w+)\s*=\s*[{\"](.+?)[}\"],?\s*$", bibtex, re.MULTILINE)}
    clean = {k: v.replace("{", "").replace("}", "") for k, v in fields.items()}
    parts = [clean.get("author", "").replace(" and ", ", "), clean.get("title", ""), clean.get("year", "")]
    return ". ".join(part for part in parts if part)
