"""The default plugin: the components of Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit.host import Entry, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "schedule": [
        ("linear", "schedule:Linear", "Increase beta linearly", "ho2020denoising"),
        ("scaled-linear", "schedule:ScaledLinear", "Increase sqrt(beta) linearly", "rombach2022high"),
    ],
    "parameterization": [
        ("eps", "parameterization:Eps", "Predict the noise", "ho2020denoising"),
        ("x0", "parameterization:X0", "Predict the clean data", "ho2020denoising"),
        ("mu", "parameterization:Mu", "Predict the posterior mean", "ho2020denoising"),
    ],
    "network": [
        ("unet", "unet:UNet", "Use a residual U-Net with attention", "ho2020denoising"),
        ("mlp", "mlp:MLP", "Use a residual MLP, for vectors"),
    ],
    "sampler": [
        ("ancestral", "sampler:Ancestral", "Sample from the learned posterior (DDPM)", "ho2020denoising"),
    ],
    "objective": [
        ("simple", "objective:Simple", "Minimise the weighted squared error at a random time", "ho2020denoising"),
        ("vlb", "objective:VLB", "Minimise the variational bound, in nats", "sohldickstein2015deep"),
    ],
    "weighting": [
        ("uniform", "weighting:Uniform", "Weight the x0 error equally at all levels", "ho2020denoising"),
        ("snr", "weighting:SNR", "Weight the eps error equally at all levels: w = snr", "ho2020denoising"),
        ("vlb", "weighting:VLBWeight", "Weight as the variational bound does", "kingma2021variational"),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit.ddpm", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.ddpm"
