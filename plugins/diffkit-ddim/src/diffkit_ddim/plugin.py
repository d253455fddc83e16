"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "sampler": [
        ("ddim", "sampler:DDIM", "Sample with DDIM; eta from 0 (deterministic) to 1 (ancestral)", "song2021denoising"),
        ("plms", "plms:PLMS", "Sample with PLMS: Adams steps of order 2 on eps (PNDM)", "liu2022pseudo"),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_ddim", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_ddim.laws"
