"""The command `diffkit restore`: a picture, an operator and a run give restored pictures and a comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from diffkit import UsageError, plain

PLACE = click.Path(path_type=Path)
OPERATORS = {
    "inpaint": "mask",
    "super-resolution": "downsample",
    "deblur": "blur",
    "colourise": "grey",
    "jpeg": "jpeg",
}


@click.command()
@click.argument("run", type=PLACE)
@click.option("--image", type=PLACE, required=True, help="The picture to restore.")
@click.option(
    "--operator",
    required=True,
    metavar="NAME[,option=value]",
    help="inpaint, super-resolution (factor=2), deblur (sigma=1.5), colourise or jpeg (quality=10).",
)
@click.option("--mask", type=PLACE, help="For inpaint: a grey picture, white in the hole and black elsewhere.")
@click.option("--degrade", is_flag=True, help="IMAGE is a clean picture: degrade it first, and compare with it.")
@click.option("--method", default="pgdm", show_default=True, metavar="NAME", help="pgdm, ddnm, dps, repaint or blend.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Std of the noise in IMAGE, pixels in [-1, 1].",
)
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="Number of samples.")
@click.option("--sampler", metavar="NAME", help="Sampler.  [default: as the recipe]")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps.  [default: as the recipe]")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME")
@click.option("--condition", "conditions", multiple=True, metavar="NAME=VALUE|@FILE", help="As in `diffkit sample`.")
@click.option("--label", metavar="K", help="Class by number or name, short for --condition label=K.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-o", "--out", type=PLACE, help="Folder to write.  [default: RUN/samples/restored-IMAGE-OPERATOR]")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option("-q", "--quiet", is_flag=True, help="Print only the result.")
def restore(
    run: Path,
    image: Path,
    operator: str,
    mask: Path | None,
    degrade: bool,
    method: str,
    noise: float,
    count: int,
    sampler: str | None,
    steps: int | None,
    weights: str,
    conditions: tuple[str, ...],
    label: str | None,
    seed: int,
    out: Path | None,
    device: str,
    quiet: bool,
) -> None:
    """Restore IMAGE with the model of RUN as the prior: fill a hole, enlarge, sharpen or colour it.

    OUT holds restored-1.png, ..., their mean and comparison.png: before, after (the mean, then each sample) and, with
    --degrade, the reference.
    """
    from diffkit import StepInfo, console_progress, open_run, stated_conditions

    from .pictures import degraded, read_mask, read_picture, write_results
    from .restoring import restore as restore_run

    forward, name = _operator(operator)
    opened = open_run(run, device=device)
    spec = opened.assembly.data.spec
    texts = [*conditions, *([] if label is None else [f"label={label}"])]
    stated = stated_conditions(texts, None, opened.assembly.conditions.specs)
    kept = None if mask is None else read_mask(mask, spec)
    given = read_picture(image, spec, forward, clean=degrade)
    y = degraded(given, forward, kept, noise, seed) if degrade else given
    with console_progress("restoring", not quiet) as bar:
        done_steps = 0

        def advance(step: StepInfo) -> None:
            nonlocal done_steps
            done_steps += len(step.x)
            bar.update(done_steps // step.count, count)

        done = restore_run(
            opened,
            y,
            forward,
            method=method,
            mask=kept,
            noise=noise,
            count=count,
            sampler=sampler,
            steps=steps,
            seed=seed,
            weights=weights,
            conditions=stated,
            on_step=advance,
        )
    stem = re.sub(r"[^\w.-]+", "-", image.stem)
    folder = out or opened.directory.samples / f"restored-{stem}-{name}"
    for line in write_results(folder, done, kept, given if degrade else None):
        click.echo(plain(line))


def _operator(text: str) -> tuple[Any, str]:
    """Parse NAME or NAME,option=value,... to the operator and its name; values are numbers."""
    from .operator import build_operator

    name, *options = text.split(",")
    if name not in OPERATORS:
        raise UsageError(f"--operator: there is no operator {name!r}", code="DK017", choices=list(OPERATORS))
    found: dict[str, float] = {}
    for option in options:
        key, sign, value = option.partition("=")
        try:
            found[key] = int(value) if re.fullmatch(r"-?\d+", value) else float(value)
        except ValueError:
            sign = ""
        if not sign:
            message = f"--operator: {option!r} is not of the form option=number"
            raise UsageError(message, code="DK017", fix="write NAME,option=value, such as super-resolution,factor=4")
    return build_operator(OPERATORS[name], **found), name
