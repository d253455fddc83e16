"""What this package offers to diffkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, karras = "diffkit_edm", "karras2022elucidating"
    yield Entry("schedule", "edm", f"{here}.schedule:EDM", "alpha = 1, sigma = t", karras)
    yield Entry("parameterization", "edm", f"{here}.parameterization:EDM", "F of unit variance", karras)
    yield Entry("times", "lognormal", f"{here}.times:LogNormal", "log(sigma / alpha) is normal", karras)
    yield Entry("weighting", "edm", f"{here}.weighting:EDM", "a unit weight on F", karras)
    yield Entry("grid", "karras", f"{here}.grid:Karras", "equal steps of sigma^(1/7)", karras)
    yield Entry("sampler", "euler", f"{here}.sampler:Euler", "first order in a chart, with churn", karras)
    yield Entry("sampler", "heun", f"{here}.sampler:Heun", "second order in a chart, with churn", karras)
    yield Entry("augmentation", "edm", f"{here}.augmentation:EDM", "warps that the network is told of", karras)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_edm.laws"
