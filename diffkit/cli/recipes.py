"""Commands about recipes: `validate`, `config`, `schema`, `cp` and `cite`. They train and sample nothing."""

from __future__ import annotations

import json
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import DataError, RecipeError, UsageError
from .console import as_json, say, say_error, say_json

if TYPE_CHECKING:
    from ..recipe.spec import Recipe

overrides = click.option(
    "--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Change a value, as in --set train.steps=100."
)


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@overrides
@as_json
def validate(recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check recipes (files or built-in names) without running them, and list every error."""
    from ..recipe.validate import load_recipe

    worst = 0
    records = []
    for source in recipes:
        try:
            recipe = load_recipe(source, overrides)
        except RecipeError as error:
            worst = max(worst, error.exit_code)
            errors = error.errors or (error,)
            records.append({"recipe": source, "valid": False, "faults": [_record(one) for one in errors]})
            if not as_json:
                say_error(error.render())
        else:
            absent = _absent_data(recipe)
            warnings = [*recipe.warnings, *([] if absent is None else [absent])]
            records.append({"recipe": source, "valid": True, "warnings": [_record(one) for one in warnings]})
            if not as_json:
                for warning in warnings:
                    say_error(warning.render().replace("error[", "warning[", 1))
                say(f"{source}: valid")
    if as_json:
        say_json(records)
    sys.stdout.flush()
    return worst


def _absent_data(recipe: Recipe) -> DataError | None:
    """Return why the examples cannot be read, also if their shape is known without them; None if they are there."""
    if recipe.data_error is not None:
        return recipe.data_error
    try:
        recipe.objects["data"].fingerprint()
    except DataError as error:
        return error
    return None


def _record(error: Exception) -> dict[str, object]:
    where = getattr(error, "where", None)
    place = {"file": where.file, "line": where.line, "column": where.column, "path": where.path} if where else {}
    return {"code": getattr(error, "code", ""), "message": str(error), "hint": getattr(error, "hint", None), **place}


@click.command()
@click.argument("recipe")
@overrides
@click.option("--origins", is_flag=True, help="Print the origin of each value.")
@click.option("--diff", "other", metavar="OTHER", help="Show only what differs from another recipe.")
@as_json
def config(recipe: str, overrides: tuple[str, ...], origins: bool, other: str | None, as_json: bool) -> None:
    """Print every value of RECIPE, defaults included."""
    from ..recipe import effective as whole
    from ..recipe.validate import load_recipe

    loaded = load_recipe(recipe, overrides)
    if other is not None:
        changes = whole.difference(load_recipe(other), loaded)
        if as_json:
            sides = [(c.path, {"before": c.before, "after": c.after}) for c in changes]
            say_json([{"path": path} | {k: v.value for k, v in both.items() if v} for path, both in sides])
        for change in () if as_json else changes:
            shown = [whole.inline(v.value) if v else "absent" for v in (change.before, change.after)]
            say(f"{change.path}: {' -> '.join(shown)}")
        if not changes and not as_json:
            say("The two recipes are equal.")
        return
    if as_json:
        values = whole.origins(loaded)
        say_json({path: {"value": v.value, "origin": v.origin} for path, v in values.items()})
        return
    text = whole.effective_yaml(loaded)
    say(text if origins else _without_comments(text))


def _without_comments(text: str) -> str:
    """Return the lines of effective.yaml without their comments, which hold the origins."""
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
    out.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    say(f"{out}   First line of a recipe: # yaml-language-server: $schema={out}")


@click.command()
@click.argument("recipe")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def cp(recipe: str, file: Path | None, force: bool) -> None:
    """Copy the built-in recipe RECIPE to FILE (by default NAME.yaml here) to edit it."""
    from ..host import registry

    recipes = registry().recipes()
    if recipe not in recipes:
        from ..host.unknown_names import recipe_holder

        package = recipe_holder(recipe)
        near = get_close_matches(recipe, recipes, n=1)
        hint = f'did you mean "{near[0]}"?' if near else None
        fix = f"pip install {package}" if package else None
        message = f'there is no built-in recipe "{recipe}"'
        raise UsageError(message, code="DK014", hint=hint, choices=sorted(recipes), fix=fix)
    name = f"{recipe.rpartition('/')[2]}.yaml"
    target = Path(name) if file is None else file / name if file.is_dir() else file
    if target.exists() and not force:
        raise UsageError(f"{target} exists", code="DK015", fix="choose another name, or pass --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_renamed(recipes[recipe].read_text(encoding="utf-8"), target.stem), encoding="utf-8")
    say(f"{target}   Edit it, then: diffkit run {target}")


def _renamed(text: str, name: str) -> str:
    """Return the recipe renamed to the name of its file, so that its runs get their own default directory."""
    from ..storage.run_directory import RUN_NAME

    return re.sub(r"(?m)^name: \S+", f"name: {name}", text, count=1) if RUN_NAME.fullmatch(name) else text


@click.command()
@click.argument("recipe")
def cite(recipe: str) -> None:
    """Print a BibTeX entry for each paper whose components RECIPE uses."""
    from ..host.bibliography import cited
    from ..recipe.contents import named

    found = cited(component for _, component in named(recipe))
    if not found:
        say("No component of this recipe has a paper to cite.")
    for one in found:
        say(f"% {one.used_for}\n{one.bibtex}\n")
