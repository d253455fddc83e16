"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, lu, zhao = "diffkit_dpmsolver", "lu2022dpmpp", "zhao2023unipc"
    yield Entry(
        "sampler",
        "dpmpp-2m",
        f"{here}.multistep:DPMpp2M",
        "Sample by DPM-Solver++(2M), order 2, one evaluation per step",
        lu,
    )
    yield Entry(
        "sampler",
        "dpmpp-3m",
        f"{here}.multistep:DPMpp3M",
        "Sample by DPM-Solver++(3M), order 3, one evaluation per step",
        lu,
    )
    yield Entry(
        "sampler",
        "dpmpp-2s",
        f"{here}.singlestep:DPMpp2S",
        "Sample by DPM-Solver++(2S), order 2, two evaluations per step",
        lu,
    )
    yield Entry(
        "sampler",
        "unipc",
        f"{here}.unipc:UniPC",
        "Sample by UniPC: predictor and corrector, one evaluation per step",
        zhao,
    )
    yield Entry(
        "sampler",
        "adams",
        f"{here}.adams:Adams",
        "Sample by Adams steps with a corrector, one evaluation per step",
        zhao,
    )
    yield Entry("grid", "angle", f"{here}.grid:Angle", "Take equal steps in a power of the noise angle")
    yield Entry("grid", "uniform-logsnr", f"{here}.grid:UniformLogSNR", "Take equal steps in log-SNR", "lu2022dpm")


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_dpmsolver.laws"
