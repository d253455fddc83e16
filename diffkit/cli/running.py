"""Commands that compute: torch is imported when one of them runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import say, say_error, say_json, table
from .recipes import overrides

device = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Where to run.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print the result only.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Show tracebacks of errors too.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
WEIGHTS = "Which weights: the first average, the trained ones, an average by name, or a power average of width W."
run_argument = click.argument("run", type=click.Path(path_type=Path))


@click.command()
@click.argument("recipe")
@overrides
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; by default runs/NAME.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all random streams.")
@click.option("--resume", type=click.Choice(["auto", "never", "must"]), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Resolve, measure five steps, and say what the run would take.")
@device
@as_json
@quiet
@verbose
def run(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    seed: int | None,
    resume: str,
    dry_run: bool,
    device: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train, sample, evaluate and report as RECIPE says (a file or a built-in name).

    The same command line continues where it stopped, or says that it is done.
    """
    from ..recipe import load_recipe

    changed = overrides if seed is None else (*overrides, f"seed={seed}")
    loaded = load_recipe(recipe, changed)
    for warning in loaded.warnings:
        say_error(warning.render().replace("error[", "warning[", 1))
    if dry_run:
        from ..runs.dry_run import preview

        plan = preview(loaded, out, device)
        say_json(plan) if as_json else table([[name, str(value)] for name, value in plan.items()], ["what", "value"])
        return
    from ..runs.pipeline import run as run_recipe

    finished = run_recipe(loaded, out, device=device, resume=resume, quiet=quiet)  # type: ignore[arg-type]
    _conclude(finished.results, finished.directory.report, as_json)


def _conclude(results: dict[str, Any], report: Path, as_json: bool) -> None:
    if as_json:
        say_json(results | {"report": str(report)})
        return
    rows = [
        [
            metric if name.replace("_", "-") == metric else f"{metric} {name}",
            f"{value:.4g}",
            "" if held_out is None else f"{held_out:.4g}",
        ]
        for metric, record in results.get("metrics", {}).items()
        for name, value in record["values"].items()
        if isinstance(value, int | float)
        for held_out in [record["held_out"].get(name)]
    ]
    if rows:
        table(rows, ["metric", "samples", "real held-out data"])
    if report.is_file():
        say(f"\nreport: {report}")


@click.command()
@run_argument
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--sampler", metavar="NAME", help="Another sampler than the recipe's; options as NAME,option=value.")
@click.option("--grid", metavar="NAME", help="Another grid than the recipe's.")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps.")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME|width:W", help=WEIGHTS)
@click.option("--labels", metavar="0,1,...", help="Classes, repeated until --count.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--format", "form", type=click.Choice(["png", "npz"]), help="By default png for images, else npz.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; by default below RUN/samples.")
@device
@quiet
@verbose
def sample(
    run: Path,
    count: int,
    sampler: str | None,
    grid: str | None,
    steps: int | None,
    weights: str,
    labels: str | None,
    seed: int,
    form: str | None,
    out: Path | None,
    device: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Draw samples from the run directory RUN; sample i of a seed is the same whatever the batch size."""
    from ..runs import open_run
    from ..runs.sampling import SampleRequest, is_image, save_npz, save_png

    opened = open_run(run, device=device)
    data = opened.assembly.data
    form = _form(form, out, is_image(data))
    request = SampleRequest(
        count=count,
        sampler=_component(sampler),
        grid=_component(grid),
        steps=steps,
        weights=weights,
        seed=seed,
        labels=_labels(labels),
    )
    drawn = opened.draw(request, progress=not quiet)
    told = [weights, sampler, grid, f"{steps}steps" if steps else None, f"labels{labels}" if labels else None]
    name = re.sub(r"[^\w.=+-]+", "-", "-".join(["drawn", *filter(None, told), f"seed{seed}"]))
    target = out or opened.directory.samples / f"{name}.{form}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "png":
        save_png(target, data, drawn.x)
    else:
        arrays = {"x": data.to_storage(drawn.x).numpy()}
        save_npz(target, arrays if drawn.labels is None else arrays | {"labels": drawn.labels.numpy()})
    say(f"{target}   {count} samples, {drawn.nfe} evaluations each, {drawn.seconds:.1f} s")


def _form(form: str | None, out: Path | None, image: bool) -> str:
    """What --format says, else what the name of the file says, else what fits the data."""
    suffix = out.suffix[1:].lower() if out is not None else ""
    named = suffix if suffix in ("png", "npz") else None
    if form and named and form != named:
        raise UsageError(f"--format {form} and --out {out} disagree", code="DK016", fix="leave --format out")
    chosen = form or named or ("png" if image else "npz")
    if chosen == "png" and not image:
        raise UsageError("this data is no image", code="DK016", fix="use --format npz")
    return chosen


def _component(text: str | None) -> str | dict[str, Any] | None:
    """NAME, or NAME,option=value,... as a mapping; values are read as in a recipe."""
    if text is None or "," not in text:
        return text
    from ..recipe.yaml import parse

    name, *options = re.split(r",(?![^\[]*\])", text)  # no comma within a list
    found: dict[str, Any] = {"name": name}
    for option in options:
        key, sign, value = option.partition("=")
        if not sign:
            raise UsageError(f"{option!r} is no option", code="DK017", fix="write NAME,option=value")
        found[key] = parse(value, f"--sampler {text}").plain()
    return found


def _labels(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--labels {text}: not a list of whole numbers", code="DK017", fix="write 0,1,2") from None


@click.command()
@run_argument
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Metrics; by default those of the recipe.")
@click.option("--count", type=click.IntRange(min=2), help="Number of samples.")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps.")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME|width:W", help=WEIGHTS)
@device
@as_json
@quiet
@verbose
def evaluate(
    run: Path,
    metrics: tuple[str, ...],
    count: int | None,
    steps: int | None,
    weights: str,
    device: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure the run directory RUN; the result goes to results.json, beside that of real held-out data."""
    from ..runs import open_run

    opened = open_run(run, device=device)
    results = opened.evaluate(metrics or None, count=count, steps=steps, weights=weights, progress=not quiet)
    _conclude(results, opened.directory.report, as_json)


@click.command()
@run_argument
@verbose
def report(run: Path, verbose: bool) -> None:
    """Write report.html of the run directory RUN again, from what lies in it."""
    from ..runs import open_run

    opened = open_run(run, device="cpu")
    opened.write_report()
    say(f"report: {opened.directory.report}")
