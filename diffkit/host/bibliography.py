"""References: the BibTeX entries that plugins keep in a `references.bib` beside their plugin module."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import PluginError
from .loader import Plugin

FILE = "references.bib"
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
