"""What this package offers to diffkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, lu, zhao = "diffkit_dpmsolver", "lu2022dpmpp", "zhao2023unipc"
    yield Entry("sampler", "dpmpp-2m", f"{here}.multistep:DPMpp2M", "second order, one evaluation a step", lu)
    yield Entry("sampler", "dpmpp-3m", f"{here}.multistep:DPMpp3M", "third order, one evaluation a step", lu)
    yield Entry("sampler", "dpmpp-2s", f"{here}.singlestep:DPMpp2S", "second order, two evaluations a step", lu)
    yield Entry("sampler", "unipc", f"{here}.unipc:UniPC", "predictor and corrector, one evaluation a step", zhao)
    yield Entry("sampler", "adams", f"{here}.adams:Adams", "predictor and corrector in a chart, at both ends", zhao)
    yield Entry("grid", "angle", f"{here}.grid:Angle", "powers of the angle between signal and noise")
    yield Entry("grid", "uniform-logsnr", f"{here}.grid:UniformLogSNR", "equal steps in log-SNR", "lu2022dpm")


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_dpmsolver.laws"
