"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
LU, ZHAO = "lu2022dpmpp", "zhao2023unipc"
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "sampler": [
        ("dpmpp-2m", "multistep:DPMpp2M", "Sample by DPM-Solver++(2M), order 2, one evaluation per step", LU),
        ("dpmpp-3m", "multistep:DPMpp3M", "Sample by DPM-Solver++(3M), order 3, one evaluation per step", LU),
        ("dpmpp-2s", "singlestep:DPMpp2S", "Sample by DPM-Solver++(2S), order 2, two evaluations per step", LU),
        ("unipc", "unipc:UniPC", "Sample by UniPC: predictor and corrector, one evaluation per step", ZHAO),
        ("adams", "adams:Adams", "Sample by Adams steps with a corrector, one evaluation per step", ZHAO),
    ],
    "grid": [
        ("angle", "grid:Angle", "Take equal steps in a power of the noise angle"),
        ("uniform-logsnr", "grid:UniformLogSNR", "Take equal steps in log-SNR", "lu2022dpm"),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_dpmsolver", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_dpmsolver.laws"
