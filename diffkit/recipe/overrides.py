"""Overrides: `--set train.steps=100` replaces one value of a recipe before it is validated."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import Mark, RecipeError
from .strict import parse
from .tree import Node

FLAG = "--set"


def override(root: Node, overrides: Iterable[str]) -> Node:
    """The tree with each `path=value` applied in turn. Raises RecipeError for all that cannot be read."""
    faults: list[RecipeError] = []
    for text in overrides:
        try:
            path, value = _read(text)
            root = _replace(root, path.split("."), 0, value, text)
        except RecipeError as error:
            faults += [e for e in error.errors if isinstance(e, RecipeError)] or [error]
    if faults:
        raise RecipeError(f"{FLAG} cannot be applied", errors=faults)
    return root


def _read(text: str) -> tuple[str, Node]:
    """Split at the first "=": the path, and the value read as one YAML scalar, flow list or flow mapping."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise _fault(f"{FLAG} takes path=value", text, 1, len(text), f"{FLAG} train.steps=100")
    start = text.index("=") + 1
    node = parse(value, FLAG, prefix=f"{FLAG} {text[:start]}")
    stripped = value.strip()
    block = isinstance(node.value, dict | list) and stripped[:1] not in ("{", "[")
    if "\n" in stripped or block:
        raise _fault(
            "the value must be a scalar or a flow list or mapping", text, start + 1, len(value), "{a: 1, b: 2}"
        )
    if _is_cut(node, stripped):
        raise _fault('"#" starts a comment in YAML', text, start + 1, len(value), "put the value in quotes")
    return path, node.under(path)


def _is_cut(node: Node, written: str) -> bool:
    """Whether a comment swallowed a part of an unquoted value."""
    if isinstance(node.value, str):
        return written[:1] not in ("'", '"') and node.value != written
    return not isinstance(node.value, dict | list) and "#" in written


def _replace(node: Node, parts: list[str], done: int, value: Node, text: str) -> Node:
    """The same tree with `value` at `parts`, of which `done` lead to `node`; missing mappings on the way are made."""
    if done == len(parts):
        return Node(value.value, value.mark, _key(text, parts))
    part = parts[done]
    if isinstance(node.value, list):
        items = list(node.value)
        if not (part.isdecimal() and int(part) < len(items)):
            raise _fault(f"there is no item {part} in a list of {len(items)}", text, 1, text.index("="), None)
        items[int(part)] = _replace(items[int(part)], parts, done + 1, value, text)
        return Node(items, node.mark, node.key)
    if isinstance(node.value, dict):
        entries = dict(node.value)
    elif isinstance(node.value, str):
        entries = {"name": Node(node.value, node.mark, node.mark)}
    elif node.value is None:
        entries = {}
    else:
        at = node.mark.path
        raise _fault(f"{at} is {node.value!r}, which has no entries", text, 1, text.index("="), f"{FLAG} {at}={{...}}")
    below = entries.get(part) or Node(None, value.mark, _key(text, parts[: done + 1]))
    entries[part] = _replace(below, parts, done + 1, value, text)
    return Node(entries, node.mark, node.key)


def _key(text: str, parts: list[str]) -> Mark:
    """The place of the last of `parts` within the path."""
    start = len(text) - len(text.lstrip()) + sum(len(part) + 1 for part in parts[:-1])
    return Mark(FLAG, 1, len(FLAG) + 2 + start, ".".join(parts), f"{FLAG} {text}", len(parts[-1]))


def _fault(message: str, text: str, start: int, width: int, fix: str | None) -> RecipeError:
    shown = f"{FLAG} {text}".splitlines()[0]
    mark = Mark(FLAG, 1, len(FLAG) + 1 + start, text.partition("=")[0].strip(), shown, max(1, width))
    return RecipeError(message, code="DK103", where=mark, fix=fix)
