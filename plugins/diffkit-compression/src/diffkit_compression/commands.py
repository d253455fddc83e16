"""The commands; torch is imported when one runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import click

from diffkit import UsageError, plain

PLACE = click.Path(path_type=Path)
device = click.option(
    "--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]", help="Device to compute on."
)


@click.command("compress")
@click.argument("run", type=PLACE)
@click.argument("paths", metavar="FILES|FOLDERS...", nargs=-1, type=PLACE)
@click.option("-o", "--out", type=PLACE, required=True, metavar="ARCHIVE.dkz", help="The archive to write.")
@click.option("--bits", type=click.FloatRange(min=1), help="Lossy: at most this number of bits per example.")
@click.option("--lossless", is_flag=True, help="Keep every value even of a single example.")
@click.option("--part", type=click.Choice(["train", "held-out"]), help="Examples of the data of the run, not files.")
@click.option("--count", type=click.IntRange(min=1), help="Number of examples of --part.")
@click.option("--layers", type=click.IntRange(min=2), default=100, show_default=True, help="Levels of the chain.")
@click.option("--weights", default="ema", show_default=True, metavar="ema|raw|NAME", help="Weights to use.")
@device
def compress(
    run: Path,
    paths: tuple[Path, ...],
    out: Path,
    bits: float | None,
    lossless: bool,
    part: Literal["train", "held-out"] | None,
    count: int | None,
    layers: int,
    weights: str,
    device: str,
) -> None:
    """Compress PNG pictures and .npy arrays with the model of RUN: without loss, or to --bits per example."""
    from diffkit import console_progress, open_run

    from .archive import unpack
    from .compressing import compress as make
    from .files import read_files, read_part

    if bool(paths) == (part is not None):
        raise UsageError("compress requires files, or --part", code="DK350", fix="pass one of them")
    if count is not None and part is None:
        raise UsageError("--count has no effect on files", code="DK350", fix="pass --part too, or leave it out")
    if out.exists():
        raise UsageError(f"{out} exists already", code="DK353", fix="name another file, or remove it")
    opened = open_run(run, device=device)
    data = opened.assembly.data
    entries, values = read_part(data, part, count) if part else read_files(paths, data.spec)
    with console_progress("compressing") as bar:
        content = make(
            opened,
            entries,
            values,
            bits=bits,
            lossless=True if lossless else None,
            layers=layers,
            weights=weights,
            on_progress=bar.update,
        )
    work = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    work.write_bytes(content)
    os.replace(work, out)
    header, _, _ = unpack(content)
    rate = f"{8 * len(content) / values.numel():.3f} bits per value"
    click.echo(plain(f"{out}   {header.mode}, {len(values)} examples, {len(content)} bytes, {rate}"))


@click.command("decompress")
@click.argument("run", type=PLACE)
@click.argument("archive", type=PLACE)
@click.argument("folder", type=PLACE)
@click.option("--bits", type=click.FloatRange(min=1), help="Decode a prefix of this number of bits per example.")
@device
def decompress(run: Path, archive: Path, folder: Path, bits: float | None, device: str) -> None:
    """Write the files of ARCHIVE to the new FOLDER; RUN must be the one that made it."""
    from diffkit import console_progress, open_run

    from .archive import read_file
    from .compressing import decompress as restore
    from .files import require_new, write_files

    require_new(folder)
    content = read_file(archive)
    opened = open_run(run, device=device)
    with console_progress("decompressing") as bar:
        entries, values = restore(opened, content, bits=bits, on_progress=bar.update)
    write_files(folder, entries, values, opened.assembly.data.spec)
    click.echo(plain(f"{folder}   {len(entries)} files, {len(values)} examples"))


@click.command("inspect")
@click.argument("archive", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(archive: Path, as_json: bool) -> None:
    """Print what ARCHIVE holds and what it requires, after checking every byte of it."""
    from .archive import read_file
    from .compressing import describe

    found = describe(read_file(archive))
    if as_json:
        click.echo(plain(json.dumps(found, indent=1)))
        return
    for name, value in found.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        shown = f"{len(value)}: {', '.join(value[:5])}{', ...' if len(value) > 5 else ''}" if name == "files" else shown
        click.echo(plain(f"{name:<19}{shown}"))
