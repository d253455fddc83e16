"""The components, recipes and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, song = "diffkit_score_sde", "song2021score"
    yield Entry("schedule", "vp", f"{here}.schedule:VP", "Preserve variance, beta linear in continuous t", song)
    yield Entry("schedule", "sub-vp", f"{here}.schedule:SubVP", "Keep the signal of vp with less noise", song)
    yield Entry("schedule", "ve", f"{here}.schedule:VE", "Explode variance: alpha = 1, sigma geometric in t", song)
    yield Entry("parameterization", "score", f"{here}.parameterization:Score", "Predict the score -eps / sigma", song)
    yield Entry(
        "weighting",
        "likelihood",
        f"{here}.weighting:Likelihood",
        "Weight the score by g^2: a likelihood bound",
        "song2021maximum",
    )
    yield Entry(
        "sampler", "euler-maruyama", f"{here}.sampler:EulerMaruyama", "Sample the reverse SDE by Euler-Maruyama", song
    )
    yield Entry(
        "sampler",
        "reverse-diffusion",
        f"{here}.sampler:ReverseDiffusion",
        "Sample the reverse SDE by inverted forward steps",
        song,
    )
    yield Entry(
        "sampler",
        "predictor-corrector",
        f"{here}.corrector:PredictorCorrector",
        "Correct each sampling step by Langevin steps",
        song,
    )
    yield Entry(
        "sampler",
        "probability-flow",
        f"{here}.flow:ProbabilityFlow",
        "Solve the probability-flow ODE to a tolerance",
        song,
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_score_sde.laws"
