"""The head of the page: the verdict in one sentence, what was done in a second, and the key figures."""

from __future__ import annotations

from dataclasses import dataclass

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..wording import count, duration, figure, large, moment, number
from .scores import Score, scores
from .stages import stage_seconds
from .training import in_order

# A verdict compares the headline metric with what real held-out data scores: up to this factor, these words.
GRADES = ((1.25, "On par with real data"), (2.0, "Close to real data"), (5.0, "Still apart from real data"))
BEYOND = "Far from real data"


@dataclass(frozen=True)
class Progress:
    """Where training got to: the last step, its losses, and the first step whose loss was not finite."""

    step: int | None = None
    loss: float | None = None
    held_out: float | None = None
    diverged: int | None = None


def header(inputs: ReportInputs) -> Html:
    """The head as an element `header`."""
    headline, progress = next(iter(scores(inputs.results)), None), _progress(inputs)
    missing = [tag("p", f"Not in this report: {'; '.join(inputs.missing)}.", class_="note")] if inputs.missing else []
    return tag(
        "header",
        tag("p", join(["Report of a run", moment(inputs.created) or None], between=" · "), class_="kicker"),
        tag("h1", inputs.title),
        tag("p", verdict(headline, progress), class_="verdict"),
        tag("p", _told(inputs, progress), class_="lead"),
        _tiles(inputs, headline, progress),
        *missing,
        id="summary",
    )


def verdict(headline: Score | None, progress: Progress) -> str:
    """How good the samples are, in one sentence; divergence overrules any score."""
    if progress.diverged is not None:
        return f"Training diverged: the loss stopped being finite at step {count(progress.diverged)}."
    if headline is None:
        return "Trained, not yet measured." if progress.step is not None else "Nothing was measured in this run."
    if headline.held_out is None:
        return f"{headline.label} is {figure(headline.value)}; there is no held-out score to hold it against."
    compared = (
        f"{headline.label} is {figure(headline.value)} where real held-out data scores {figure(headline.held_out)}."
    )
    ratio = headline.ratio
    if ratio is None:
        return compared
    return f"{next((words for limit, words in GRADES if ratio <= limit), BEYOND)}: {compared}"


def _progress(inputs: ReportInputs) -> Progress:
    step, loss, held_out, diverged = None, None, None, None
    for row in in_order(inputs.metrics):
        seen, validated = row.get("loss"), number(row.get("held_out_loss"))
        step = round(number(row["step"]) or 0)
        held_out = held_out if validated is None else validated
        if number(seen) is not None:
            loss, diverged = number(seen), None
        elif seen is not None and diverged is None:
            diverged = step
    return Progress(step, loss, held_out, diverged)


def _told(inputs: ReportInputs, progress: Progress) -> str:
    """What was trained, on what, for how long."""
    if progress.step is None:
        return f"Samples of the data set {inputs.data_name}." if inputs.data_name else "No training is on record."
    subject = f"A model of {large(inputs.parameters)} parameters" if inputs.parameters else "The model"
    data = f" on {inputs.data_name}" if inputs.data_name else ""
    short = inputs.total_steps is not None and progress.step < inputs.total_steps
    steps = f"{count(progress.step)} of {count(inputs.total_steps)} steps" if short else f"{count(progress.step)} steps"
    seconds = stage_seconds(inputs.results).get("train")
    time = f" in {duration(seconds)}" if seconds is not None else ""
    where = f" on {inputs.hardware}" if inputs.hardware else ""
    return f"{subject} was trained{data} for {steps}{time}{where}."


def _tiles(inputs: ReportInputs, headline: Score | None, progress: Progress) -> Html:
    seconds = stage_seconds(inputs.results)
    tiles: list[Html] = []
    if headline is not None:
        against = f" ({figure(headline.ratio)} ×)" if headline.ratio is not None else ""
        real = f"real data: {figure(headline.held_out)}{against}" if headline.held_out is not None else ""
        tiles.append(_tile(headline.label, figure(headline.value), real, strong=True))
    if progress.step is not None:
        of = f"of {count(inputs.total_steps)}" if inputs.total_steps else ""
        tiles.append(_tile("Training steps", count(progress.step), of))
    if "train" in seconds:
        rest = sum(seconds.values()) - seconds["train"]
        tiles.append(
            _tile("Training time", duration(seconds["train"]), f"+ {duration(rest)} for the rest" if rest else "")
        )
    if progress.held_out is not None:
        tiles.append(_tile("Held-out loss", figure(progress.held_out), f"training: {figure(progress.loss)}"))
    elif progress.loss is not None:
        tiles.append(_tile("Training loss", figure(progress.loss), "at the last step"))
    if inputs.parameters:
        tiles.append(_tile("Parameters", large(inputs.parameters)))
    if headline is not None and headline.nfe is not None:
        tiles.append(_tile("Network calls", count(headline.nfe), "per measured sample"))
    return tag("dl", *tiles, class_="tiles") if tiles else Html("")


def _tile(label: str, value: str, note: str = "", strong: bool = False) -> Html:
    return tag(
        "div",
        tag("dt", label),
        tag("dd", value, class_="value"),
        tag("dd", note, class_="aside") if note else None,
        class_="tile strong" if strong else "tile",
    )
