"""Commands that list installed components and plugins: `ls`, `show` and `plugins`. Only `show` may import torch, with
the component that it describes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..host import Plugin
from .console import as_json, list_all_commands, say, say_json, table


@click.command()
@click.argument("kind", required=False)
@as_json
@click.option("--runs", "folder", default="runs", show_default=True, help="Folder of the runs.")
def ls(kind: str | None, as_json: bool, folder: str) -> None:
    """List components, recipes and runs, or only those of KIND: a kind of component, `recipes` or `runs`."""
    from ..host import registry

    host = registry()
    everything = kind is None
    parts: dict[str, list[dict[str, str]]] = {}
    if everything or kind not in ("recipes", "runs"):
        for one in host.entries(kind):
            row = {"name": one.name, "plugin": one.plugin.label, "summary": one.entry.summary}
            parts.setdefault(one.kind, []).append(row)
    if everything or kind == "recipes":
        parts["recipes"] = [{"name": n, "path": str(p), "summary": _headline(p)} for n, p in host.recipes().items()]
    if everything or kind == "runs":
        from ..runs.listing import list_runs

        parts["runs"] = list_runs(Path(folder))
    if as_json:
        say_json(parts)
        return
    for name, rows in parts.items():
        if everything and not rows:
            continue
        columns = [c for c in (rows[0] if rows else {"name": ""}) if c != "path"]
        table([[row[c] for c in columns] for row in rows], columns, title=f"\n{name}")


def _headline(path: Path) -> str:
    """Return the first comment line of a recipe."""
    try:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return "(cannot be read)"
    return first.lstrip("# ").strip() if first.startswith("#") else ""


@click.command()
@click.argument("kind")
@click.argument("name")
@as_json
def show(kind: str, name: str, as_json: bool) -> None:
    """Describe the component NAME of KIND: what it computes, its options, its source."""
    from ..recipe.contents import describe

    described = describe(kind, name)
    if as_json:
        say_json(asdict(described))
        return
    say(f"{described.kind}/{described.name}   ({described.plugin})\n")
    say(f"{described.doc}\n")
    rows = [[one.name, one.type, one.default] for one in described.options]
    if rows:
        table(rows, ["option", "type", "default"])
    else:
        say("no options")
    say(f"\nclass: {described.target}")


@click.command()
@click.option("--why", "why", metavar="NAME", help="Show why one plugin is broken or disabled.")
@as_json
@click.pass_context
def plugins(ctx: click.Context, why: str | None, as_json: bool) -> None:
    """List plugins, their components, and which plugins are broken."""
    from ..host import registry

    list_all_commands(ctx)
    host = registry()
    if why is not None:
        say(host.why(why))
        return
    if as_json:
        facts = ("name", "distribution", "version", "origin", "status", "reason", "notes")
        say_json([{fact: getattr(p, fact) for fact in facts} | {"entries": _entries(p)} for p in host.plugins])
        return
    rows = [[p.name, p.label, p.status, p.reason or ", ".join(_entries(p))] for p in host.plugins]
    table(rows, ["plugin", "from", "status", "components"])
    for p in host.plugins:
        for note in p.notes:
            say(f"note: {p.name}: {note}")
    if any(p.status == "broken" for p in host.plugins):
        say("\nTo see the traceback of a broken plugin: diffkit plugins --why NAME")


def _entries(plugin: Plugin) -> list[str]:
    return [f"{entry.kind}/{entry.name}" for entry in plugin.entries]
