"""The head of the page: the verdict in one sentence, what was done in a second, and the key figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..wording import count, duration, figure, large, moment, number
from .metrics import label
from .training import in_order

if TYPE_CHECKING:
    from ...runs.results import MetricResult


@dataclass(frozen=True)
class TrainingState:
    """The last training step, its losses, and the first step of a last stretch whose loss was not finite.

    `held_out` is the loss of the average weights, `raw` that of the raw weights beside it.
    """

    step: int | None = None
    loss: float | None = None
    held_out: float | None = None
    raw: float | None = None
    diverged: int | None = None


def header(inputs: ReportInputs) -> Html:
    """Return the head as an element `header`."""
    state = _training_state(inputs)
    missing = [tag("p", f"Not in this report: {'; '.join(inputs.missing)}.", class_="note")] if inputs.missing else []
    return tag(
        "header",
        tag("p", join(["Report of a run", moment(inputs.created) or None], between=" · "), class_="kicker"),
        tag("h1", inputs.title),
        tag("p", _headline(inputs, state), class_="verdict"),
        tag("p", _description(inputs, state), class_="lead"),
        _tiles(inputs, state),
        *missing,
        id="summary",
    )


def _headline(inputs: ReportInputs, state: TrainingState) -> str:
    """Return the verdict and the first result. Divergence overrules both."""
    if state.diverged is not None:
        return f"Training diverged: the loss is not finite from step {count(state.diverged)} on."
    if not inputs.results:
        return "Trained, not yet measured." if state.step is not None else "This run has no results yet."
    name, first = next(iter(inputs.results.items()))
    real = first.held_out.get(first.headline)
    against = f" (real held-out data: {figure(real)})" if real is not None else ""
    return f"{inputs.verdict} {label(name, first.headline)}: {figure(first.value)}{against}.".lstrip()


def _training_state(inputs: ReportInputs) -> TrainingState:
    step, loss, held_out, raw, diverged = None, None, None, None, None
    for row in in_order(inputs.training_log):
        seen, validated = row.get("loss"), number(row.get("held_out_loss_ema", row.get("held_out_loss")))
        step = round(number(row["step"]) or 0)
        if validated is not None:
            held_out, raw = validated, number(row.get("held_out_loss")) if "held_out_loss_ema" in row else None
        if number(seen) is not None:
            loss, diverged = number(seen), None
        elif "loss" in row and diverged is None:
            diverged = step
    return TrainingState(step, loss, held_out, raw, diverged)


def _description(inputs: ReportInputs, state: TrainingState) -> str:
    """Describe what was trained, on which data, and for how long."""
    if state.step is None:
        return (
            f"Samples of the data set {inputs.data_name}."
            if inputs.data_name
            else "This run has no record of a training."
        )
    subject = f"A model of {large(inputs.parameters)} parameters" if inputs.parameters else "The model"
    data = f" on {inputs.data_name}" if inputs.data_name else ""
    short = inputs.total_steps is not None and state.step < inputs.total_steps
    steps = f"{count(state.step)} of {count(inputs.total_steps)} steps" if short else f"{count(state.step)} steps"
    seconds = inputs.stage_seconds.get("train")
    time = f" in {duration(seconds)}" if seconds is not None else ""
    where = f" on {inputs.hardware}" if inputs.hardware else ""
    return f"{subject} was trained{data} for {steps}{time}{where}."


def _tiles(inputs: ReportInputs, state: TrainingState) -> Html:
    seconds = inputs.stage_seconds
    tiles: list[Html] = []
    for name, result in list(inputs.results.items())[:1]:
        tiles.append(_tile(label(name, result.headline), figure(result.value), _real(result), strong=True))
    if state.step is not None:
        of = f"of {count(inputs.total_steps)}" if inputs.total_steps else ""
        tiles.append(_tile("Training steps", count(state.step), of))
    if "train" in seconds:
        rest = sum(seconds.values()) - seconds["train"]
        tiles.append(
            _tile("Training time", duration(seconds["train"]), f"+ {duration(rest)} for the rest" if rest else "")
        )
    if state.held_out is not None:
        raw = f"raw weights: {figure(state.raw)}; " if state.raw is not None else ""
        tiles.append(_tile("Held-out loss", figure(state.held_out), f"{raw}training: {figure(state.loss)}"))
    elif state.loss is not None:
        tiles.append(_tile("Training loss", figure(state.loss), "at the last step"))
    if inputs.parameters:
        tiles.append(_tile("Parameters", large(inputs.parameters)))
    for result in list(inputs.results.values())[:1]:
        if result.nfe is not None:
            tiles.append(_tile("Network calls", count(result.nfe), "per measured sample"))
    return tag("dl", *tiles, class_="tiles") if tiles else Html("")


def _real(result: MetricResult) -> str:
    real = result.held_out.get(result.headline)
    if real is None:
        return ""
    return f"real data: {figure(real)}" + (f" ({figure(result.ratio)} ×)" if result.ratio is not None else "")


def _tile(label: str, value: str, note: str = "", strong: bool = False) -> Html:
    return tag(
        "div",
        tag("dt", label),
        tag("dd", value, class_="value"),
        tag("dd", note, class_="aside") if note else None,
        class_="tile strong" if strong else "tile",
    )
