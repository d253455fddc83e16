"""What this package offers to diffkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, song = "diffkit_score_sde", "song2021score"
    yield Entry("schedule", "vp", f"{here}.schedule:VP", "variance preserving, beta linear in t", song)
    yield Entry("schedule", "sub-vp", f"{here}.schedule:SubVP", "the same signal, less noise", song)
    yield Entry("schedule", "ve", f"{here}.schedule:VE", "variance exploding, sigma geometric", song)
    yield Entry("parameterization", "score", f"{here}.parameterization:Score", "the network predicts the score", song)
    yield Entry("weighting", "likelihood", f"{here}.weighting:Likelihood", "g^2 on the score", "song2021maximum")
    yield Entry("sampler", "euler-maruyama", f"{here}.sampler:EulerMaruyama", "the reverse SDE in small steps", song)
    yield Entry("sampler", "reverse-diffusion", f"{here}.sampler:ReverseDiffusion", "the chain, turned around", song)
    yield Entry(
        "sampler", "predictor-corrector", f"{here}.corrector:PredictorCorrector", "steps mended by Langevin", song
    )
    yield Entry("sampler", "probability-flow", f"{here}.flow:ProbabilityFlow", "the ODE, with error control", song)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_score_sde.laws"
