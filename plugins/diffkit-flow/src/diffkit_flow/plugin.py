"""The components, recipes, command and laws of this package."""

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
    here, liu, esser, salimans = "diffkit_flow", "liu2023flow", "esser2024scaling", "salimans2022progressive"
    yield Entry(
        "schedule", "rectified", f"{here}.schedule:Rectified", "Interpolate linearly: alpha = 1 - t, sigma = t", liu
    )
    yield Entry("parameterization", "flow", f"{here}.parameterization:Flow", "Predict the velocity eps - x0", liu)
    yield Entry("parameterization", "v", f"{here}.parameterization:V", "Predict v = alpha eps - sigma x0", salimans)
    yield Entry(
        "times",
        "logit-normal",
        f"{here}.times:LogitNormal",
        "Draw training times mostly in the middle of the path",
        esser,
    )
    yield Entry("grid", "shifted", f"{here}.grid:Shifted", "Shift the times of a grid towards noise", esser)
    yield Entry(
        "objective",
        "flow-matching",
        f"{here}.objective:FlowMatching",
        "Regress velocities, with a choice of coupling",
        "lipman2023flow",
    )
    yield Entry("sampler", "straight", f"{here}.sampler:Straight", "Sample by Euler steps along the velocity", liu)
    yield Entry("data", "pairs", f"{here}.pairs:Pairs", "Load pairs of noise and sample, for reflow", liu)


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
