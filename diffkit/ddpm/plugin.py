"""The default plugin: the components of Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffkit.host import Entry, hookimpl

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here, ho = "diffkit.ddpm", "ho2020denoising"
    yield Entry("schedule", "linear", f"{here}.schedule:Linear", "beta increases linearly", ho)
    yield Entry(
        "schedule", "scaled-linear", f"{here}.schedule:ScaledLinear", "sqrt(beta) increases linearly", "rombach2022high"
    )
    yield Entry("parameterization", "eps", f"{here}.parameterization:Eps", "the network predicts the noise", ho)
    yield Entry("parameterization", "x0", f"{here}.parameterization:X0", "the network predicts the clean data", ho)
    yield Entry("parameterization", "mu", f"{here}.parameterization:Mu", "the network predicts the posterior mean", ho)
    yield Entry("network", "unet", f"{here}.unet:UNet", "residual U-Net with attention", ho)
    yield Entry("network", "mlp", f"{here}.mlp:MLP", "residual MLP for vectors")
    yield Entry("sampler", "ancestral", f"{here}.sampler:Ancestral", "draws from the posterior (DDPM)", ho)
    yield Entry("objective", "simple", f"{here}.objective:Simple", "weighted squared error at a random time", ho)
    yield Entry("objective", "vlb", f"{here}.objective:VLB", "the variational bound, in nats", "sohldickstein2015deep")
    yield Entry("weighting", "uniform", f"{here}.weighting:Uniform", "w = 1: equal weight of all levels in x0", ho)
    yield Entry("weighting", "snr", f"{here}.weighting:SNR", "w = snr: equal weight of all levels in eps", ho)
    yield Entry(
        "weighting",
        "vlb",
        f"{here}.weighting:VLBWeight",
        "the weights of the variational bound",
        "kingma2021variational",
    )


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.ddpm"
