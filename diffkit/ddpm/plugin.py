"""The default plugin: the components of Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit.host import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, ho = "diffkit.ddpm", "ho2020denoising"
    yield Entry("schedule", "linear", f"{here}.schedule:Linear", "Increase beta linearly", ho)
    yield Entry(
        "schedule", "scaled-linear", f"{here}.schedule:ScaledLinear", "Increase sqrt(beta) linearly", "rombach2022high"
    )
    yield Entry("parameterization", "eps", f"{here}.parameterization:Eps", "Predict the noise", ho)
    yield Entry("parameterization", "x0", f"{here}.parameterization:X0", "Predict the clean data", ho)
    yield Entry("parameterization", "mu", f"{here}.parameterization:Mu", "Predict the posterior mean", ho)
    yield Entry("network", "unet", f"{here}.unet:UNet", "Use a residual U-Net with attention", ho)
    yield Entry("network", "mlp", f"{here}.mlp:MLP", "Use a residual MLP, for vectors")
    yield Entry("sampler", "ancestral", f"{here}.sampler:Ancestral", "Sample from the learned posterior (DDPM)", ho)
    yield Entry(
        "objective", "simple", f"{here}.objective:Simple", "Minimise the weighted squared error at a random time", ho
    )
    yield Entry(
        "objective", "vlb", f"{here}.objective:VLB", "Minimise the variational bound, in nats", "sohldickstein2015deep"
    )
    yield Entry("weighting", "uniform", f"{here}.weighting:Uniform", "Weight the x0 error equally at all levels", ho)
    yield Entry("weighting", "snr", f"{here}.weighting:SNR", "Weight the eps error equally at all levels: w = snr", ho)
    yield Entry(
        "weighting",
        "vlb",
        f"{here}.weighting:VLBWeight",
        "Weight as the variational bound does",
        "kingma2021variational",
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.ddpm"
