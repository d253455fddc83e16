"""Training curves: loss, gradient norm, learning rate, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..charts import LineChart, Series, line_chart, smooth, spans_decades
from ..inputs import ReportInputs
from ..markup import Html
from ..page import Section, card, cards
from ..wording import count, figure, memory, number

Column = NDArray[np.float64]


def section(inputs: ReportInputs) -> Section | None:
    """None where metrics.jsonl holds no step."""
    rows = [row for row in inputs.metrics if number(row.get("step")) is not None]
    if not rows:
        return None
    step = _column(rows, "step")
    charts = [_loss(rows, step, inputs), _gradient(rows, step), _rate(rows, step), _speed(rows, step)]
    shown = [chart for chart in charts if chart]
    return Section("training", "Training", cards(*shown), f"{_sentence(rows)}") if shown else None


def _column(rows: Sequence[Mapping[str, object]], key: str) -> Column:
    """One value of every row; nan where it is absent or no finite number."""
    return np.array([np.nan if (v := number(row.get(key))) is None else v for row in rows], dtype=np.float64)


def _smoothed(name: str, step: Column, raw: Column) -> list[Series]:
    """The line itself where points are few; else its running mean over it."""
    known = np.isfinite(raw)
    if known.sum() < 30:
        return [Series(name, step, raw)]
    return [
        Series(f"{name}, as measured", step, raw, "faint", listed=False),
        Series(name, step, np.where(known, smooth(raw, len(raw) / 40), np.nan)),
    ]


def _loss(rows: Sequence[Mapping[str, object]], step: Column, inputs: ReportInputs) -> Html:
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
    lost = int((~np.isfinite(raw)).sum())
    caption = " ".join(
        text
        for text in (
            "The objective's mean."
            if len(series) == 1
            else "Thin: as measured. Strong: running mean."
            if len(raw) >= 30
            else "",
            "Held-out examples are never trained on; a rising held-out line means memorising." if seen.any() else "",
            "Vertical lines mark where the run was resumed." if resumes else "",
            f"{count(lost)} rows hold no finite loss." if lost else "",
        )
        if text
    )
    return card(chart, title="Loss", caption=caption) if chart else Html("")


def _gradient(rows: Sequence[Mapping[str, object]], step: Column) -> Html:
    norm = _column(rows, "grad_norm")
    series = _smoothed("Gradient norm", step, norm)
    chart = line_chart(LineChart("Gradient norm over training steps", "step", series, log_y=spans_decades(norm)))
    caption = "Length of the gradient before clipping. Spikes tell of hard batches, a steady rise of a rate too high."
    return card(chart, title="Gradient norm", caption=caption) if chart else Html("")


def _rate(rows: Sequence[Mapping[str, object]], step: Column) -> Html:
    series = [Series("Learning rate", step, _column(rows, "lr"))]
    chart = line_chart(LineChart("Learning rate over training steps", "step", series))
    return (
        card(chart, title="Learning rate", caption="As the optimiser used it, warm-up included.") if chart else Html("")
    )


def _speed(rows: Sequence[Mapping[str, object]], step: Column) -> Html:
    speed = _column(rows, "images_per_second")
    chart = line_chart(
        LineChart("Examples per second over training steps", "step", _smoothed("Examples per second", step, speed))
    )
    if not chart:
        return chart
    used = _column(rows, "memory")
    peak = f" Peak memory {memory(np.nanmax(used))}." if np.isfinite(used).any() else ""
    return card(chart, title="Speed", caption=f"Examples per second; median {figure(np.nanmedian(speed))}.{peak}")


def _sentence(rows: Sequence[Mapping[str, object]]) -> str:
    """Where the loss ended."""
    loss, held_out = (column[np.isfinite(column)] for column in (_column(rows, "loss"), _column(rows, "held_out_loss")))
    if not loss.size:
        return ""
    ended = f"The training loss ended at {figure(loss[-max(1, len(loss) // 20) :].mean())}"
    return f"{ended}, the held-out loss at {figure(held_out[-1])}." if held_out.size else f"{ended}."
