"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
SONG = "song2021score"
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "schedule": [
        ("vp", "schedule:VP", "Preserve variance, beta linear in continuous t", SONG),
        ("sub-vp", "schedule:SubVP", "Keep the signal of vp with less noise", SONG),
        ("ve", "schedule:VE", "Explode variance: alpha = 1, sigma geometric in t", SONG),
    ],
    "parameterization": [("score", "parameterization:Score", "Predict the score -eps / sigma", SONG)],
    "weighting": [
        ("likelihood", "weighting:Likelihood", "Weight the score by g^2: a likelihood bound", "song2021maximum"),
    ],
    "sampler": [
        ("euler-maruyama", "sampler:EulerMaruyama", "Sample the reverse SDE by Euler-Maruyama", SONG),
        ("reverse-diffusion", "sampler:ReverseDiffusion", "Sample the reverse SDE by inverted forward steps", SONG),
        ("predictor-corrector", "corrector:PredictorCorrector", "Correct each sampling step by Langevin steps", SONG),
        ("probability-flow", "flow:ProbabilityFlow", "Solve the probability-flow ODE to a tolerance", SONG),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_score_sde", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_score_sde.laws"
