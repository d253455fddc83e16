"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, kingma = "diffkit_vdm", "kingma2021variational"
    yield Entry("schedule", "learned-vp", f"{here}.schedule:LearnedVP", "Learn the schedule with the bound", kingma)
    yield Entry(
        "objective",
        "continuous-vlb",
        f"{here}.objective:ContinuousVLB",
        "Train on the variational bound in continuous time",
        kingma,
    )
    yield Entry("network", "fourier", f"{here}.network:Fourier", "Add Fourier features of x to the input", kingma)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_vdm.laws"
