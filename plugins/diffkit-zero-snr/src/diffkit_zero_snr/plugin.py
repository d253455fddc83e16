"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, lin = "diffkit_zero_snr", "lin2024common"
    yield Entry(
        "schedule", "zero-snr", f"{here}.schedule:ZeroSNR", "Rescale a discrete schedule to zero terminal SNR", lin
    )
    yield Entry(
        "guidance", "rescale", f"{here}.guidance:Rescale", "Rescale guided x0 to the contrast before guidance", lin
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_zero_snr.laws"
