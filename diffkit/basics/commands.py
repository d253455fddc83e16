"""The command `diffkit shards`: pack pictures into tar shards, or index the shards that are there."""

from __future__ import annotations

from pathlib import Path

import click

from diffkit import console_progress, plain


@click.command()
@click.argument("source", metavar="FOLDER")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--labels", is_flag=True, help="Use the names of the sub-folders as classes.")
@click.option("--shard-size", type=click.IntRange(min=1), default=256, show_default=True, help="MiB of one shard.")
def shards(source: str, out: Path | None, labels: bool, shard_size: int) -> None:
    """Pack the pictures below FOLDER into tar shards in OUT, with their index, for data `shards`.

    Files .txt, .json and .cls beside a picture are packed with it. A call that was interrupted continues. Without OUT,
    FOLDER holds tar shards, or is a URL of such a folder, and only their index is written.
    """
    from .data.packing import pack
    from .data.shard_index import build_index

    with console_progress("shards") as bar:
        if out is None:
            count = build_index(source, bar.update)
        else:
            count = pack(Path(source), out, labels=labels, shard_bytes=shard_size << 20, report=bar.update)
    place = source if out is None else out
    click.echo(plain(f"{place}: {count} examples   data: {{name: shards, path: {place}}}"))
