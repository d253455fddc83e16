"""Commands about recipes: they compute nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import RecipeError
from .console import say, say_error, say_json

overrides = click.option(
    "--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Change a value, as in --set train.steps=100."
)


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@overrides
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check recipes (files or built-in names) without running them; every fault is shown at once."""
    from ..recipe import load_recipe

    worst = 0
    records = []
    for source in recipes:
        try:
            recipe = load_recipe(source, overrides)
        except RecipeError as error:
            worst = max(worst, error.exit_code)
            faults = error.errors or (error,)
            records.append({"recipe": source, "valid": False, "faults": [_record(fault) for fault in faults]})
            if not as_json:
                say_error(error.render())
        else:
            warnings = [_record(warning) for warning in recipe.warnings]
            records.append({"recipe": source, "valid": True, "warnings": warnings})
            if not as_json:
                for warning in recipe.warnings:
                    say_error(warning.render().replace("error[", "warning[", 1))
                say(f"{source}: valid")
    if as_json:
        say_json(records)
    sys.stdout.flush()
    return worst


def _record(fault: Exception) -> dict[str, object]:
    where = getattr(fault, "where", None)
    place = {"file": where.file, "line": where.line, "column": where.column, "path": where.path} if where else {}
    return {"code": getattr(fault, "code", ""), "message": str(fault), "hint": getattr(fault, "hint", None), **place}


@click.command()
@click.argument("recipe")
@overrides
@click.option("--origins", is_flag=True, help="Say behind each value where it comes from.")
@click.option("--diff", "other", metavar="OTHER", help="Show only what differs from another recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(recipe: str, overrides: tuple[str, ...], origins: bool, other: str | None, as_json: bool) -> None:
    """Print RECIPE whole: every value that holds, defaults included."""
    from ..recipe import effective as whole
    from ..recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if other is not None:
        changes = whole.difference(load_recipe(other), loaded)
        if as_json:
            say_json([{"path": c.path, "before": c.before, "after": c.after} for c in changes])
        for change in () if as_json else changes:
            say(f"{change.path}: {_shown(change.before)} -> {_shown(change.after)}")
        if not changes and not as_json:
            say("the two recipes mean the same")
        return
    if as_json:
        values = whole.origins(loaded)
        say_json({path: {"value": v.value, "origin": v.origin} for path, v in values.items()})
        return
    text = whole.effective_yaml(loaded)
    say(text if origins else _without_comments(text))


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _without_comments(text: str) -> str:
    """The lines of effective.yaml without the origins behind them."""
    return "\n".join(line.rpartition("  # ")[0].rstrip() if "  # " in line else line for line in text.splitlines())


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
def schema(out: Path | None) -> None:
    """Print the JSON Schema (draft 7) of recipes with every installed component.

    An editor completes a recipe that begins with the line: # yaml-language-server: $schema=FILE
    """
    from ..recipe.schema import json_schema

    if out is None:
        say_json(json_schema())
        return
    import json

    out.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    say(f"{out}   first line of a recipe: # yaml-language-server: $schema={out}")
