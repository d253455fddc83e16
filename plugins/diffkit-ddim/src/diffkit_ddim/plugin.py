"""What this package offers to diffkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield Entry(
        "sampler",
        "ddim",
        "diffkit_ddim.sampler:DDIM",
        "from deterministic to ancestral",
        "song2021denoising",
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_ddim.laws"
