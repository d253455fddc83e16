"""The components and laws of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "guidance": [
        ("classifier", "classifier:ClassifierGuidance", "Guide by a classifier of noisy data", "dhariwal2021diffusion"),
        ("interval", "interval:Interval", "Guide in an interval of noise levels only", "kynkaanniemi2024applying"),
        ("autoguidance", "autoguidance:Autoguidance", "Guide away from a worse model", "karras2024guiding"),
        ("apg", "apg:APG", "Guide by the difference across the estimate", "sadat2025eliminating"),
        ("perturbed-attention", "attention:PerturbedAttention", "Guide away from perturbed attention", "ahn2024self"),
    ],
    "sampler": [("cfg-pp", "cfgpp:CFGPlusPlus", "Step with guided x0 and unguided noise (CFG++)", "chung2025cfg")],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_guidance", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_guidance.laws"
