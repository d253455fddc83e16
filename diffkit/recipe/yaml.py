"""Read YAML strictly: scalars of YAML 1.2; no tags, anchors, aliases, merge keys or duplicate keys; limited size and
depth; with the place of every key and value. The reader uses the events of the parser and builds plain values only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..errors import Mark, RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_FAULTS = 50
LINE_SHOWN = 200

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str, file: str, *, prefix: str = "") -> Node:
    """Read one YAML document.

    Args:
        text: the document.
        file: its name, for messages.
        prefix: for a document of one line, text that comes before it on this line, such as `a=` of `--set a=1`.

    Returns:
        The tree of its values, with places.

    Raises:
        RecipeError: with all faults up to the first syntax error.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES >> 20} MiB", code="DK101", where=Mark(file, 1))
    reader = _Reader(text, file, prefix)
    root = reader.read()
    if reader.faults:
        raise RecipeError(f"{file} is not a valid recipe", errors=reader.faults)
    return root


class _Reader:
    """One pass over the events of one text."""

    def __init__(self, text: str, file: str, prefix: str) -> None:
        self.text, self.file, self.prefix = text, file, prefix
        self.lines = text.splitlines()
        self.faults: list[RecipeError] = []
        self.nodes = 0

    def mark(self, start: Any, end: Any, path: str) -> Mark:
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        shift = self.prefix if start.line == 0 else ""
        stop = end.column if end.line == start.line else len(line)
        shown, column = (shift + line).rstrip(), len(shift) + start.column + 1
        width = max(1, stop - start.column)
        if len(shown) > LINE_SHOWN:
            shown = "" if column + width > LINE_SHOWN else shown[:LINE_SHOWN] + " ..."
        return Mark(self.file, start.line + 1, column, path, shown, width)

    def fault(self, message: str, mark: Mark, fix: str | None = None) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(RecipeError(message, code="DK101", where=mark, fix=fix))

    def read(self) -> Node:
        """Run the parser; its errors become faults with their place."""
        try:
            return self._document(self._events())
        except _Stop:
            pass
        except yaml.MarkedYAMLError as error:
            forgotten = "expected ':'" in (error.problem or "") and error.context_mark is not None
            at = error.context_mark if forgotten else error.problem_mark or error.context_mark
            said = ", ".join(part for part in (error.problem, error.context) if part)
            fix = "check the indentation, colons, brackets and quotes nearby"
            self.fault(f"this is not YAML: {said}", self._point(at), fix)
        except (yaml.YAMLError, UnicodeError) as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
            self.fault(f"this is not YAML: {said}", Mark(self.file, 1), "save the file as UTF-8 text")
        return Node(None, Mark(self.file, 1))

    def _point(self, at: Any) -> Mark:
        """Return the place of an error of the parser; the last line for an error at the end of the text."""
        if at is None or not self.lines:
            return Mark(self.file, 1)
        if at.line < len(self.lines):
            return self.mark(at, at, "")
        last = self.lines[-1].rstrip()
        shown = last if len(last) <= LINE_SHOWN else ""
        return Mark(self.file, len(self.lines), len(self.prefix) + len(last) + 1, "", shown and self.prefix + shown)

    def _events(self) -> Iterator[Any]:
        if "\0" in self.text:
            line = self.text[: self.text.index("\0")].count("\n") + 1
            self.fault("a recipe must not contain NUL characters", Mark(self.file, line), "save the file as UTF-8 text")
            raise _Stop
        yield from yaml.parse(self.text, Loader=_PARSER)

    def _document(self, events: Iterator[Any]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    where = self.mark(event.start_mark, event.end_mark, "")
                    self.fault("a recipe is one YAML document", where, 'remove everything from this "---" on')
                    raise _Stop
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, "", None, 0)
        return root if root is not None else Node(None, Mark(self.file, 1))

    def _node(self, event: Any, events: Iterator[Any], path: str, key: Mark | None, depth: int) -> Node:
        mark = self.mark(event.start_mark, event.end_mark, path)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.fault(f"a recipe has at most {MAX_NODES:,} keys and values", mark, "put long lists into a data file")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            self.fault("a recipe cannot contain aliases (*name)", mark, "write the value out")
            return Node(None, mark, key)
        if event.anchor is not None:
            self.fault("a recipe cannot contain anchors (&name)", mark, "write the value without it")
        if event.tag is not None:
            fix = "write the value without it; `name:` selects a component"
            self.fault("a recipe cannot contain tags (!name)", mark, fix)
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event, mark), mark, key)
        if depth >= MAX_DEPTH:
            self.fault(f"a recipe is at most {MAX_DEPTH} levels deep", mark)
            raise _Stop
        read = self._list if isinstance(event, yaml.SequenceStartEvent) else self._mapping
        return Node(read(events, path, depth), mark, key)

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        if event.style:
            return str(event.value)
        try:
            return resolve(event.value)
        except ValueError as error:
            self.fault(str(error), mark)
            return None

    def _list(self, events: Iterator[Any], path: str, depth: int) -> list[Node]:
        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, events, join(path, str(len(items))), None, depth + 1))
        return items

    def _mapping(self, events: Iterator[Any], path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            node = self._node(event, events, path, None, depth + 1)
            name = self._key(event, node, path)
            mark = replace(node.mark, path=join(path, name))
            value = self._node(next(events), events, join(path, name), mark, depth + 1)
            if (first := entries.get(name)) is not None and first.key is not None:
                said = f'"{name}" is given twice, first on line {first.key.line}'
                self.fault(said, mark, "keep one of them")
            entries[name] = value
        return entries

    def _key(self, event: Any, node: Node, path: str) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self.fault("a key must be a word", node.mark)
            return ""
        if event.value == "<<" and not event.style:
            self.fault("a recipe cannot contain merge keys (<<)", node.mark, "write the entries out")
        elif not isinstance(node.value, str):
            self.fault(f"a key must be text, this is {event.value or 'nothing'}", node.mark, "put the key in quotes")
        return str(event.value)


class _Stop(Exception):  # noqa: N818 - control flow: the fault is recorded
    """Raised to end the reading of a text after an error."""


def join(path: str, name: str) -> str:
    """Return the dotted path of `name` below `path`."""
    return f"{path}.{name}" if path else name


LITERALS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INT = re.compile(r"[-+]?[0-9]+\Z", re.ASCII)
BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z", re.ASCII)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z", re.ASCII)
YAML_1_1 = {"y", "n", "yes", "no", "on", "off"}
"""Words that readers of YAML 1.1 take for true and false, so that they are written in quotes."""
LARGEST = 2**63 - 1
DIGITS = 64


def resolve(word: str) -> Scalar:
    """Return the value of an unquoted scalar. Raises ValueError for a number that is not finite or too long."""
    if word in LITERALS:
        return LITERALS[word]
    if NOT_FINITE.match(word):
        raise ValueError(f"{word} is not a finite number")
    if INT.match(word) or BASED.match(word):
        if len(word) > DIGITS or abs(number := int(word, 0 if BASED.match(word) else 10)) > LARGEST:
            raise ValueError("a whole number must fit in 64 bits")
        return number
    if FLOAT.match(word):
        if len(word) > 4 * DIGITS or not math.isfinite(real := float(word)):
            raise ValueError("a number must be finite and of at most a few hundred characters")
        return real
    return word


def is_plain(text: str) -> bool:
    """Return whether `text` without quotes is read as that text."""
    if not re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./+-]*", text, re.ASCII) or text.lower() in YAML_1_1:
        return False
    try:
        return resolve(text) == text
    except ValueError:
        return False


Scalar = None | bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes; `mark` is its place, `key` the place of its key."""

    value: Scalar | list[Node] | dict[str, Node]
    mark: Mark
    key: Mark | None = None

    @property
    def label(self) -> Mark:
        """The place to report for the whole value: the place of its key if there is a key, else of the value."""
        return self.key or self.mark

    def plain(self) -> object:
        """Return the value without its marks."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """Return the entry of a mapping or the item of a list; None if it does not exist."""
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def at(self, path: str) -> Node | None:
        """Return the node at a dotted path, or None; a value that is not a list counts as item 0 of a list."""
        node: Node | None = self
        for part in path.split(".") if path else []:
            if node is None:
                return None
            bare = part == "0" and not isinstance(node.value, list)
            child = node.child(int(part) if part.isdecimal() and isinstance(node.value, list) else part)
            node = node if child is None and bare else child
        return node

    def items(self) -> list[Node]:
        """Return the items of a list; a value that is not a list counts as one item, an empty node as no items."""
        return self.value if isinstance(self.value, list) else [] if self.value is None else [self]

    def entries(self, shorthand: str | None) -> dict[str, Node] | None:
        """Return the entries of a mapping; a scalar becomes an entry under `shorthand`; None for anything else."""
        if isinstance(self.value, dict):
            return self.value
        if self.value is None:
            return {}
        if shorthand is None or (shorthand == "name" and not isinstance(self.value, str)):
            return None
        return {shorthand: Node(self.value, self.mark, self.key)}

    def under(self, path: str) -> Node:
        """Return the same node with `path` before the path of every mark."""

        def moved(mark: Mark) -> Mark:
            return replace(mark, path=f"{path}.{mark.path}" if mark.path else path)

        value = self.value
        if isinstance(value, dict):
            value = {name: node.under(path) for name, node in value.items()}
        elif isinstance(value, list):
            value = [node.under(path) for node in value]
        return Node(value, moved(self.mark), moved(self.key) if self.key else None)
