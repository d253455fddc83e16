"""The papers behind components: BibTeX entries of plugins, the papers of a list of components, and readable lines.

A plugin keeps its entries in a `references.bib` beside its plugin module. No component is imported.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import PluginError
from .loader import Plugin, Registered

FILE = "references.bib"
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
_HEAD = re.compile(r"^@([A-Za-z]+)\s*\{\s*([^\s,{}]+)\s*,", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """Split a .bib file into its BibTeX entries by key; the text inside the braces is not interpreted."""
    entries: dict[str, str] = {}
    for head in _HEAD.finditer(text):
        depth = 0
        for end in range(text.index("{", head.start()), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                entries.setdefault(head[2], text[head.start() : end + 1])
                break
    return entries


def bibtex(reference: str, plugin: Plugin) -> str:
    """Return the BibTeX entry with the key `reference`. Raises PluginError DK206 if the plugin has no such entry."""
    file = (plugin.folder or Path()) / FILE
    try:
        entries = parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f'plugin "{plugin.name}" has no readable {FILE} ({error})', code="DK206") from error
    if reference not in entries:
        message = f'{FILE} of plugin "{plugin.name}" has no entry "{reference}"'
        raise PluginError(message, code="DK206", choices=sorted(entries))
    return entries[reference]


@dataclass(frozen=True)
class Cited:
    """A paper: its BibTeX key and entry, and the components that come from it."""

    key: str
    bibtex: str
    used_for: str


def cited(found: Iterable[Registered]) -> list[Cited]:
    """Return the papers of components, each once, in the order of first use.

    Raises PluginError DK206 if a plugin lacks the entry of a paper.
    """
    used: dict[str, list[Registered]] = {}
    for one in found:
        if one.entry.reference:
            used.setdefault(one.entry.reference, []).append(one)
    return [
        Cited(
            key,
            bibtex(key, components[0].plugin),
            ", ".join(dict.fromkeys(f"{one.kind}/{one.name}" for one in components)),
        )
        for key, components in used.items()
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
