"""Training curves: loss, gradient norm and learning rate over the steps, and loss by noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..charts import LineChart, Series, line_chart, smooth, spans_decades
from ..inputs import LossByLevel, ReportInputs
from ..markup import Html
from ..page import Section, card, cards
from ..wording import count, figure, memory, number

Column = NDArray[np.float64]
Row = Mapping[str, object]


def section(inputs: ReportInputs) -> Section | None:
    """None where metrics.jsonl holds no step and nothing is known of the loss by level."""
    rows = in_order(inputs.metrics)
    step = _column(rows, "step")
    charts = [_loss(rows, step, inputs), _gradient(rows, step), _rate(rows, step), _by_level(inputs.loss_by_level)]
    shown = [chart for chart in charts if chart]
    return Section("training", "Training", cards(*shown), _sentence(rows)) if shown else None


def in_order(metrics: Sequence[Row]) -> list[Row]:
    """Rows by rising step; where a resumed run went over a step again, its later row counts."""
    latest = {step: row for row in metrics if (step := number(row.get("step"))) is not None}
    return [latest[step] for step in sorted(latest)]


def _column(rows: Sequence[Row], key: str) -> Column:
    """One value of every row; nan where it is absent or no finite number."""
    return np.array([np.nan if (v := number(row.get(key))) is None else v for row in rows], dtype=np.float64)


def _smoothed(name: str, step: Column, raw: Column) -> list[Series]:
    """The line itself where points are few; else its running mean over it."""
    known = np.isfinite(raw)
    if known.sum() < 30:
        return [Series(name, step, raw)]
    return [
        Series(f"{name}, as measured", step, raw, "faint", listed=False),
        Series(name, step, smooth(raw, len(raw) // 60 + 1)),
    ]


def _loss(rows: Sequence[Row], step: Column, inputs: ReportInputs) -> Html:
    raw, held_out = _column(rows, "loss"), _column(rows, "held_out_loss")
    seen = np.isfinite(held_out)
    series = _smoothed("Training", step, raw)
    if seen.any():
        series.append(Series("Held-out", step[seen], held_out[seen], "second", dots=seen.sum() <= 40))
    resumes = [
        (at, f"resumed at step {count(at)}")
        for event in inputs.events
        if event.get("event") == "resume" and (at := number(event.get("step"))) is not None
    ]
    log = spans_decades(np.concatenate([raw, held_out]))
    chart = line_chart(LineChart("Loss over training steps", "step", series, log_y=log, marks=resumes))
    lost = sum("loss" in row and number(row["loss"]) is None for row in rows)
    told = [
        "Thin: as measured. Strong: running mean." if any(one.style == "faint" for one in series) else "",
        "Held-out examples are never trained on; a rising held-out line means memorising." if seen.any() else "",
        "Vertical lines mark where the run was resumed." if resumes else "",
        f"Steps whose loss was not finite: {count(lost)}." if lost else "",
    ]
    caption = " ".join(text for text in told if text) or "The mean of the objective."
    return card(chart, title="Loss", caption=caption) if chart else Html("")


def _gradient(rows: Sequence[Row], step: Column) -> Html:
    norm = _column(rows, "grad_norm")
    series = _smoothed("Gradient norm", step, norm)
    chart = line_chart(LineChart("Gradient norm over training steps", "step", series, log_y=spans_decades(norm)))
    caption = "Length of the gradient before clipping. Spikes tell of hard batches, a steady rise of a rate too high."
    return card(chart, title="Gradient norm", caption=caption) if chart else Html("")


def _rate(rows: Sequence[Row], step: Column) -> Html:
    series = [Series("Learning rate", step, _column(rows, "lr"))]
    chart = line_chart(LineChart("Learning rate over training steps", "step", series))
    return (
        card(chart, title="Learning rate", caption="As the optimiser used it, warm-up included.") if chart else Html("")
    )


def _by_level(found: LossByLevel | None) -> Html:
    if found is None:
        return Html("")
    lines = [Series("Training", found.level, found.loss, dots=len(found.level) <= 40)]
    if found.held_out is not None:
        lines.append(Series("Held-out", found.level, found.held_out, "second", dots=len(found.level) <= 40))
    every = np.concatenate([np.asarray(line.y, dtype=np.float64) for line in lines])
    name = "t" if found.axis == "t" else "log(α/σ)"
    chart = line_chart(LineChart("Loss by noise level", name, lines, log_y=spans_decades(every)))
    noise = "right" if found.axis == "t" else "left"
    caption = f"Mean loss where the noise is that strong; the noisiest levels are on the {noise}."
    return card(chart, title="Loss by noise level", caption=caption) if chart else Html("")


def _sentence(rows: Sequence[Row]) -> str:
    """Where the losses ended, how fast it went, what memory it took."""
    names = ("loss", "held_out_loss", "images_per_second", "memory")
    loss, held_out, speed, used = (column[np.isfinite(column)] for column in (_column(rows, name) for name in names))
    parts = []
    if loss.size:
        ended = f"The training loss ended at {figure(loss[-max(1, len(loss) // 20) :].mean())}"
        parts.append(f"{ended}, the held-out loss at {figure(held_out[-1])}." if held_out.size else f"{ended}.")
    if speed.size:
        parts.append(f"Median speed: {figure(np.median(speed))} examples per second.")
    if used.size:
        parts.append(f"Peak memory: {memory(used.max())}.")
    return " ".join(parts)
