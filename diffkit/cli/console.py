"""Printing: tables for people, JSON for programs, errors in one style on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click


def colors() -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def say(text: str = "") -> None:
    """One line or block on standard output."""
    click.echo(text, color=colors())


def say_error(text: str) -> None:
    """An error on standard error; the code in red on a terminal."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and text.startswith("error["):
        head, _, rest = text.partition("]")
        text = click.style(f"{head}]", fg="red", bold=True) + rest
    click.echo(text, err=True)


def say_json(value: Any) -> None:
    """Any plain value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[str]], head: Sequence[str], title: str | None = None) -> None:
    """Columns as wide as the terminal allows; plain text, aligned, where it is none."""
    from rich.console import Console
    from rich.table import Table

    wide = None if sys.stdout.isatty() else 160
    console = Console(width=wide, no_color=not colors(), highlight=False)
    grid = Table(*head, title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
