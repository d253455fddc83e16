"""Line charts as inline SVG: coloured by the page's variables, readable on a phone, with values under the pointer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .markup import Html, join, tag
from .ticks import Axis, axis
from .wording import figure

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 14, 226
LIMIT = 360  # points drawn for one series
_HUGE = 1e300
Style = Literal["main", "second", "third", "faint", "area"]
Numbers = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One line: x and y of equal length; points that are not finite (or not positive on a log axis) are gaps.

    `style`: "main" (accent), "second" (dashed ink), "third" (dotted), "faint" (behind), "area" (filled to zero).
    `dots` marks every point; `listed` puts the line into the legend and under the pointer.
    """

    name: str
    x: Numbers
    y: Numbers
    style: Style = "main"
    dots: bool = False
    listed: bool = True


@dataclass(frozen=True, eq=False)
class LineChart:
    """Series over common axes. `label` says in words what the picture shows; `marks` are (x, text) vertical lines;
    `rug` are places on the x axis that get a small stroke."""

    label: str
    x_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[tuple[float, str]] = ()
    rug: Numbers = ()


def spans_decades(values: Numbers, decades: float = 1.3) -> bool:
    """True where all finite values are positive and the largest is 10^decades times the smallest, or more."""
    finite = _finite(np.asarray(values, dtype=np.float64))
    return bool(finite.size) and bool(finite.min() > 0) and bool(finite.max() / finite.min() >= 10**decades)


def thin(x: NDArray[np.float64], y: NDArray[np.float64], limit: int = LIMIT) -> tuple[NDArray[np.float64], ...]:
    """At most `limit` points of a line: of each of limit / 2 stretches the lowest and the highest, so spikes stay."""
    if len(x) <= limit:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), (limit - 2) // 2):
        keep |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def smooth(y: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """Exponential mean over about `span` points, unbiased at the start; points that are not finite are passed over."""
    keep, total, weight = 1 - 1 / max(span, 1.0), 0.0, 0.0
    result = np.full(len(y), np.nan)
    for k, value in enumerate(y):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        if weight > 0:
            result[k] = total / weight
    return result


def line_chart(chart: LineChart) -> Html:
    """The chart as a `div.plot` with legend and SVG; empty where no series has a point to draw."""
    drawn = [(series, *_clean(series, chart)) for series in chart.series]
    drawn = [(series, x, y) for series, x, y in drawn if np.isfinite(y).any()]
    if not drawn:
        return Html("")
    all_x = np.concatenate([x[np.isfinite(y)] for _, x, y in drawn])
    all_y = np.concatenate([y[np.isfinite(y)] for _, _, y in drawn])
    low = min(0.0, all_y.min()) if any(series.style == "area" for series, _, _ in drawn) else all_y.min()
    horizontal = axis(all_x.min(), all_x.max(), LEFT, RIGHT, log=chart.log_x)
    vertical = axis(low, all_y.max(), BOTTOM, TOP, log=chart.log_y, widen=True)
    order = ("area", "faint", "third", "second", "main")
    lines = [_line(*row, horizontal, vertical) for row in sorted(drawn, key=lambda row: order.index(row[0].style))]
    svg = tag(
        "svg",
        _frame(horizontal, vertical, chart.x_label),
        _rug(chart, horizontal),
        *[_mark(x, text, horizontal) for x, text in chart.marks],
        *lines,
        tag("line", class_="cursor", x1=-9, x2=-9, y1=TOP, y2=BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.label}. {_summary(drawn)}",
    )
    return tag("div", _legend(drawn), svg, class_="plot", data_plot=_pointer_data(chart, drawn, horizontal))


Drawn = Sequence[tuple[Series, NDArray[np.float64], NDArray[np.float64]]]


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values) & (np.abs(values) < _HUGE)]


def _clean(series: Series, chart: LineChart) -> tuple[NDArray[np.float64], ...]:
    """x and y as floats, without the x that cannot be placed; y that cannot be is nan."""
    x, y = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (series.x, series.y))
    length = min(len(x), len(y))
    x, y = x[:length], y[:length].copy()
    usable = np.isfinite(x) & (np.abs(x) < _HUGE) & ((x > 0) | (not chart.log_x))
    y[~(np.isfinite(y) & (np.abs(y) < _HUGE) & ((y > 0) | (not chart.log_y)))] = np.nan
    return x[usable], y[usable]


def _line(series: Series, x: NDArray[np.float64], y: NDArray[np.float64], horizontal: Axis, vertical: Axis) -> Html:
    """The path of one series, broken at gaps, with its dots."""
    pieces, dots = [], []
    gaps = np.flatnonzero(~np.isfinite(y))
    for part in np.split(np.arange(len(x)), gaps):
        part = part[np.isfinite(y[part])]
        if part.size == 0:
            continue
        px, py = (a.place(v) for a, v in zip((horizontal, vertical), thin(x[part], y[part])))
        points = [f"{a:g} {b:g}" for a, b in zip(px, py)]
        if series.style == "area":
            floor = vertical.place(max(vertical.low, 0.0))
            points = [f"{px[0]:g} {floor:g}", *points, f"{px[-1]:g} {floor:g}"]
        pieces.append("M" + "L".join(points))
        if series.dots or len(part) == 1:
            dots += [tag("circle", cx=f"{a:g}", cy=f"{b:g}", r=2.6) for a, b in zip(px, py)]
    return tag("g", tag("path", d="".join(pieces)), *dots, class_=f"series {series.style}")


def _frame(horizontal: Axis, vertical: Axis, x_label: str) -> Html:
    """Grid lines, tick texts and the name of the x axis."""
    parts = []
    for tick, text in zip(vertical.ticks, vertical.labels()):
        y = f"{vertical.place(tick):g}"
        parts += [tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="rule")]
        parts += [tag("text", text, x=LEFT - 8, y=y, class_="tick y")]
    for tick, text in zip(horizontal.ticks, horizontal.labels()):
        parts += [tag("text", text, x=f"{horizontal.place(tick):g}", y=BOTTOM + 18, class_="tick x")]
    parts += [tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="base")]
    parts += [tag("text", x_label, x=RIGHT, y=HEIGHT - 6, class_="axis")]
    return tag("g", *parts, aria_hidden="true")


def _rug(chart: LineChart, horizontal: Axis) -> Html:
    places = np.asarray(chart.rug, dtype=np.float64)
    inside = places[np.isfinite(places) & (places >= horizontal.low) & (places <= horizontal.high)]
    strokes = "".join(f"M{p:g} {BOTTOM}v-7" for p in np.unique(horizontal.place(inside)))
    return tag("path", d=strokes, class_="rug") if strokes else Html("")


def _mark(x: float, text: str, horizontal: Axis) -> Html:
    """A vertical line whose text shows under the pointer; nothing outside the axis."""
    if not horizontal.low <= x <= horizontal.high:
        return Html("")
    place = f"{horizontal.place(x):g}"
    return tag("line", tag("title", text), x1=place, x2=place, y1=TOP, y2=BOTTOM, class_="mark")


def _legend(drawn: Drawn) -> Html:
    listed = [series for series, _, _ in drawn if series.listed]
    if len(listed) < 2:
        return Html("")
    return tag("ul", *[tag("li", series.name, class_=f"key {series.style}") for series in listed], class_="legend")


def _summary(drawn: Drawn) -> str:
    """What a reader who cannot see the lines should know: each line's first, last and least value."""
    sentences = []
    for series, _, y in drawn:
        if series.listed:
            seen = y[np.isfinite(y)]
            sentences.append(
                f"{series.name}: from {figure(seen[0])} to {figure(seen[-1])}, least {figure(seen.min())}."
            )
    return " ".join(sentences)


def _pointer_data(chart: LineChart, drawn: Drawn, horizontal: Axis) -> str:
    """The numbers that the page's script shows beside the pointer."""
    rows = []
    for series, x, y in drawn:
        if series.listed:
            seen = np.isfinite(y)
            px, py = thin(x[seen], y[seen])
            rows.append({"name": series.name, "x": _short(px), "y": _short(py)})
    ends = {"low": horizontal.low, "high": horizontal.high, "log": horizontal.log, "left": LEFT, "right": RIGHT}
    return json.dumps({**ends, "width": WIDTH, "label": chart.x_label, "series": rows}, separators=(",", ":"))


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
