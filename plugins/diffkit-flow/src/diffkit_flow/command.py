"""The command `diffkit reflow`: write pairs of noise and sample from a trained run."""

from __future__ import annotations

from pathlib import Path

import click

from diffkit import plain


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=2), default=10_000, show_default=True, help="Number of pairs.")
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps; default: those of the recipe.")
@click.option("--sampler", help="A deterministic sampler; default: that of the recipe.")
@click.option("--weights", default="ema", show_default=True, help="ema, raw, or the name of an average.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def reflow(
    run: Path, file: Path, count: int, steps: int | None, sampler: str | None, weights: str, seed: int, device: str
) -> None:
    """Write pairs of noise and the sample that the model of RUN makes of it to FILE, for data `pairs`."""
    import torch

    from diffkit import build, open_run

    from .pairs import make_pairs, save_pairs

    opened = open_run(run, device=device)
    assembly = opened.trained(weights)
    labels = None
    if assembly.spec.classes is not None:
        source = torch.Generator().manual_seed(seed)
        labels = torch.randint(assembly.spec.classes, (count,), generator=source)
    pairs = make_pairs(
        opened.denoiser(weights),
        build("sampler", sampler) if sampler else assembly.sampler,
        assembly.levels(steps),
        assembly.spec.shape,
        count,
        seed=seed,
        labels=labels,
        device=opened.device,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_pairs(pairs, file)
    click.echo(plain(f"{count} pairs in {file}; train on them with data: {{name: pairs, path: {file}}}"))
