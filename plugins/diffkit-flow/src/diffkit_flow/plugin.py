"""What this package offers to diffkit."""

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
    yield Entry("schedule", "rectified", f"{here}.schedule:Rectified", "alpha = 1 - t, sigma = t", liu)
    yield Entry("parameterization", "flow", f"{here}.parameterization:Flow", "the velocity eps - x0", liu)
    yield Entry("parameterization", "v", f"{here}.parameterization:V", "alpha eps - sigma x0", salimans)
    yield Entry("times", "logit-normal", f"{here}.times:LogitNormal", "the middle of the path more often", esser)
    yield Entry("grid", "shifted", f"{here}.grid:Shifted", "more steps where there is more noise", esser)
    yield Entry("objective", "flow-matching", f"{here}.objective:FlowMatching", "with a coupling", "lipman2023flow")
    yield Entry("sampler", "straight", f"{here}.sampler:Straight", "one straight line a step", liu)
    yield Entry("data", "pairs", f"{here}.pairs:Pairs", "examples with the noise that they came from", liu)


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
