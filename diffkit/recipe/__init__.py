"""Recipes: read YAML strictly, validate it as a whole, and build objects. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Assembly": "assembly",
    "Recipe": "spec",
    "assemble": "assembly",
    "build": "assembly",
    "entries": "contents",
    "load_recipe": "validate",
}
__all__ = ["Assembly", "Recipe", "assemble", "build", "entries", "load_recipe"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


if TYPE_CHECKING:
    from .assembly import Assembly as Assembly
    from .assembly import assemble as assemble
    from .assembly import build as build
    from .contents import entries as entries
    from .spec import Recipe as Recipe
    from .validate import load_recipe as load_recipe
