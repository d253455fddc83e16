"""The components, recipes, laws and the command of this package; components and torch are not imported here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit import Entry, Kind, hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1
COMPONENTS: dict[str, list[tuple[str, ...]]] = {
    "operator": [
        ("mask", "operator:Mask", "Measure the pixels that a mask marks as known"),
        ("downsample", "operator:Downsample", "Measure the mean of squares of pixels"),
        ("blur", "operator:Blur", "Measure a picture under a Gaussian blur"),
        ("grey", "operator:Grey", "Measure the luminance of a colour picture"),
        ("jpeg", "jpeg:JPEG", "Measure a picture after JPEG compression", "itu1992jpeg"),
    ],
    "guidance": [
        ("dps", "methods:DPS", "Move x0 along the gradient of the error of a measurement", "chung2023diffusion"),
        ("pgdm", "methods:PGDM", "Move x0 by Bayes' rule with a Gaussian x0 given x", "song2023pseudoinverse"),
        ("ddnm", "methods:DDNM", "Replace the measured part of x0", "wang2023zero"),
        ("known", "methods:Known", "Hand known pixels to the samplers blend and repaint"),
    ],
    "sampler": [
        ("blend", "sampler:Blend", "Put known pixels back after each step", "avrahami2022blended"),
        ("repaint", "sampler:RePaint", "Put known pixels back and make each step several times", "lugmayr2022repaint"),
    ],
}


@hookimpl
def diffkit_kinds() -> Iterator[Kind]:
    yield Kind("operator", "diffkit_inverse.operator:Operator", "what is measured of a picture")


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_inverse", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_inverse.laws"


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .command import restore

    group.add_command(restore)
