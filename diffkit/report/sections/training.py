"""Training curves: loss, gradient norm and learning rate over the steps, and loss by noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..charts import LineChart, Series, Style, line_chart, smooth, spans_decades
from ..inputs import ReportInputs
from ..markup import Html
from ..page import Section, card, cards
from ..wording import count, figure, memory, number

if TYPE_CHECKING:
    from ...runs.results import LossByLevel

Column = NDArray[np.float64]
Row = Mapping[str, object]


def section(inputs: ReportInputs) -> Section | None:
    """Return the training curves; None without a training log and losses by noise level."""
    rows = in_order(inputs.training_log)
    step = _column(rows, "step")
    charts = [_loss(rows, step, inputs), _gradient(rows, step), _rate(rows, step), _by_level(inputs.loss_by_level)]
    shown = [chart for chart in charts if chart]
    return Section("training", "Training", cards(*shown), _sentence(rows)) if shown else None


def in_order(log: Sequence[Row]) -> list[Row]:
    """Sort rows by step; if a resumed run repeated a step, its last row counts."""
    latest = {step: row for row in log if (step := number(row.get("step"))) is not None}
    return [latest[step] for step in sorted(latest)]


def _column(rows: Sequence[Row], key: str) -> Column:
    """Return one value of every row; nan if it is absent or not finite."""
    return np.array([np.nan if (v := number(row.get(key))) is None else v for row in rows], dtype=np.float64)


def _smoothed(name: str, step: Column, raw: Column) -> list[Series]:
    """Return the line itself if it has few points; else the line, faint, and its running mean."""
    known = np.isfinite(raw)
    if known.sum() < 30:
        return [Series(name, step, raw)]
    return [
        Series(f"{name}, as measured", step, raw, "faint", listed=False),
        Series(name, step, smooth(raw, len(raw) // 60 + 1)),
    ]


def _loss(rows: Sequence[Row], step: Column, inputs: ReportInputs) -> Html:
    raw, held_out = _column(rows, "loss"), _column(rows, "held_out_loss")
    average = _column(rows, "held_out_loss_ema")
    series = _smoothed("Training", step, raw)
    validated = bool(np.isfinite(held_out).any() or np.isfinite(average).any())
    lines: tuple[tuple[str, Column, Style], ...]
    lines = (("Held-out, raw", held_out, "third"), ("Held-out, average", average, "second"))
    for name, values, style in lines:
        if (seen := np.isfinite(values)).any():
            series.append(Series(name, step[seen], values[seen], style, dots=bool(seen.sum() <= 40)))
    resumes = [
        (at, f"resumed at step {count(at)}")
        for event in inputs.events
        if event.get("event") == "resume" and (at := number(event.get("step"))) is not None
    ]
    log = spans_decades(np.concatenate([raw, held_out, average]), 0.3)  # a factor of two
    chart = line_chart(LineChart("Loss over training steps", "step", series, log_y=log, marks=resumes))
    lost = sum("loss" in row and number(row["loss"]) is None for row in rows)
    notes = [
        "Thin: as measured. Strong: running mean." if any(one.style == "faint" for one in series) else "",
        "Held-out examples are never trained on; a rising held-out line means that the model memorises. "
        "Raw weights are those of the optimizer; samples are drawn with the average."
        if validated
        else "",
        "Vertical lines mark the steps at which the run was resumed." if resumes else "",
        f"Steps whose loss was not finite: {count(lost)}." if lost else "",
    ]
    caption = " ".join(text for text in notes if text) or "The mean of the objective."
    return card(chart, title="Loss", caption=caption) if chart else Html("")


def _gradient(rows: Sequence[Row], step: Column) -> Html:
    norm = _column(rows, "grad_norm")
    series = _smoothed("Gradient norm", step, norm)
    chart = line_chart(LineChart("Gradient norm over training steps", "step", series, log_y=spans_decades(norm)))
    caption = (
        "Norm of the gradient before clipping. Spikes mean hard batches; a steady rise suggests that the learning rate "
        "is too high."
    )
    return card(chart, title="Gradient norm", caption=caption) if chart else Html("")


def _rate(rows: Sequence[Row], step: Column) -> Html:
    series = [Series("Learning rate", step, _column(rows, "lr"))]
    chart = line_chart(LineChart("Learning rate over training steps", "step", series))
    return (
        card(chart, title="Learning rate", caption="Learning rate of each step, with warm-up.") if chart else Html("")
    )


def _by_level(found: LossByLevel | None) -> Html:
    if found is None:
        return Html("")
    level, loss = (np.asarray(values, dtype=np.float64) for values in (found.level, found.loss))
    line = Series("Held-out loss", level, loss, dots=len(level) <= 40)
    title = "Held-out loss by noise level"
    chart = line_chart(LineChart(title, "t", [line], log_y=bool((loss > 0).all())))
    caption = "Mean loss of the average weights on held-out examples in equal bins of t; the noise grows to the right."
    return card(chart, title=title, caption=caption) if chart else Html("")


def _sentence(rows: Sequence[Row]) -> str:
    """Describe the last losses, the speed and the peak memory."""
    names = ("loss", "held_out_loss", "held_out_loss_ema", "images_per_second", "memory")
    loss, raw, average, speed, used = (c[np.isfinite(c)] for c in (_column(rows, name) for name in names))
    held_out = average if average.size else raw
    parts = []
    if loss.size:
        ended = f"The training loss ended at {figure(loss[-max(1, len(loss) // 20) :].mean())}"
        parts.append(f"{ended}, the held-out loss at {figure(held_out[-1])}." if held_out.size else f"{ended}.")
    if speed.size:
        parts.append(f"Median speed: {figure(np.median(speed))} examples per second.")
    if used.size:
        parts.append(f"Peak memory: {memory(used.max())}.")
    return " ".join(parts)
