"""The commands of this package; torch is imported when a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit import hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .commands import compress, decompress, inspect

    for command in (compress, decompress, inspect):
        group.add_command(command)
