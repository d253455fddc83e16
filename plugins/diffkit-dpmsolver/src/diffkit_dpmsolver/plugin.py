"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, lu, zhao = "diffkit_dpmsolver", "lu2022dpmpp", "zhao2023unipc"
    yield Entry("sampler", "dpmpp-2m", f"{here}.multistep:DPMpp2M", "Sample at order 2, one evaluation a step", lu)
    yield Entry("sampler", "dpmpp-3m", f"{here}.multistep:DPMpp3M", "Sample at order 3, one evaluation a step", lu)
    yield Entry("sampler", "dpmpp-2s", f"{here}.singlestep:DPMpp2S", "Sample at order 2, two evaluations a step", lu)
    yield Entry("sampler", "unipc", f"{here}.unipc:UniPC", "Predict and correct x0 as a polynomial in log-SNR", zhao)
    yield Entry("sampler", "adams", f"{here}.adams:Adams", "Predict and correct in the angle, up to both ends", zhao)
    yield Entry("grid", "angle", f"{here}.grid:Angle", "Take equal steps in a power of the angle")
    yield Entry("grid", "uniform-logsnr", f"{here}.grid:UniformLogSNR", "Take equal steps in log-SNR", "lu2022dpm")


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_dpmsolver.laws"
