"""The components, recipes and commands of this package; components and torch are not imported here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit import Entry, hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    here = "diffkit_diffusers"
    yield Entry(
        "network", "diffusers", f"{here}.network:Diffusers", "Use a model class of diffusers", "platen2022diffusers"
    )
    yield Entry(
        "network", "diffusers-unet", f"{here}.network:DiffusersUNet", "Start unet from the weights of a UNet2DModel"
    )
    yield Entry("network", "scaled-time", f"{here}.network:ScaledTime", "Multiply c_noise by a factor before a network")
    yield Entry(
        "sampler",
        "diffusers",
        f"{here}.sampler:Diffusers",
        "Sample with a scheduler of diffusers",
        "platen2022diffusers",
    )
    yield Entry("grid", "diffusers", f"{here}.grid:DiffusersTimes", "Take the times of a scheduler of diffusers")
    yield Entry("codec", "diffusers-vae", f"{here}.vae:DiffusersVAE", "Encode by an autoencoder of diffusers")
    yield Entry("data", "shape-only", f"{here}.data:ShapeOnly", "Give the shape of data without examples")


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .commands import export_diffusers, export_vae, import_any, import_diffusers, import_openai

    for command in (import_any, import_diffusers, export_diffusers, export_vae, import_openai):
        group.add_command(command)
