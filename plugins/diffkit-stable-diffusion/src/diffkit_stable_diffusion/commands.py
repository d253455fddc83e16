"""The command that exports an adapter. Torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffkit import plain

PLACE = click.Path(path_type=Path)


@click.command("export-lora")
@click.argument("run", type=PLACE)
@click.argument("file", type=PLACE)
@click.option("--names", type=click.Choice(["diffusers", "kohya"]), default="diffusers", show_default=True)
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME", help="Weights to export.")
def export_lora(run: Path, file: Path, names: Any, weights: str) -> None:
    """Write the low-rank adapter of RUN, trained with network `lora`, to the safetensors file FILE."""
    from .lora import export_lora as export

    click.echo(plain(str(export(run, file, names, weights))))
