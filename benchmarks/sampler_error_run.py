"""The same question asked of a trained run: how far from where its own flow ends do few evaluations land."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diffkit import Run, SampleNoise, build, sample

SAMPLERS: dict[str, dict[str, Any]] = {
    "adams": {},
    "adams order 2": {"order": 2},
    "unipc order 2": {"order": 2},
    "dpmpp-2m": {},
    "ddim": {},
}
GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {},
    "quadratic": {},
    "uniform-logsnr": {},
    "angle": {},
    "angle power 1.25": {"power": 1.25},
}
COUNT, REFERENCE = 64, 400


def of_run(run: Run, budgets: Sequence[int]) -> Iterator[tuple[str, str, int, float]]:
    """(sampler, grid, evaluations, error): the distance from 400 steps of unipc, from the same 64 starts, under the
    guidance of the recipe."""
    schedule, denoise = run.assembly.schedule, run.denoiser()
    x = SampleNoise(0, range(COUNT)).initial(run.assembly.spec.shape, run.device)
    x = float(schedule.noise.sigma) * x
    finest = build("grid", "trailing").levels(schedule, REFERENCE)
    truth = sample(denoise, build("sampler", "unipc", order=2), finest, x)
    for name, options in SAMPLERS.items():
        sampler = build("sampler", name.split()[0], **options)
        for title, grid_options in GRIDS.items():
            grid = build("grid", title.split()[0], **grid_options)
            for nfe in budgets:
                got = sample(denoise, sampler, grid.levels(schedule, nfe), x)
                yield name, title, nfe, float((got.float() - truth.float()).square().mean().sqrt())
