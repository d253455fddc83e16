"""What checks look at: trial objects, valid values, names and places, by path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import Mark
from .resolve import Resolver
from .signature import section_parameters
from .spec import Section, Spec


@dataclass(frozen=True)
class View:
    """The state of a validation, also of one that found faults: what failed is None."""

    resolver: Resolver

    @property
    def shape(self) -> object:
        """The Shape of what diffuses, None where data or codec could not tell."""
        return self.resolver.shape()

    def built(self, path: str) -> Any:
        """The trial object of the component at `path`."""
        return self.resolver.built.get(path)

    def paths(self, path: str) -> list[str]:
        """Paths of the trial objects in the list at `path`."""
        return [at for at in self.resolver.built if at == path or at.rpartition(".")[0] == path]

    def value(self, path: str, default: Any = None) -> Any:
        """The value at `path`: what is written, else what the section has as default; `default` where it failed."""
        if path in self.resolver.values:
            return self.resolver.values[path]
        return default if self.resolver.root.at(path) is not None else _default(path, default)

    def given(self, path: str) -> bool:
        """Whether the recipe says anything at `path`."""
        return self.resolver.root.at(path) is not None

    def name(self, path: str) -> str:
        """The name of the component at `path`."""
        return self.resolver.names.get(path, "")

    def mark(self, path: str, *keys: str) -> Mark:
        """Where the first of `keys` stands below `path`, else `path` itself, else what it would belong to."""
        root = self.resolver.root
        for key in keys:
            if (node := root.at(f"{path}.{key}")) is not None:
                return node.mark
        while path:
            if (node := root.at(path)) is not None:
                return node.mark if not isinstance(node.value, dict) else node.label
            path = path.rpartition(".")[0]
        return root.mark


def _default(path: str, default: Any) -> Any:
    cls: type[Section] = Spec
    *sections, last = path.split(".")
    for name in sections:
        found = next((p for p in section_parameters(cls) if p.name == name and p.role == "section"), None)
        if found is None:
            return default
        cls = found.target
    field = next((p for p in section_parameters(cls) if p.name == last), None)
    return default if field is None or field.required else field.default
