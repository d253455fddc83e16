"""The components of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit import Entry, hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "network": [
        ("stable-diffusion", "network:TextUNet", "Use the U-Net of Stable Diffusion", "rombach2022high"),
        ("lora", "lora:LoRA", "Train a low-rank update of the network of a run", "hu2022lora"),
    ],
    "codec": [("of-run", "of_run:RunCodec", "Refer to the codec of another run, as lora does")],
    "conditioner": [
        ("of-run", "of_run:RunConditioner", "Refer to a conditioner of another run, as lora does"),
        ("clip-text", "text:ClipText", "Encode a text by CLIP, which stays as it is", "radford2021learning"),
        ("t5", "text:T5", "Encode a text by T5, which stays as it is", "raffel2020exploring"),
        ("inpainting", "inpainting:Inpainting", "Give mask and masked latents as channels", "rombach2022high"),
    ],
}


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .commands import export_lora

    group.add_command(export_lora)


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_stable_diffusion", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"
