"""The components and laws of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit import Entry, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "codec": [
        ("trained", "trained:Trained", "Use the codec of another run", "rombach2022high"),
        ("tiled", "tiled:Tiled", "Encode and decode in tiles that overlap"),
        ("kl-vae", "codecs:KLVAE", "Autoencoder whose codes have a normal posterior", "kingma2014auto"),
        ("vq-vae", "codecs:VQVAE", "Autoencoder whose codes are those of a codebook", "oord2017neural"),
    ],
    "network": [
        ("gaussian-start", "gaussian:GaussianStart", "Add a network to the best linear denoiser", "wang2024gaussian"),
    ],
    "reconstruction-loss": [
        ("l1", "losses:L1", "Mean absolute error"),
        ("l2", "losses:L2", "Mean squared error"),
        ("kl", "losses:KL", "Divergence of the posterior from N(0, 1)", "kingma2014auto"),
        (
            "perceptual",
            "perceptual:Perceptual",
            "Distance of features of a network from a file",
            "zhang2018perceptual",
        ),
        (
            "adversarial",
            "adversarial:Adversarial",
            "Discriminator of patches, with its own optimizer",
            "esser2021taming",
        ),
    ],
    "metric": [
        ("psnr", "metrics:PSNR", "Signal-to-noise ratio of reconstructions"),
        ("ssim", "metrics:SSIM", "Structural similarity of reconstructions", "wang2004image"),
    ],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_latent", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_latent.laws"
