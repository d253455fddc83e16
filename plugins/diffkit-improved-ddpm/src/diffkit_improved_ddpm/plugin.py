"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
NICHOL = "nichol2021improved"
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "schedule": [("cosine", "schedule:Cosine", "Let alpha_bar fall like a squared cosine", NICHOL)],
    "parameterization": [
        (
            "learned-range",
            "parameterization:LearnedRange",
            "Predict the variance of a step beside another prediction",
            NICHOL,
        ),
    ],
    "objective": [("hybrid", "objective:Hybrid", "Train the mean by L_simple, the variance by the bound", NICHOL)],
    "times": [("importance", "times:Importance", "Draw times with a large loss more often", NICHOL)],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_improved_ddpm", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_improved_ddpm.laws"
