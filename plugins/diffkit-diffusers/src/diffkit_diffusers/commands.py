"""Commands to import and export models. Torch and diffusers are imported when a command runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from diffkit import UsageError, plain

from .formats import FORMATS, import_source

PLACE = click.Path(path_type=Path)
overrides = click.option(
    "--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Change a value of the recipe."
)
data = click.option("--data", metavar="NAME,option=value", help="The data of the training; default: shape-only.")


PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""Names of predictions in recipes, which `--prediction` takes as well as those of diffusers."""


@click.command("import")
@click.argument("source", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--format", "name", type=click.Choice(list(FORMATS)), help="Format of SOURCE; default: detected.")
@click.option(
    "--prediction", type=click.Choice([*PREDICTIONS, *PREDICTIONS.values()]), help="What the network predicts."
)
@click.option("--size", metavar="H[xW]", help="Size of the images.")
@click.option("--variant", metavar="NAME", help="Weights to read, such as fp16, if a folder has several.")
@click.option("--tokenizer", type=PLACE, help="Folder of the tokenizer, if SOURCE is a single file.")
@click.option("--sha256", metavar="HASH", help="SHA-256 that a single file must have.")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes, without the null class.")
@click.option("--ignore", metavar="OPTION", multiple=True, help="Option of a configuration to ignore.")
@click.option("--heads", type=click.IntRange(min=1), help="Number of heads of attention; the weights do not show it.")
@click.option("--head-channels", type=click.IntRange(min=1), help="Channels of a head, instead of --heads.")
@click.option("--new-attention-order", is_flag=True, default=None, help="OpenAI: use_new_attention_order.")
@click.option("--steps", type=click.IntRange(min=1), help="OpenAI: diffusion_steps; default 1000.")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="OpenAI: noise_schedule; default linear.")
@click.option(
    "--rescale-timesteps/--no-rescale-timesteps", default=None, help="OpenAI: rescale_timesteps; default: yes."
)
@data
@overrides
def import_any(source: Path, out: Path, name: str | None, **given: Any) -> None:
    """Import the model in SOURCE, a folder or a file, as the run OUT, for `diffkit sample OUT`.

    Formats: a folder of diffusers with a Stable Diffusion pipeline or a UNet2DModel; a .safetensors file of Stable
    Diffusion; a checkpoint (.pt) of improved- or guided-diffusion, which a separate process opens.
    """
    given["size"], given["data"] = _size(given["size"]), _data(given["data"])
    given["prediction"] = PREDICTIONS.get(given["prediction"], given["prediction"])
    stated = {option: value for option, value in given.items() if value not in (None, ())}
    import_source(source, out, stated, name)
    click.echo(plain(f"{out}   diffkit sample {out}"))


@click.command("import-diffusers")
@click.argument("folder", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--size", metavar="H[xW]", help="Size of the images, if config.json has no sample_size.")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes, without the null class.")
@click.option("--variant", metavar="NAME", help="Weights to read, such as fp16, if the folder has several.")
@click.option("--ignore", metavar="OPTION", multiple=True, help="Option of a configuration to ignore.")
@data
@overrides
def import_diffusers(
    folder: Path,
    out: Path,
    size: str | None,
    classes: int | None,
    variant: str | None,
    ignore: tuple[str, ...],
    data: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Import a UNet2DModel (or a pipeline with one) from FOLDER as the run OUT, for `diffkit sample OUT`."""
    from .importing import import_folder

    import_folder(
        folder,
        out,
        size=_size(size),
        classes=classes,
        variant=variant,
        ignore=ignore,
        data=_data(data),
        overrides=overrides,
    )
    click.echo(plain(f"{out}   diffkit sample {out}"))


@click.command("export-diffusers")
@click.argument("run", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME", help="Weights to export.")
def export_diffusers(run: Path, out: Path, weights: str) -> None:
    """Export the network of RUN to a folder OUT that diffusers loads."""
    from .importing import export_run

    click.echo(plain(str(export_run(run, out, weights=weights))))


@click.command("export-vae")
@click.argument("run", type=PLACE)
@click.argument("folder", type=PLACE)
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME", help="Weights to export.")
def export_vae(run: Path, folder: Path, weights: str) -> None:
    """Export the autoencoder of RUN, a codec of diffusers, to a FOLDER that diffusers loads."""
    from .vae import export_vae as export

    click.echo(plain(str(export(run, folder, weights=weights))))


@click.command("import-openai")
@click.argument("checkpoint", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--size", type=click.IntRange(min=1), required=True, help="image_size of the authors' script.")
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True, help="num_heads.")
@click.option("--head-channels", type=click.IntRange(min=1), help="num_head_channels, instead of --heads.")
@click.option("--new-attention-order", is_flag=True, help="use_new_attention_order.")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="diffusion_steps.")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), default="linear", show_default=True)
@click.option("--predicts", type=click.Choice(["eps", "x0"]), default="eps", show_default=True, help="predict_xstart.")
@click.option("--rescale-timesteps/--no-rescale-timesteps", default=True, show_default=True)
@data
@overrides
def import_openai(
    checkpoint: Path,
    out: Path,
    size: int,
    heads: int,
    head_channels: int | None,
    new_attention_order: bool,
    steps: int,
    schedule: Any,
    predicts: Any,
    rescale_timesteps: bool,
    data: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Import a U-Net of improved- or guided-diffusion from CHECKPOINT (.pt) as the run OUT.

    A separate process opens the pickle; it can build tensors only, under limits of memory and time.
    """
    from .openai import Heads, Training, import_checkpoint

    import_checkpoint(
        checkpoint,
        out,
        size=size,
        heads=Heads(heads, head_channels, new_attention_order),
        training=Training(steps, schedule, predicts, rescale_timesteps),
        data=_data(data),
        overrides=overrides,
    )
    click.echo(plain(f"{out}   diffkit sample {out}"))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size must be H or HxW, got {text}", code="DK017", fix="write 32 or 32x48")
    return int(parts[0]), int(parts[-1])


def _data(text: str | None) -> dict[str, Any] | None:
    """Parse NAME,option=value,...; values are read as JSON, else as text."""
    if text is None:
        return None
    name, *options = re.split(r",(?![^\[]*\])", text)  # not at commas within a list
    found: dict[str, Any] = {"name": name}
    for option in options:
        key, sign, value = option.partition("=")
        if not sign:
            raise UsageError(
                f"--data: {option!r} is not of the form option=value", code="DK017", fix="write NAME,option=value"
            )
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
