"""Printing: tables for people, JSON for programs, errors in one style on standard error.

Names and texts come from files and plugins. So all text passes `plain`, and none of it is read as markup.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..errors import plain

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def list_all_commands(ctx: click.Context) -> list[str]:
    """Return the names of all commands. A plugin with commands that cannot be imported is marked as broken."""
    program = ctx.find_root()
    return program.command.list_commands(program) if isinstance(program.command, click.Group) else []


def colors() -> bool:
    """Return whether to print colors: on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class ReaderLeftError(Exception):
    """Raised if the reader of standard output has closed it, such as `head`; this is not an error of diffkit."""


@contextlib.contextmanager
def to_reader() -> Iterator[None]:
    """Raise ReaderLeftError if printing fails because the pipe or terminal is closed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            raise ReaderLeftError from error
        raise


def say(text: str = "") -> None:
    """Print one line or block to standard output."""
    with to_reader():
        click.echo(plain(text), color=colors())


def say_error(text: str) -> None:
    """Print an error to standard error, unless it is closed; the code is red on a terminal."""
    text = plain(text)
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and text.startswith("error["):
        head, _, rest = text.partition("]")
        text = click.style(f"{head}]", fg="red", bold=True) + rest
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def say_json(value: Any) -> None:
    """Print a plain value as JSON; characters that a terminal would interpret are escaped as `\\u001b`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    with to_reader():
        click.echo(re.sub(r"[^\n -~]", lambda c: c[0] if plain(c[0]) == c[0] else json.dumps(c[0])[1:-1], text))


def table(rows: Sequence[Sequence[str]], head: Sequence[str], title: str | None = None) -> None:
    """Print aligned columns, as wide as the terminal or 160 characters.

    Args:
        rows: Cells of each row.
        head: Names of the columns.
        title: A line above; default none.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(text: str) -> Text:
        return Text(plain(text, keep=""))

    wide = None if sys.stdout.isatty() else 160
    text = io.StringIO()  # rich itself ends the process if the pipe is closed
    console = Console(file=text, width=wide, force_terminal=colors(), no_color=not colors(), highlight=False)
    name = None if title is None else Text(plain(title), "table.title")
    grid = Table(title=name, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in head:
        grid.add_column(cell(column))
    for row in rows:
        grid.add_row(*map(cell, row))
    console.print(grid)
    with to_reader():
        click.echo(text.getvalue(), nl=False, color=colors())
