"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, nichol = "diffkit_improved_ddpm", "nichol2021improved"
    yield Entry("schedule", "cosine", f"{here}.schedule:Cosine", "Let alpha_bar fall like a squared cosine", nichol)
    yield Entry(
        "parameterization",
        "learned-range",
        f"{here}.parameterization:LearnedRange",
        "Predict the variance of a step beside another prediction",
        nichol,
    )
    yield Entry(
        "objective",
        "hybrid",
        f"{here}.objective:Hybrid",
        "Train the mean by L_simple, the variance by the bound",
        nichol,
    )
    yield Entry("times", "importance", f"{here}.times:Importance", "Draw times with a large loss more often", nichol)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_improved_ddpm.laws"
