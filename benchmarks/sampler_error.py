"""Error of deterministic samplers against the number of evaluations, on mixtures whose flow is known.

    python benchmarks/sampler_error.py [--k-diffusion CHECKOUT] [--run RUN] [--write]

Everyone starts from the same x at the noisy end of the linear schedule of DDPM and is asked to follow the
probability flow to clean data with the exact denoiser. The error is the root of the mean squared distance to where the
flow ends: the quantile map in one dimension, and an eighth-order Runge-Kutta method at tolerance 1e-11 in two.
Each sampler is given each of its grids and options, and shown with the best of them at each number of evaluations,
by the geometric mean over the problems. --run asks the same of a trained run, whose flow ends where 400 steps end.
--write renews docs/choose-a-sampler.md and its plot.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sampler_error_page import write_page
from sampler_error_peers import diffusers_runs, k_diffusion_runs
from sampler_error_run import of_run
from scipy.integrate import solve_ivp
from torch import Tensor

from diffkit import Denoiser, Grid, Level, Sampler, build, open_run, sample
from diffkit.oracles.base import Oracle
from diffkit.testing import MixtureOracle

F64 = torch.float64
BUDGETS, TRAINED = (5, 10, 20, 50), (5, 10, 20)
Best = dict[str, dict[int, tuple[float, str, list[float]]]]
SCHEDULE = build("schedule", "linear")
CLEAN = Level(1.0, 0.0)
Run = Callable[[Denoiser, Tensor, int], Tensor | None]
"""(denoiser, x at the noisy end, evaluations) -> x, or None where the method has no run of so few evaluations."""


@dataclass(frozen=True)
class Problem:
    """A law of data, points to start from: (N, D), and where the flow carries them."""

    title: str
    oracle: Oracle
    x: Tensor
    truth: Tensor


def problems() -> list[Problem]:
    """One mixture on the line, two in the plane."""
    line = MixtureOracle([0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.04, 0.09])
    corners = [[math.cos(math.pi * k / 3), math.sin(math.pi * k / 3)] for k in range(6)]
    ring = MixtureOracle([1 / 6] * 6, torch.tensor(corners, dtype=F64), [0.02] * 6)
    unlike = torch.tensor([[-0.8, -0.5], [0.9, -0.3], [0.1, 0.8]], dtype=F64)
    three = MixtureOracle([0.2, 0.3, 0.5], unlike, [0.03, 0.06, 0.02])
    quantiles = torch.special.ndtri((torch.arange(512, dtype=F64) + 0.5) / 512)[:, None]
    plane = torch.randn(512, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    return [
        Problem("two on a line", line, quantiles, line.flow(quantiles, SCHEDULE.noise, CLEAN)),
        Problem("six on a ring", ring, plane, integrated(ring, plane)),
        Problem("three unlike", three, plane, integrated(three, plane)),
    ]


def integrated(oracle: Denoiser, x: Tensor) -> Tensor:
    """The flow from the noisy end to clean data, d(x / r) / d angle = cos eps - sin x0, by DOP853."""

    def slope(angle: float, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        known = oracle(torch.from_numpy(flat.reshape(x.shape)), Level(math.cos(angle), math.sin(angle)))
        return (math.cos(angle) * known.eps - math.sin(angle) * known.x0).numpy().ravel()

    start = float(SCHEDULE.noise.angle)
    run = solve_ivp(slope, (start, 1e-9), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return torch.from_numpy(run.y[:, -1].reshape(x.shape))


GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {},
    "linspace": {},
    "quadratic": {},
    "uniform-logsnr": {},
    "angle": {},
    "karras": {},
    "karras power 3": {"power": 3.0},
}
SAMPLERS: dict[str, list[dict[str, Any]]] = {
    "adams": [{"order": p, "chart": chart} for p in (2, 3, 4) for chart in ("angle", "flow")],
    "unipc": [{"order": p, "variant": v} for p in (2, 3) for v in ("bh1", "bh2", "exact")],
    "dpmpp-2m": [{"variant": v} for v in ("midpoint", "heun")],
    "dpmpp-3m": [{}, {"published": True}],
    "dpmpp-2s": [{}],
    "heun": [{"chart": chart} for chart in ("sigma", "flow", "angle")],
    "euler": [{"chart": "angle"}],
    "ddim": [{}],
}


def own_runs() -> Iterator[tuple[str, str, Run]]:
    """(sampler, setting, run) of every sampler, option and grid of diffkit."""
    yield "diffkit adams, as it comes", "3 angle angle", _own(build("sampler", "adams"), build("grid", "angle"))
    for name, choices in SAMPLERS.items():
        for options in choices:
            sampler = build("sampler", name, **options)
            for grid_name, grid_options in GRIDS.items():
                grid = build("grid", grid_name.split()[0], **grid_options)
                told = " ".join([*(str(v) for v in options.values() if v is not True), grid_name])
                yield f"diffkit {name}", f"published, {told}" if True in options.values() else told, _own(sampler, grid)


def _own(sampler: Sampler[Any], grid: Grid) -> Run:
    def run(denoise: Denoiser, x: Tensor, nfe: int) -> Tensor | None:
        fitting = [n for n in range(1, nfe + 1) if (sampler.nfe(n) or 0) <= nfe]
        return sample(denoise, sampler, grid.levels(SCHEDULE, fitting[-1]), x) if fitting else None

    return run


class Budget:
    """A denoiser that refuses to be asked more often than the budget allows."""

    def __init__(self, oracle: Denoiser, most: int) -> None:
        self.oracle, self.left = oracle, most

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("more evaluations than the budget")
        return self.oracle(x, level)


def measured(run: Run, problem: Problem, nfe: int) -> float | None:
    """The error of a run; None where it has none of so few evaluations, or none that is finite."""
    x = run(Budget(problem.oracle, nfe), problem.x, nfe)
    if x is None or not bool(torch.isfinite(x).all()):
        return None
    return float((x.double() - problem.truth).square().sum(1).mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--k-diffusion", type=Path, help="a checkout of crowsonkb/k-diffusion")
    parser.add_argument("--run", type=Path, help="a trained run, to be measured against its own flow")
    parser.add_argument("--write", action="store_true", help="renew the page and the plot")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    angle = [build("grid", "angle").levels(SCHEDULE, n) for n in range(1, max(BUDGETS) + 1)]
    runs = [*own_runs(), *diffusers_runs(angle)]
    if asked.k_diffusion:
        runs += k_diffusion_runs(asked.k_diffusion, SCHEDULE, angle)
    cases = problems()
    best: Best = {}
    for nfe in BUDGETS:
        for name, setting, run in runs:
            errors = [measured(run, case, nfe) for case in cases]
            if None in errors:
                continue
            found = [error for error in errors if error is not None]
            mean = math.exp(sum(math.log(error) for error in found) / len(found))
            row = best.setdefault(name, {})
            if nfe not in row or mean < row[nfe][0]:
                row[nfe] = (mean, setting, found)
    for name, row in sorted(best.items(), key=lambda item: item[1].get(10, (math.inf,))[0]):
        print(f"{name:42}", "  ".join(f"{nfe}: {row[nfe][0]:.2e} ({row[nfe][1]})" for nfe in BUDGETS if nfe in row))
    trained: dict[str, dict[str, dict[int, float]]] = {}
    if asked.run:
        for name, grid, nfe, error in of_run(open_run(asked.run, device="cpu"), TRAINED):
            trained.setdefault(name, {}).setdefault(grid, {})[nfe] = error
            print(f"{name:16} {grid:18} {nfe:3}  {error:.4f}")
    if asked.write:
        versions = {name: importlib.metadata.version(name) for name in ("diffusers", "torch")}
        write_page(best, trained, [case.title for case in cases], BUDGETS, versions, with_k=bool(asked.k_diffusion))
    else:
        print(json.dumps({name: {n: cell[0] for n, cell in row.items()} for name, row in best.items()}))


if __name__ == "__main__":
    main()
