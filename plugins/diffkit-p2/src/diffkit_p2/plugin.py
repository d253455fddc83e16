"""The components, recipes and laws of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "weighting": [
        ("p2", "weighting:P2", "Weight the x0 error by snr / (k + snr)^gamma", "choi2022perception"),
        ("min-snr", "weighting:MinSNR", "Weight the x0 error by min(snr, gamma)", "hang2023efficient"),
        (
            "soft-min-snr",
            "weighting:SoftMinSNR",
            "Weight the x0 error by snr gamma / (snr + gamma)",
            "crowson2024scalable",
        ),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_p2", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_p2.laws"
