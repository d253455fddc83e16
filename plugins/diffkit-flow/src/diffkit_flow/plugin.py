"""The components, recipes, command and laws of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit import Entry, hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1
COMPONENTS = {
    "schedule": [("rectified", "schedule:Rectified", "Interpolate linearly: alpha = 1 - t, sigma = t", "liu2023flow")],
    "parameterization": [
        ("flow", "parameterization:Flow", "Predict the velocity eps - x0", "liu2023flow"),
        ("v", "parameterization:V", "Predict v = alpha eps - sigma x0", "salimans2022progressive"),
    ],
    "times": [
        (
            "logit-normal",
            "times:LogitNormal",
            "Draw training times mostly in the middle of the path",
            "esser2024scaling",
        )
    ],
    "grid": [("shifted", "grid:Shifted", "Shift the times of a grid towards noise", "esser2024scaling")],
    "objective": [
        ("flow-matching", "objective:FlowMatching", "Regress velocities, with a choice of coupling", "lipman2023flow")
    ],
    "sampler": [("straight", "sampler:Straight", "Sample by Euler steps along the velocity", "liu2023flow")],
    "data": [("pairs", "pairs:Pairs", "Load pairs of noise and sample, for reflow", "liu2023flow")],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_flow", COMPONENTS)


@hookimpl
def diffkit_recipes() -> Iterator[Path]:
    yield Path(__file__).parent / "recipes"


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .command import reflow

    group.add_command(reflow)


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_flow.laws"
