"""The papers behind the components that a recipe uses. No component is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..host import Registered, registry
from ..recipe.contents import named


@dataclass(frozen=True)
class Cited:
    """A paper: its BibTeX key and entry, and the components that come from it."""

    key: str
    bibtex: str
    used_for: str


def citations(recipe: str) -> list[Cited]:
    """Return the papers of a recipe, a file or a built-in name. Raises RecipeError if it cannot be read."""
    return cited([component for _, component in named(recipe)])


def cited(found: list[Registered]) -> list[Cited]:
    """Return the papers of components, each once, in the order of first use."""
    used: dict[str, list[Registered]] = {}
    for one in found:
        if one.entry.reference:
            used.setdefault(one.entry.reference, []).append(one)
    return [
        Cited(key, text, ", ".join(dict.fromkeys(f"{one.kind}/{one.name}" for one in components)))
        for key, components in used.items()
        if (text := registry().bibtex(components[0]))
    ]


def readable(bibtex: str) -> str:
    """Format a BibTeX entry as one readable line: authors, title, year."""
    fields = {k.lower(): v for k, v in re.findall(r"(\w+)\s*=\s*[{\"](.+?)[}\"],?\s*$", bibtex, re.MULTILINE)}
    clean = {k: v.replace("{", "").replace("}", "") for k, v in fields.items()}
    parts = [clean.get("author", "").replace(" and ", ", "), clean.get("title", ""), clean.get("year", "")]
    return ". ".join(part for part in parts if part)
