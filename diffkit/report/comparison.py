"""The page that compares runs: what differs in their recipes, results, loss curves and pictures of samples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import LineChart, Series, Style, line_chart, spans_decades
from .markup import Html, join, tag
from .page import Section, card, cards, render_page

STYLES: tuple[Style, ...] = ("main", "second", "third", "faint")


def build_comparison(
    names: Sequence[str],
    recipes: Mapping[str, Sequence[Any]],
    results: Mapping[str, Sequence[str]],
    notes: Sequence[str],
    losses: Sequence[tuple[Sequence[float], Sequence[float]]],
    pictures: Sequence[bytes | None],
) -> str:
    """Return the comparison as the text of one HTML file (write it as UTF-8).

    Args:
        names: Names of the runs.
        recipes: By path, one value for each run.
        results: By name, one value for each run, as text.
        notes: Sentences on results that cannot be compared or read.
        losses: For each run, (steps, losses).
        pictures: For each run, a PNG file of its samples.

    Returns:
        The page, which loads nothing.
    """
    series = [
        Series(name, x, y, STYLES[index % len(STYLES)])
        for index, (name, (x, y)) in enumerate(zip(names, losses, strict=True))
        if len(x)
    ]
    values = [value for _, y in losses for value in y]
    chart = line_chart(LineChart("Loss over training steps", "step", series, log_y=spans_decades(values)))
    parts = [
        Section("recipes", "Recipes", _table("value", names, recipes), "Values that differ, defaults included."),
        Section("results", "Results", join([*(tag("p", note) for note in notes), _table("result", names, results)])),
        Section("losses", "Losses", card(chart, title="Training loss")) if chart else None,
        Section("samples", "Samples", cards(*_cards(names, pictures))) if any(pictures) else None,
    ]
    header = tag("header", tag("h1", " · ".join(names)), id="summary")
    return render_page("comparison", header, [part for part in parts if part], "Made by diffkit.")


def _cards(names: Sequence[str], pictures: Sequence[bytes | None]) -> list[Html]:
    shown = [(name, picture) for name, picture in zip(names, pictures, strict=True) if picture is not None]
    return [
        card(tag("img", src=f"data:image/png;base64,{base64.b64encode(picture).decode()}", alt=name), title=name)
        for name, picture in shown
    ]


def _table(head: str, names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Html:
    cells = [tag("tr", tag("th", name), *(tag("td", str(value)) for value in row)) for name, row in rows.items()]
    top = tag("tr", *(tag("th", name) for name in (head, *names)))
    return tag("div", tag("table", tag("thead", top), tag("tbody", *cells)), class_="scroll")
