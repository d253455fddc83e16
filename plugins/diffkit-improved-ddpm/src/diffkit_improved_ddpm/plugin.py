"""What this package offers to diffkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, nichol = "diffkit_improved_ddpm", "nichol2021improved"
    yield Entry("schedule", "cosine", f"{here}.schedule:Cosine", "alpha_bar falls like a squared cosine", nichol)
    yield Entry(
        "parameterization", "learned-range", f"{here}.parameterization:LearnedRange", "and how wide the step is", nichol
    )
    yield Entry("objective", "hybrid", f"{here}.objective:Hybrid", "L_simple for the mean, bound for the width", nichol)
    yield Entry("times", "importance", f"{here}.times:Importance", "more often where the loss is large", nichol)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_improved_ddpm.laws"
