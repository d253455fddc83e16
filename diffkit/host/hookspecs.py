"""All hooks. A plugin module implements any of them with `@hookimpl`; docs/reference/hooks.md shows each in use.

Hooks yield: a faulty one then raises while the host iterates that plugin, and no other is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from .entry import Entry, Kind

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker("diffkit")
hookimpl = pluggy.HookimplMarker("diffkit")


@hookspec
def diffkit_kinds() -> Iterable[Kind]:  # type: ignore[empty-body]
    """Yield kinds of components beyond those of diffkit itself."""


@hookspec
def diffkit_components() -> Iterable[Entry]:  # type: ignore[empty-body]
    """Yield one `Entry` for each component; its target is imported on first use, not here."""


@hookspec
def diffkit_recipes() -> Iterable[Path]:  # type: ignore[empty-body]
    """Yield absolute directories; each `NAME.yaml` in them is the built-in recipe NAME."""


@hookspec
def diffkit_laws() -> Iterable[str]:  # type: ignore[empty-body]
    """Yield dotted names of modules that register laws with `diffkit.testing.law`; imported when laws are needed."""


@hookspec
def diffkit_commands(group: click.Group) -> None:
    """Add commands to `group`, the command `diffkit`; names that are taken may not be replaced."""
