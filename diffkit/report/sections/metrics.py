"""The table of metrics: each value beside that of real held-out data, with intervals, and what each one means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..charts import LineChart, Series, line_chart
from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..page import Section, card, cards
from ..wording import count, figure

if TYPE_CHECKING:
    from ...runs.results import Interval, MetricResult

MIN_TIMES = 2
BETTER = {True: "Lower is better.", False: "Higher is better.", None: "The value of real data is best."}


def section(inputs: ReportInputs) -> Section | None:
    """Return the table of metrics; None if there are no results."""
    if not inputs.results:
        return None
    how = {_sampling(result) for result in inputs.results.values() if result.needs == "samples"}
    common = next(iter(how)) if len(how) == 1 else ""
    lead = join(
        [
            "Each metric compares two sets with the training examples: the samples, and real held-out examples in "
            "their place. The second value is what a perfect model would score. Brackets hold 95 % intervals, from "
            "random halves of the samples."
            if how
            else f"What the {'model' if inputs.task == 'diffusion' else inputs.task} gives held-out data, and training "
            "data in its place. Brackets hold 95 % intervals.",
            f"All samples measured here: {common}." if common else None,
            tag("a", "The words of this report", href="#glossary"),
        ],
        between=" ",
    )
    note = tag("p", inputs.verdict_rule, class_="note") if inputs.verdict_rule else None
    return Section(
        "metrics", "Metrics", join([*_tables(inputs), *_by_time(inputs), _definitions(inputs, common), note]), lead
    )


def _sampling(result: MetricResult) -> str:
    """Describe how the samples of a result were drawn: sampler, steps, and network calls if these are not the steps."""
    calls = "" if result.nfe is None else f"{count(result.nfe)} network calls each"
    return ", ".join(part for part in (result.sampler, calls) if part)


def label(metric: str, key: str) -> str:
    """Return the name of the metric, and that of the value if it differs."""
    return metric if key.replace("_", "-") in ("", metric) else f"{metric} {key}"


def keys(result: MetricResult) -> list[str]:
    """Return the names of the values, the headline first."""
    return sorted(result.values, key=lambda key: key != result.headline)


def _tables(inputs: ReportInputs) -> Iterator[Html]:
    """Draw one table for the metrics of samples, and one for those of anything else."""
    captions = {
        "samples": "Samples against real held-out data. Ratio: how many times worse than equally many held-out "
        "examples; 1 × is equal.",
        "model": "The model on held-out data, and on training data in its place; a model that memorises is better on "
        "training data.",
        "pairs": "Reconstructions beside their examples: held-out ones, and training ones.",
        "classifier": "The classifier on noisy held-out examples, and on noisy training examples.",
    }
    for needs, caption in captions.items():
        heads = ("Samples", "Real held-out", "Ratio") if needs == "samples" else ("Held-out", "Training")
        named = [(name, result) for name, result in inputs.results.items() if result.needs == needs]
        columns = ("Measure", *heads)
        head = [tag("th", text, scope="col", class_="num" if k else None) for k, text in enumerate(columns)]
        rows = [_row(name, key, result) for name, result in named for key in keys(result) if not key.startswith("t=")]
        table = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *rows))
        if rows:
            yield tag("div", table, class_="card table", role="region", aria_label=f"Metrics of {needs}", tabindex=0)


def _by_time(inputs: ReportInputs) -> Iterator[Html]:
    """Draw the values of a classifier at times, which are named `t=TIME`."""
    for name, result in inputs.results.items():
        rows = [(float(key[2:]), key) for key in result.values if key.startswith("t=")]
        if result.needs != "classifier" or len(rows) < MIN_TIMES:
            continue
        lines = (("Held-out", result.values, "main"), ("Training", result.train, "second"))
        series = [
            Series(title, [t for t, _ in rows], [_number(values.get(key)) for _, key in rows], style, dots=True)  # type: ignore[arg-type]
            for title, values, style in lines
        ]
        chart = LineChart(f"{name} of noisy examples by time", "t, from clean to noise", series)
        caption = "The first value is the mean over these times."
        yield cards(card(line_chart(chart), title=f"{name} by noise level", caption=caption))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _row(name: str, key: str, result: MetricResult) -> Html:
    headline = key == result.headline
    ratio = _cell(result.ratio, result.ratio_interval, " ×") if headline and result.ratio is not None else "–"
    beside, intervals = result.held_out | result.train, result.held_out_intervals | result.train_intervals
    real = _cell(beside.get(key), intervals.get(key)) if key in beside else "–"
    return tag(
        "tr",
        tag("th", label(name, key), scope="row"),
        tag("td", _cell(result.values[key], result.intervals.get(key)), class_="num made"),
        tag("td", real, class_="num"),
        tag("td", ratio, class_="num") if result.needs == "samples" else None,
        class_="headline" if headline else "detail",
    )


def _cell(value: float | None, interval: Interval | None, unit: str = "") -> Html:
    """Format a number with its interval."""
    text = f"{figure(value)}{unit}"
    if interval is None:
        return join([text])
    return join([text, tag("span", f" [{figure(interval.low)}, {figure(interval.high)}]", class_="soft")])


def _definitions(inputs: ReportInputs, common: str) -> Html:
    entries = []
    for name, result in inputs.results.items():
        rest = join([BETTER[result.lower_is_better], _counts(result, common)], between=" ")
        meaning = join([_sentence(result.definition) or None, tag("span", rest, class_="soft")], between=" ")
        entries.append(tag("div", tag("dt", name), tag("dd", meaning)))
    return tag("dl", *entries, class_="definitions")


def _counts(result: MetricResult, common: str) -> str:
    """Describe the numbers of examples, and how the samples were drawn if `common` does not describe it for all."""
    if result.needs != "samples":
        return f"{count(result.held_out_count)} held-out examples, {count(result.reference)} training examples."
    parts = [f"{count(result.samples)} samples against {count(result.reference)} training examples"]
    if result.held_out_count:
        parts.append(f"real data: {count(result.held_out_count)} held-out examples")
    if not common and (drawn := _sampling(result)):
        parts.append(f"samples drawn with {drawn}")
    if not result.intervals:
        parts.append("intervals are not available")
    return _sentence(", ".join(parts))


def _sentence(text: str) -> str:
    """Return the text with a capital first letter and a full stop."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text.strip(". ") else ""
