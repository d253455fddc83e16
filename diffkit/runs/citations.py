"""The papers behind the components that a recipe uses. No component is imported."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ..host import Registered, registry
from ..recipe.contents import named

COMBINING = dict(
    zip("`'^\"~=.cvuHkr", "\u0300\u0301\u0302\u0308\u0303\u0304\u0307\u0327\u030c\u0306\u030b\u0328\u030a")
)
"""The combining character of each accent of LaTeX."""
LETTERS = {
    "ss": "ß",
    "o": "ø",
    "O": "Ø",
    "l": "ł",
    "L": "Ł",
    "ae": "æ",
    "AE": "Æ",
    "aa": "å",
    "AA": "Å",
    "i": "i",
    "&": "&",
}


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
    """Format a BibTeX entry as one readable line: authors with given names first, title, year."""
    found = _fields(bibtex)
    authors = [" ".join(reversed(name.split(", ", 1))) for name in found.get("author", "").split(" and ") if name]
    parts = [", ".join(authors), found.get("title", ""), found.get("year", "")]
    return ". ".join(part.rstrip(".") if part is parts[0] else part for part in parts if part)


def address(bibtex: str) -> str:
    """Return the web address of a work, from the fields `doi`, `eprint` of arXiv or `url`; empty without them."""
    found = _fields(bibtex)
    if "doi" in found:
        return f"https://doi.org/{found['doi']}"
    if "eprint" in found and found.get("archiveprefix", "arXiv").lower() == "arxiv":
        return f"https://arxiv.org/abs/{found['eprint']}"
    return found.get("url", "")


def _fields(bibtex: str) -> dict[str, str]:
    """Return the fields of an entry by name, with LaTeX accents as letters, without braces, on one line each."""
    fields = re.findall(r"(\w+)\s*=\s*(?:\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}|\"([^\"]*)\")", bibtex)
    return {name.lower(): _plain(braced or quoted) for name, braced, quoted in fields}


def _plain(text: str) -> str:
    """Replace LaTeX accents by letters, and remove braces and line breaks."""
    text = re.sub(r"\\([`'^\"~=.])\{?\\?(\w)\}?|\\([cvuHkr])\{(\w)\}", _accented, text)
    for command, letter in LETTERS.items():
        text = re.sub(rf"\\{command}(?![A-Za-z])\s?", letter, text)
    return " ".join(re.sub(r"[{}]", "", text).split())


def _accented(match: re.Match[str]) -> str:
    letter = match[2] or match[4]
    return unicodedata.normalize("NFC", letter + COMBINING[match[1] or match[3]])
