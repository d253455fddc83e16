"""The components and recipes of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield Entry("network", "dit", "diffkit_dit.dit:DiT", "Use a transformer with adaLN-zero", "peebles2023scalable")
    yield Entry(
        "network", "u-vit", "diffkit_dit.uvit:UViT", "Use a transformer with long skip connections", "bao2023all"
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"
