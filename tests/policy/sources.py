"""The source files of the repository, parsed, and what they import."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Import:
    """One imported name: module and, of `from` imports, what is taken from it; whether only type checkers see it."""

    module: str
    name: str
    line: int
    typing_only: bool

    @property
    def target(self) -> str:
        """The dotted name of what is imported."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Source:
    """One Python file: its dotted name as a module, its path from the root, its text."""

    module: str
    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The file parsed."""
        return ast.parse(self.text, self.path)

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the tree."""
        return tuple(ast.walk(self.tree))

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]

    @functools.cached_property
    def imports(self) -> tuple[Import, ...]:
        """Every import, also those inside functions; relative ones resolved."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[Import]:
        hidden = {id(node) for block in self.nodes if _is_typing(block) for node in ast.walk(block)}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, "", node.lineno, id(node) in hidden)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield Import(self._resolve(node), alias.name, node.lineno, id(node) in hidden)

    def _resolve(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        base = parts[: len(parts) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def load(path: Path) -> ModuleType:
    """A script that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def core() -> tuple[Source, ...]:
    """Everything under diffkit/."""
    return _below(ROOT / "diffkit", ROOT)


@functools.cache
def plugins() -> dict[str, tuple[Source, ...]]:
    """The sources of each package under plugins/, by its distribution."""
    found = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    return {folder.name: _below(folder / "src", folder / "src") for folder in found}


def shipped() -> Iterator[Source]:
    """Everything that a wheel holds."""
    yield from core()
    for sources in plugins().values():
        yield from sources


def _below(folder: Path, base: Path) -> tuple[Source, ...]:
    return tuple(
        Source(
            ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"),
            str(path.relative_to(ROOT)),
            path.read_text(encoding="utf-8"),
        )
        for path in sorted(folder.rglob("*.py"))
    )


@functools.cache
def public_names() -> dict[str, str]:
    """The module of each public name of diffkit, as `diffkit/__init__.pyi` lists them."""
    stub = ast.parse((ROOT / "diffkit" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: f"diffkit.{node.module}" for node in imports for alias in node.names}
