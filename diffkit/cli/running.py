"""Commands that compute: `run`, `sample`, `evaluate` and `report`. They import torch when they are called."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DiffkitError, UsageError
from ..storage.atomic import writing
from .console import as_json, say, say_error, say_json, table
from .recipes import overrides
from .stated import (
    TEXT,
    drawn_name,
    named_files,
    pointing_to,
    stated_conditions,
    stated_guidance,
    stated_size,
)

if TYPE_CHECKING:
    from ..runs.results import EvaluationResult, Interval
    from ..storage.run_directory import Resume

device = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Device to compute on."
)
processes = click.option(
    "--nproc", type=click.IntRange(1, 1024), help="Number of processes on this host, one for each GPU."
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Print only the result.")
verbose = click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Print tracebacks of errors.")
WEIGHTS = "ema: the first average; raw: the last weights; NAME: an average; width:W: a power average of width W."
USUAL_COUNT = 64
"""Samples that are drawn without --count."""
COLUMNS = {
    "samples": ("samples", "real held-out data"),
    **dict.fromkeys(("model", "pairs", "classifier"), ("held-out data", "training data")),
}
"""By what metrics measure, what each is measured on, and what is measured in its place."""
run_argument = click.argument("run", type=click.Path(path_type=Path))


@click.command()
@click.argument("recipe")
@overrides
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/NAME]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all random streams.")
@click.option("--resume", type=click.Choice(["auto", "never", "must"]), default="auto", show_default=True)
@processes
@click.option(
    "--restarts", type=click.IntRange(min=0), default=0, help="Restarts allowed after a process is killed or hangs."
)
@click.option("--hosts", type=click.IntRange(min=1), default=1, help="Number of hosts that run this command.")
@click.option("--meet", metavar="HOST:PORT", help="Rendezvous of the hosts: one of them, and a free port on it.")
@click.option("--dry-run", is_flag=True, help="Measure five steps and print what the run would need; write nothing.")
@device
@as_json
@quiet
@verbose
def run(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    seed: int | None,
    resume: Resume,
    nproc: int | None,
    restarts: int,
    hosts: int,
    meet: str | None,
    dry_run: bool,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run RECIPE, a file or a built-in name: train, sample, evaluate and report.

    The same command continues a run that was stopped. `--nproc` starts several processes as torchrun does.
    """
    from ..recipe.validate import load_recipe

    if (meet is None) != (hosts == 1):
        fix = "pass both --hosts N and --meet HOST:PORT on each host, or neither"
        raise UsageError("--hosts and --meet belong together", code="DK029", fix=fix)
    if nproc is None and (hosts > 1 or restarts):
        nproc = 1
    changed = overrides if seed is None else (*overrides, f"seed={seed}")
    with _reported_once():
        loaded = load_recipe(recipe, changed)
    first = os.environ.get("RANK", "0") == "0"
    for warning in loaded.warnings if first and not (nproc and is_launched()) else ():
        say_error(warning.render().replace("error[", "warning[", 1))
    if dry_run:
        from ..runs.dry_run import dry_run as measure

        facts = measure(loaded, out, device)
        say_json(facts) if as_json else table([[name, str(value)] for name, value in facts.items()], ["what", "value"])
        return
    from ..runs.pipeline import run as run_recipe, run_path

    if nproc is not None and not is_launched():
        _launch(device, nproc, run_path(loaded, out), restarts, hosts, meet, loaded.train.timeout)
        return
    finished = run_recipe(loaded, out, device=device, resume=resume, quiet=quiet, handle_signals=True)
    if first:
        _print_results(finished.results, finished.directory.report, as_json)


@contextlib.contextmanager
def _reported_once() -> Iterator[None]:
    """Let the first process of this host report an error that each of them has before they join."""
    try:
        yield
    except DiffkitError as error:
        error.reported = os.environ.get("LOCAL_RANK", "0") != "0"
        raise


def is_launched() -> bool:
    """Return whether torchrun, or `--nproc`, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _launch(device: str, nproc: int, folder: Path, restarts: int, hosts: int, meet: str | None, timeout: float) -> None:
    """Run this command line in several processes."""
    from ..runtime.distributed import require_devices
    from ..runtime.launch import Hosts, launch

    require_devices(device, nproc)
    place = Hosts(hosts, meet) if meet is not None else Hosts()
    arguments = click.get_current_context().obj
    launch(arguments, nproc, folder, restarts=restarts, hosts=place, timeout=timeout)


def _print_results(results: EvaluationResult, report: Path, as_json: bool) -> None:
    if as_json:
        say_json(results.model_dump(mode="json") | {"report": str(report)})
        return
    for needs, columns in COLUMNS.items():
        rows = [
            [
                metric if name.replace("_", "-") == metric else f"{metric} {name}",
                f"{value:.4g}",
                _interval(result.intervals.get(name)),
                "" if (beside := (result.held_out | result.train).get(name)) is None else f"{beside:.4g}",
                _interval((result.held_out_intervals | result.train_intervals).get(name)),
            ]
            for metric, result in results.metrics.items()
            for name, value in result.values.items()
            if value is not None and result.needs == needs
        ]
        if rows:
            table(rows, ["metric", columns[0], "95 % interval", columns[1], "95 % interval"])
    if results.verdict is not None:
        say(f"\n{results.verdict.text}")
    if report.is_file():
        say(f"\nreport: {report}")


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.low:.3g} to {found.high:.3g}"


@click.command()
@run_argument
@click.option(
    "--count", type=click.IntRange(min=1), help="Samples.  [default: 64; with a text or a picture, as the recipe]"
)
@click.option("--sampler", metavar="NAME", help="Sampler, with options as NAME,option=value.  [default: as the recipe]")
@click.option("--grid", metavar="NAME", help="Grid.  [default: as the recipe]")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps.")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME|width:W", help=WEIGHTS)
@click.option("--labels", metavar="0,hat,...", help="Classes, numbers or names, repeated until there are --count.")
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    metavar="NAME=VALUE|@FILE",
    help="Condition, or a file of them: .txt, .npy, a picture; may be repeated.",
)
@click.option("--prompt", metavar="TEXT", help="Short for --condition text=TEXT.")
@click.option(
    "--guidance",
    "guidances",
    multiple=True,
    metavar="NAME=SCALE",
    help="Guidance, or NAME.OPTION=VALUE, such as cfg=3.0; may be repeated.  [default: as the recipe]",
)
@click.option("--scale", type=float, help="Short for --guidance cfg=SCALE.")
@click.option(
    "--negative", metavar="TEXT", help="Short for --guidance cfg.negative=TEXT: what samples should not show."
)
@click.option("--size", metavar="HxW", help="Size of the samples.  [default: as the data]")
@click.option("--image", type=click.Path(path_type=Path), help="Picture to start from (image to image).")
@click.option(
    "--strength",
    type=float,
    help="How far samples may leave --image: share of the steps, 0 to 1.  [default: 0.8, with --mask 1]",
)
@click.option("--mask", type=click.Path(path_type=Path), help="Picture that is white where --image is repainted.")
@click.option("--latents", type=click.Path(path_type=Path), help="File of the start noise: .safetensors, .npz or .npy.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change of sample.KEY in the recipe, or the new place of a run in it: network.run=DIR. May be repeated.",
)
@click.option("--adapter", "adapters", multiple=True, metavar="FILE[:WEIGHT]", help="LoRA to use; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "npz"]),
    help="Format of the file.  [default: png of what has pictures, else npz]",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: RUN/samples/drawn-...]")
@processes
@device
@quiet
@verbose
def sample(
    run: Path,
    count: int | None,
    sampler: str | None,
    grid: str | None,
    steps: int | None,
    weights: str,
    labels: str | None,
    conditions: tuple[str, ...],
    prompt: str | None,
    guidances: tuple[str, ...],
    scale: float | None,
    negative: str | None,
    size: str | None,
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    latents: Path | None,
    changes: tuple[str, ...],
    adapters: tuple[str, ...],
    seed: int,
    form: str | None,
    out: Path | None,
    nproc: int | None,
    device: str,
    quiet: bool,
) -> None:
    """Draw samples from the run directory RUN. Sample i of a seed is the same in every batch.

    The same command continues sampling that was interrupted.
    """
    from ..runs.pipeline import joined
    from ..runs.planning import SampleRequest
    from ..runs.sample_files import condition_arrays, has_pictures, save_npz, save_png, shown, stored
    from ..runs.trained import open_run

    if changes:  # in one place, so that a preset follows the sampler
        given = ("sampler", sampler), ("grid", grid)
        changes += tuple(f"sample.{name}={_flow(value)}" for name, value in given if value is not None)
    with _reported_once():
        opened = open_run(run, device=device, overrides=changes)
        data, timeout = opened.assembly.data, opened.recipe.train.timeout
    if nproc is not None and not is_launched():
        _launch(device, nproc, run, 0, 1, None, timeout)
        return
    form = _form(form, out, has_pictures(data))
    own = opened.assembly.recipe.sample
    as_recipe = prompt is not None or negative is not None or image or TEXT in (own.conditions or {})
    if count is None and latents is None and not as_recipe:
        count = USUAL_COUNT
    request = SampleRequest(
        count=count,
        sampler=None if changes else _component(sampler),
        grid=None if changes else _component(grid),
        steps=steps,
        weights=weights,
        seed=seed,
        labels=_labels(labels),
        conditions=stated_conditions(conditions, prompt, opened.assembly.conditions.specs),
        guidance=stated_guidance(guidances, scale, negative, opened.assembly.conditions.specs),
        size=stated_size(size),
        image=image,
        strength=strength,
        mask=mask,
        latents=latents,
        adapters=adapters,
    )
    scales = [f"--{name} {value}" for name, value in (("scale", scale), ("negative", negative)) if value is not None]
    texts = {"sampler": [f"--sampler {sampler}"], "grid": [f"--grid {grid}"]}
    texts["guidance"] = [*(f"--guidance {text}" for text in guidances), *scales]
    choices = [weights, sampler, grid, f"{steps}steps" if steps else None, f"labels{labels}" if labels else None]
    files = [one for one in (image, mask, latents) if one]
    shares = {"scale": scale, "strength": strength}
    choices += [size, *(f"{key}{value}" for key, value in shares.items() if value is not None)]
    choices += [one.stem for one in files]
    words = [*conditions, prompt, *guidances, negative and f"no {negative}", *changes, *adapters]
    name = drawn_name(choices, words, [*files, *named_files(conditions, adapters)], seed)
    target = out or opened.directory.samples / f"{name}.{form}"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with (
        joined(opened.device, timeout, run) as ranks,
        pointing_to(texts),
        opened.drawing(request, target, progress=not quiet, ranks=ranks) as drawn,
        ranks.together(),
        writing(target),
    ):
        if ranks.is_main and form == "png":
            save_png(target, data, drawn.x, shown(opened.assembly, drawn))
        elif ranks.is_main:
            save_npz(target, {"x": stored(data, drawn.x), **condition_arrays(drawn)})
    if ranks.is_main:
        say(f"{target}   {len(drawn.x)} samples, {drawn.nfe} evaluations each, {drawn.seconds:.1f} s")


def _form(form: str | None, out: Path | None, shown: bool) -> str:
    """Return the output format: --format, else the suffix of the file, else png of what has pictures, else npz."""
    suffix = out.suffix[1:].lower() if out is not None else ""
    by_name = suffix if suffix in ("png", "npz") else None
    if form and by_name and form != by_name:
        raise UsageError(f"--format {form} and --out {out} disagree", code="DK016", fix="leave --format out")
    chosen = form or by_name or ("png" if shown else "npz")
    if chosen == "png" and not shown:
        raise UsageError("samples of this shape have no pictures", code="DK016", fix="use --format npz")
    return chosen


def _component(text: str | None) -> str | dict[str, Any] | None:
    """Parse NAME or NAME,option=value,... to a name or a mapping; values are read as in a recipe."""
    if text is None or "," not in text:
        return text
    name, *options = re.split(r",(?![^\[]*\])", text)  # no comma within a list
    return {"name": name, **_options(options, f"--sampler {text}")}


def _flow(text: str) -> str:
    """Write a component of the command line as a value of `--set`."""
    return json.dumps(found) if isinstance(found := _component(text), dict) else str(found)


def _options(texts: Iterable[str], place: str) -> dict[str, Any]:
    """Parse texts option=value; `place` names the argument in messages."""
    from ..recipe.yaml import parse

    found = {}
    for option in texts:
        key, sign, value = option.partition("=")
        if not sign:
            raise UsageError(f"{option!r} is not an option", code="DK017", fix="write option=value")
        found[key] = parse(value, place).plain()
    return found


def _labels(text: str | None) -> list[int | str] | None:
    """Parse classes, numbers or names, separated by commas."""
    return None if text is None else [int(part) if part.isdecimal() else part for part in text.split(",")]


@click.command()
@run_argument
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Metric; may be repeated.")
@click.option("--set", "options", multiple=True, metavar="OPTION=VALUE", help="Option of the metrics of --metric.")
@click.option("--count", type=click.IntRange(min=2), help="Number of samples.")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the samples.  [default: as the recipe]")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME|width:W", help=WEIGHTS)
@processes
@device
@as_json
@quiet
@verbose
def evaluate(
    run: Path,
    metrics: tuple[str, ...],
    options: tuple[str, ...],
    count: int | None,
    steps: int | None,
    seed: int | None,
    weights: str,
    nproc: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the run directory RUN, and add the results to results.json and to its report.

    Samples are drawn only for metrics that need them. The same command continues an interrupted measurement.
    """
    from ..runs.pipeline import joined
    from ..runs.trained import open_run

    with _reported_once():
        opened = open_run(run, device=device)
        timeout = opened.recipe.train.timeout
    if nproc is not None and not is_launched():
        _launch(device, nproc, run, 0, 1, None, timeout)
        return
    texts = {"metric": [*(f"--set {text}" for text in options), *(f"--metric {name}" for name in metrics)]}
    with joined(opened.device, timeout, run) as ranks, pointing_to(texts):
        results = opened.evaluate(
            metrics or None,
            options=_options(options, "--set"),
            count=count,
            steps=steps,
            seed=seed,
            weights=weights,
            progress=not quiet,
            ranks=ranks,
        )
    if ranks.is_main:
        if opened.directory.report.is_file():  # it shows results too
            opened.write_report()
        _print_results(results, opened.directory.report, as_json)


@click.command()
@run_argument
@verbose
def report(run: Path) -> None:
    """Write report.html of the run directory RUN from the files in it."""
    from ..runs.trained import open_run

    opened = open_run(run, device="cpu")
    opened.write_report()
    say(f"report: {opened.directory.report}")
