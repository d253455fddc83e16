"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, karras = "diffkit_edm", "karras2022elucidating"
    yield Entry("schedule", "edm", f"{here}.schedule:EDM", "Set alpha = 1, sigma = t: time is the noise level", karras)
    yield Entry("parameterization", "edm", f"{here}.parameterization:EDM", "Predict F, scaled to unit variance", karras)
    yield Entry("times", "lognormal", f"{here}.times:LogNormal", "Draw normal log(sigma / alpha) in training", karras)
    yield Entry("weighting", "edm", f"{here}.weighting:EDM", "Weight the loss of F by 1 at all levels", karras)
    yield Entry("grid", "karras", f"{here}.grid:Karras", "Take equal steps of sigma^(1/7)", karras)
    yield Entry("sampler", "euler", f"{here}.sampler:Euler", "Sample by Euler steps, with optional churn", karras)
    yield Entry("sampler", "heun", f"{here}.sampler:Heun", "Sample by Heun steps, with optional churn", karras)
    yield Entry("augmentation", "edm", f"{here}.augmentation:EDM", "Warp images; pass the warps to the network", karras)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_edm.laws"
