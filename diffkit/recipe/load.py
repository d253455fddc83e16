"""Recipes from files, built-in names, texts and mappings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffkitError, Mark, RecipeError
from ..host import registry
from ..host.known import recipe_holder
from .overrides import override
from .strict import MAX_BYTES, parse
from .tree import Node
from .words import nearest, quote

if TYPE_CHECKING:
    from .recipe import Recipe

Source = str | os.PathLike[str] | Mapping[str, Any]


def load_recipe(source: Source, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a file, under a built-in name, in a YAML text of several lines, or in a mapping.

    `overrides` are texts `path=value`, applied in turn. Every component named is imported and built once on trial,
    networks on the meta device; data files are not needed. Raises RecipeError, whose `errors` are all the faults
    found, each with its place; its `exit_code` is 4 where only plugins are at fault.
    """
    from .recipe import validate  # this imports torch, which reading alone must not

    text, root = read(source, overrides)
    return validate(text, root)


def read(source: Source, overrides: Iterable[str] = ()) -> tuple[str, Node]:
    """The text as given and its tree under the overrides; imports neither torch nor any component."""
    text, name = _text(source)
    root = parse(text, name)
    if not isinstance(root.value, dict) and root.value is not None:
        raise RecipeError("a recipe is a mapping", code="DK101", where=root.mark, fix="write key: value lines")
    return text, override(root if root.value is not None else Node({}, root.mark), overrides)


def raise_all(found: Iterable[DiffkitError], what: str) -> None:
    """Raise one RecipeError for all faults, in the order of their places; nothing where there are none."""
    faults = sorted(found, key=lambda e: (e.where.file, e.where.line, e.where.column) if e.where else ("", 0, 0))
    if not faults:
        return
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    error = RecipeError(f"{what}: {count}; the first: {faults[0]}", errors=faults)
    error.exit_code = faults[0].exit_code if len({fault.exit_code for fault in faults}) == 1 else RecipeError.exit_code
    raise error


def as_text(value: Mapping[str, Any]) -> str:
    """A mapping of plain values as JSON, which is YAML. Raises RecipeError where a value is not plain."""

    def plain(other: object) -> object:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"a recipe holds numbers, texts, lists and mappings, not {type(other).__name__}")

    try:
        return json.dumps(dict(value), indent=1, ensure_ascii=False, allow_nan=False, default=plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"this mapping is no recipe: {error}", code="DK106") from error


def _text(source: Source) -> tuple[str, str]:
    if isinstance(source, Mapping):
        return as_text(source), "<mapping>"
    if isinstance(source, str) and "\n" in source:
        return source, "<text>"
    path = Path(source)
    if path.is_file():
        return _file(path), str(source)
    built_in = registry().recipes()
    if isinstance(source, str) and source in built_in:
        return _file(built_in[source]), built_in[source].name
    raise _not_found(str(source), path, built_in)


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path} is larger than {MAX_BYTES >> 20} MiB", code="DK101", where=Mark(str(path), 1))
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"{path} is not UTF-8 text", code="DK101", where=Mark(str(path), line), fix="save the file as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}", code="DK109") from error


def _not_found(source: str, path: Path, built_in: Mapping[str, Path]) -> RecipeError:
    name = path.name.removesuffix(".yaml")
    if package := recipe_holder(name):
        return RecipeError(
            f'recipe "{name}" comes with the package {package}, which is not installed or not loaded',
            code="DK109",
            fix=f"pip install {package}; if it is installed, diffkit plugins --why {package.removeprefix('diffkit-')}",
        )
    guess = nearest(name, built_in)
    return RecipeError(
        f"there is no recipe {quote(source)}: neither a file nor a built-in name",
        code="DK109",
        hint=f'did you mean "{guess}"?' if guess else None,
        choices=sorted(built_in),
        fix="diffkit ls recipes shows them; diffkit cp NAME makes a file of one",
    )
