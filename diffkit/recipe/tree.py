"""The parsed recipe: plain values, each with the place where it was written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import Mark

Scalar = None | bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes; `mark` is where it stands, `key` where its key stands."""

    value: Scalar | list[Node] | dict[str, Node]
    mark: Mark
    key: Mark | None = None

    @property
    def label(self) -> Mark:
        """The place to point at when the value as a whole is meant: its key where it has one."""
        return self.key or self.mark

    def plain(self) -> object:
        """The value without its marks."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """The entry of a mapping or the item of a list, None where there is none."""
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def at(self, path: str) -> Node | None:
        """The node at a dotted path, None where nothing is written."""
        node: Node | None = self
        for part in path.split(".") if path else []:
            if node is None:
                return None
            node = node.child(int(part) if part.isdecimal() and isinstance(node.value, list) else part)
        return node

    def entries(self, shorthand: str | None) -> dict[str, Node] | None:
        """The mapping here, a bare value being put under its shorthand; None where neither fits."""
        if isinstance(self.value, dict):
            return self.value
        if self.value is None:
            return {}
        if shorthand is None or (shorthand == "name" and not isinstance(self.value, str)):
            return None
        return {shorthand: Node(self.value, self.mark, self.key)}

    def under(self, path: str) -> Node:
        """The same node with every mark told that it lies below `path`."""

        def moved(mark: Mark) -> Mark:
            return replace(mark, path=f"{path}.{mark.path}" if mark.path else path)

        value = self.value
        if isinstance(value, dict):
            value = {name: node.under(path) for name, node in value.items()}
        elif isinstance(value, list):
            value = [node.under(path) for node in value]
        return Node(value, moved(self.mark), moved(self.key) if self.key else None)
