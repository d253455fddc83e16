"""Commands that list: none of them imports torch, or any component that it was not asked for."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path

import click

from ..errors import UsageError
from .console import say, say_json, table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("kind", required=False)
@as_json
@click.option("--runs", "folder", default="runs", show_default=True, help="Folder that holds runs.")
def ls(kind: str | None, as_json: bool, folder: str) -> None:
    """List components, recipes and runs; KIND is a kind of component, `recipes` or `runs`."""
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
        from ..runs.listing import runs

        parts["runs"] = runs(Path(folder))
    if as_json:
        say_json(parts)
        return
    for name, rows in parts.items():
        if everything and not rows:
            continue
        columns = [c for c in (rows[0] if rows else {"name": ""}) if c != "path"]
        table([[row[c] for c in columns] for row in rows], columns, title=f"\n{name}")


def _headline(path: Path) -> str:
    """The first comment of a recipe."""
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

    account = describe(kind, name)
    if as_json:
        say_json(asdict(account))
        return
    say(f"{account.kind}/{account.name}   ({account.plugin})\n")
    say(f"{account.doc}\n")
    rows = [[one.name, one.type, one.default] for one in account.options]
    if rows:
        table(rows, ["option", "type", "default"])
    else:
        say("no options")
    say(f"\nclass: {account.target}")


def _renamed(text: str, name: str) -> str:
    """The recipe under the name of its file, so that its runs do not meet those of the one it was copied from."""
    from ..config import NAME

    return re.sub(r"(?m)^name: \S+", f"name: {name}", text, count=1) if re.fullmatch(NAME, name) else text


@click.command()
@click.argument("recipe")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def cp(recipe: str, file: Path | None, force: bool) -> None:
    """Copy the built-in recipe RECIPE to FILE (by default NAME.yaml here) to edit it."""
    from ..host import registry

    recipes = registry().recipes()
    if recipe not in recipes:
        from difflib import get_close_matches

        from ..host.unknown_names import recipe_holder

        package = recipe_holder(recipe)
        near = get_close_matches(recipe, recipes, n=1)
        raise UsageError(
            f'there is no built-in recipe "{recipe}"',
            code="DK014",
            hint=f'did you mean "{near[0]}"?' if near else None,
            choices=sorted(recipes),
            fix=f"pip install {package}, which has it" if package else None,
        )
    target = file or Path(f"{recipe.rpartition('/')[2]}.yaml")
    if target.is_dir():
        target = target / f"{recipe.rpartition('/')[2]}.yaml"
    if target.exists() and not force:
        raise UsageError(f"{target} exists", code="DK015", fix="choose another name, or pass --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_renamed(recipes[recipe].read_text(encoding="utf-8"), target.stem), encoding="utf-8")
    say(f"{target}   edit it, then: diffkit run {target}")


@click.command()
@click.option("--why", "why", metavar="NAME", help="Show what is known about one plugin: traceback, switches.")
@as_json
def plugins(why: str | None, as_json: bool) -> None:
    """List plugins, what they offer, and which are broken."""
    from ..host import registry

    host = registry()
    if why is not None:
        say(host.why(why))
        return
    if as_json:
        say_json(
            [
                {
                    "name": p.name,
                    "distribution": p.distribution,
                    "version": p.version,
                    "origin": p.origin,
                    "status": p.status,
                    "reason": p.reason,
                    "entries": [f"{e.kind}/{e.name}" for e in p.entries],
                }
                for p in host.plugins
            ]
        )
        return
    rows = [
        [p.name, p.label, p.status, p.reason or ", ".join(f"{e.kind}/{e.name}" for e in p.entries)]
        for p in host.plugins
    ]
    table(rows, ["plugin", "from", "status", "offers"])
    if any(p.status == "broken" for p in host.plugins):
        say("\na traceback: diffkit plugins --why NAME")


@click.command()
@click.argument("recipe")
def cite(recipe: str) -> None:
    """Print BibTeX of the paper behind each component that RECIPE names."""
    from ..runs.citations import citations

    found = citations(recipe)
    if not found:
        say("no component of this recipe names a paper")
    for one in found:
        say(f"% {one.used_for}\n{one.bibtex}\n")


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Report versions, hardware, plugins and disk, and what is wrong with them."""
    from .doctor import examine

    findings = examine()
    if as_json:
        say_json([{"what": f.what, "value": f.value, "problem": f.problem} for f in findings])
    else:
        table([[f.what, f.value, f.problem or ""] for f in findings], ["what", "value", "problem"])
    if any(f.problem for f in findings):
        sys.stdout.flush()
