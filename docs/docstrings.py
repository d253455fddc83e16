"""Docstrings as Markdown: formulas keep their stars and underscores, columns stay aligned, sections become lists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

LABELS = "Source|Differs|Raises"
OPTION = re.compile(r"(\w+) {2,}(\S.*)")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):((?:\n {4}.*)+)")
ENTRY = re.compile(r"(\*{0,2}\w[\w, *]*): (.*)")
COLUMNS = re.compile(r"\S {2,}\S|^ {4}\S|^={3}", re.MULTILINE)


def markdown(doc: str) -> str:
    """Paragraph by paragraph: a table of aligned columns as it is, prose with its marks escaped and labels apart."""
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", inspect.cleandoc(doc))]
    return "\n\n".join(_paragraph(part) for part in parts)


def _paragraph(text: str) -> str:
    section = SECTION.fullmatch(text)
    if section:
        named = section[1] not in ("Returns", "Yields")
        items = _entries(section[2]) if named else [_escaped(" ".join(section[2].split()))]
        return "\n".join([f"*{section[1]}:*\n", *items])
    rows = [OPTION.fullmatch(line) for line in text.split("\n")]
    if all(rows):
        cells = [f"| `{row[1]}` | {_prose(row[2])} |" for row in rows if row]
        return "\n".join(["| option | meaning |", "|---|---|", *cells])
    return f"```text\n{text}\n```" if COLUMNS.search(text) else _prose(text)


def _entries(text: str) -> Iterator[str]:
    """Yield one list item for each argument, attribute or exception."""
    for item in re.split(r"\n(?=\S)", inspect.cleandoc(text)):
        words = " ".join(item.split())
        entry = ENTRY.fullmatch(words)
        yield f"- `{entry[1]}`: {_escaped(entry[2])}" if entry else f"- {_escaped(words)}"


def _prose(text: str) -> str:
    text = re.sub(rf"\s+\b({LABELS}):", r"\n\n\1:", text)
    text = _escaped(text)
    return re.sub(rf"^({LABELS}):", r"*\1:*", text, flags=re.MULTILINE)


def _escaped(text: str) -> str:
    """Escape the marks of Markdown outside of code."""
    return "".join(piece if piece.startswith("`") else _escape(piece) for piece in re.split(r"(`[^`]*`)", text))


def _escape(text: str) -> str:
    return re.sub(r"([_*>|])", r"\\\1", text).replace("<", "&lt;")


class Plain(griffe.Extension):
    """Lets mkdocstrings read docstrings as the reference pages do."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
