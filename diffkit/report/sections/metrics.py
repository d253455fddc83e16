"""The table of metrics: each value beside that of real held-out data, with intervals, and what each one means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..page import Section
from ..wording import count, figure

if TYPE_CHECKING:
    from ...runs.results import Interval, MetricResult

BETTER = {True: "Lower is better.", False: "Higher is better.", None: "The value of real data is best."}


def section(inputs: ReportInputs) -> Section | None:
    """Return the table of metrics; None if there are no results."""
    if not inputs.results:
        return None
    how = {_sampling(result) for result in inputs.results.values()}
    common = how.pop() if len(how) == 1 else ""
    lead = join(
        [
            "Each metric compares two sets with the training examples: the samples, and real held-out examples in "
            "their place. The second value is what a perfect model would score. Brackets hold 95 % intervals, from "
            "random halves of the samples.",
            f"All samples measured here: {common}." if common else None,
            tag("a", "The words of this report", href="#glossary"),
        ],
        between=" ",
    )
    note = tag("p", inputs.verdict_rule, class_="note") if inputs.verdict_rule else None
    return Section("metrics", "Metrics", join([_table(inputs), _definitions(inputs, common), note]), lead)


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


def _table(inputs: ReportInputs) -> Html:
    heads = ("Measure", "Samples", "Real held-out", "Ratio")
    head = tag("tr", *[tag("th", text, scope="col", class_="num" if k else None) for k, text in enumerate(heads)])
    rows = [_row(name, key, result) for name, result in inputs.results.items() for key in keys(result)]
    caption = tag(
        "caption",
        "Samples against real held-out data. Ratio: how many times worse than equally many held-out examples; "
        "1 × is equal.",
    )
    table = tag("table", caption, tag("thead", head), tag("tbody", *rows))
    return tag("div", table, class_="card table", role="region", aria_label="Metrics", tabindex=0)


def _row(name: str, key: str, result: MetricResult) -> Html:
    headline = key == result.headline
    ratio = _cell(result.ratio, result.ratio_interval, " ×") if headline and result.ratio is not None else "–"
    real = _cell(result.held_out.get(key), result.held_out_intervals.get(key)) if key in result.held_out else "–"
    return tag(
        "tr",
        tag("th", label(name, key), scope="row"),
        tag("td", _cell(result.values[key], result.intervals.get(key)), class_="num made"),
        tag("td", real, class_="num"),
        tag("td", ratio, class_="num"),
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
