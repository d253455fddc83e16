"""Restore digits of MNIST that nobody trained on: the table of diffkit-inverse and the pictures of its pages.

    python benchmarks/restore.py RUN [--count 16] [--samples 8] [--steps 30] [--methods pgdm,ddnm] [--write]

RUN is a run of the recipe `restore-mnist`. Each method restores the same held-out digits from 14 x 14 pixels, and a
hole of 10 x 10 pixels in them; peak signal-to-noise ratios are means over the digits. --write renews the README and the
pictures in docs/assets.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import torch
from diffkit_inverse import restore
from diffkit_inverse.operator import Downsample
from diffkit_inverse.pictures import compared, psnr
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diffkit import Run, open_run

ROOT = Path(__file__).parents[1]
README = ROOT / "plugins" / "diffkit-inverse" / "README.md"
ASSETS = ROOT / "docs" / "assets"
HOLE = (slice(9, 19), slice(9, 19))
LINEAR = ("pgdm", "dps", "ddnm")
METHODS = (*LINEAR, "repaint", "blend")
STRENGTHS = (0.2, 0.4, 0.6, 0.8)


def digits(run: Run, count: int) -> Tensor:
    """Evenly spread held-out digits: (count, 1, 28, 28) in [-1, 1]."""
    raw = run.assembly.data.split("held-out").x
    return run.assembly.data.to_model_range(raw[torch.arange(count) * (len(raw) // count)])


def measured(run: Run, x: Tensor, task: str, method: str, samples: int, steps: int) -> str:
    """One row of the table: a method on a task."""
    mask = torch.ones(28, 28)
    mask[HOLE] = 0.0
    inpaint, means, ones, errors, start = task == "inpainting", [], [], [], time.process_time()
    for i, picture in enumerate(x[:, None]):
        got = restore(
            run,
            picture if inpaint else Downsample(2)(picture),
            "mask" if inpaint else Downsample(2),
            mask=mask if inpaint else None,
            method=method,
            count=samples,
            steps=steps,
            seed=i,
        )
        means.append(psnr(got.x.mean(0, keepdim=True), picture))
        ones.append(psnr(got.x[:1], picture))
        errors.append(got.error)
    mean, one, error = (sum(values) / len(x) for values in (means, ones, errors))
    seconds = (time.process_time() - start) / len(x)
    return f"| {task} | `{method}` | {mean:.1f} | {one:.1f} | {error:.2g} | {got.nfe} | {seconds:.1f} |"


def table(run: Run, x: Tensor, samples: int, steps: int, chosen: list[str]) -> str:
    """The table of the README, for the chosen methods."""
    mask = torch.ones(1, 1, 28, 28)
    mask[:, :, *HOLE] = 0.0
    train = run.assembly.data.split("train").x[:10_000]
    average = run.assembly.data.to_model_range(train).mean(0, keepdim=True)
    small = [Downsample(2)(one) for one in x[:, None]]
    bicubic = [functional.interpolate(one, scale_factor=2, mode="bicubic", align_corners=False) for one in small]
    plain = {
        "14 to 28 pixels | bicubic": [psnr(a, b) for a, b in zip(bicubic, x[:, None], strict=True)],
        "inpainting | mean of the training pictures": [
            psnr(torch.where(mask > 0.5, one, average), one) for one in x[:, None]
        ],
    }
    rows = [
        f"| task | method | PSNR of the mean of {samples} | of one sample | error of A x | evaluations | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, methods in (
        ("14 to 28 pixels", [name for name in chosen if name in LINEAR]),
        ("inpainting", chosen),
    ):
        for title, values in plain.items():
            if title.startswith(task):
                rows.append(f"| {title} | {sum(values) / len(values):.1f} | | | | |")
                print(rows[-1], flush=True)
        for method in methods:
            rows.append(measured(run, x, task, method, samples, steps))
            print(rows[-1], flush=True)
    return "\n".join(rows)


def draw(run: Run, x: Tensor, steps: int) -> None:
    """Write the pictures of the pages."""
    mask = torch.ones(28, 28)
    mask[HOLE] = 0.0
    holes, large = [], []
    for i, picture in enumerate(x[:4, None]):
        filled = restore(run, picture, "mask", mask=mask, steps=steps, seed=i).x
        before = torch.where(mask > 0.5, picture, 0.0)
        holes.append(compared([before, filled.mean(0, keepdim=True), *filled[:4, None], picture]))
        small = Downsample(2)(picture)
        grown = restore(run, small, Downsample(2), steps=steps, seed=i).x
        large.append(compared([small, grown.mean(0, keepdim=True), *grown[:4, None], picture]))
    schedule = run.assembly.schedule
    times = [round(schedule.t_clean + q * (schedule.t_noise - schedule.t_clean)) for q in STRENGTHS]
    varied = [run.sample(4, x=x[:4], start=float(t), steps=steps, seed=1) for t in times]
    images = [compared([x[i : i + 1], *(one[i : i + 1] for one in varied)]) for i in range(4)]
    for name, rows in {"restore-inpaint": holes, "restore-super-resolution": large, "image-to-image": images}.items():
        gap = torch.ones(3, 6, rows[0].shape[2])
        stacked = torch.cat([part for row in rows for part in (row, gap)][:-1], 1)
        pixels = stacked.clamp(-1, 1).add(1).mul(127.5).round().byte()[0].numpy()
        Image.fromarray(pixels).save(ASSETS / f"{name}.png", optimize=True)


def main() -> None:
    """Print the table, and write it and the pictures if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    run = open_run(given.run, device="cpu")
    if given.write:
        draw(run, digits(run, 16), given.steps)
    text = table(run, digits(run, given.count), given.samples, given.steps, given.methods)
    print(text)
    if given.write:
        page = README.read_text(encoding="utf-8")
        README.write_text(
            re.sub(r"(<!-- measured -->\n).*?(\n\n)", rf"\g<1>{text}\2", page, flags=re.DOTALL), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
