"""YAML for people: block mappings, short lists on one line, every value in the form that the strict reader reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .scalars import is_plain

COMMENT_AT = 44


def emit(tree: dict[str, Any]) -> str:
    """The text of a tree of mappings, lists and leaves; a leaf has `value`, and `origin`, written as a comment."""
    return "\n".join(_mapping(tree, "")) + "\n"


def inline(value: Any) -> str:
    """One value on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if is_plain(value) else f'"{"".join(_escaped(letter) for letter in value)}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(str(key))}: {inline(item)}" for key, item in value.items()) + "}"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 wants the point too


def _escaped(letter: str) -> str:
    """A character within double quotes."""
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _mapping(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for key, item in tree.items():
        yield from _entry(f"{indent}{key}:", item, indent)


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, dict):
        yield head
        yield from _mapping(item, indent + "  ")
    elif isinstance(item, list):
        yield head
        for one in item:
            lines = list(_mapping(one, indent + "    "))
            yield f"{indent}  - {lines[0].lstrip()}"
            yield from lines[1:]
    else:
        line = f"{head} {inline(item.value)}"
        yield f"{line:<{COMMENT_AT}}  # {item.origin}" if item.origin else line
