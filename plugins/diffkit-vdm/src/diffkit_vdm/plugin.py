"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
KINGMA = "kingma2021variational"
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "schedule": [("learned-vp", "schedule:LearnedVP", "Learn the schedule with the bound", KINGMA)],
    "objective": [
        ("continuous-vlb", "objective:ContinuousVLB", "Train on the variational bound in continuous time", KINGMA),
    ],
    "network": [("fourier", "network:Fourier", "Add Fourier features of x to the input", KINGMA)],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_vdm", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_vdm.laws"
