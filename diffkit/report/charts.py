"""Line charts as inline SVG: coloured by the page's variables, readable on a phone, with values under the pointer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .markup import Html, tag
from .ticks import Axis, axis
from .wording import figure

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 14, 226
LIMIT = 360  # points drawn for one series
_HUGE = 1e300
_TINY = float(np.finfo(np.float64).tiny)  # below, powers of ten lose their digits
Style = Literal["main", "second", "third", "faint"]
Numbers = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One line: x and y of equal length; points that are not finite (or not positive on a log axis) are gaps.

    `style`: "main" (accent), "second" (dashed ink), "third" (dotted), "faint" (behind).
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
    """Series over common axes. `label` describes the picture in words; `marks` are (x, text) vertical lines;
    `rug` are places on the x axis that get a small stroke."""

    label: str
    x_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[tuple[float, str]] = ()
    rug: Numbers = ()


def spans_decades(values: Numbers, decades: float = 1.3) -> bool:
    """Return whether all finite values are positive and the largest is at least 10^decades times the smallest."""
    finite = _finite(np.asarray(values, dtype=np.float64))
    return bool(finite.size) and bool(finite.min() > 0) and bool(finite.max() / finite.min() >= 10**decades)


def thin(x: NDArray[np.float64], y: NDArray[np.float64], limit: int = LIMIT) -> tuple[NDArray[np.float64], ...]:
    """Thin a line: keep the lowest and the highest point of each of limit / 2 parts, so that spikes stay.

    Args:
        x: (N,).
        y: (N,).
        limit: Largest number of points; default 360.

    Returns:
        x and y of the points that are kept.
    """
    if len(x) <= limit:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), (limit - 2) // 2):
        keep |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def smooth(y: NDArray[np.float64], half: int) -> NDArray[np.float64]:
    """Smooth a line by the mean over up to `half` points on each side; near the start over equally many on both sides.

    Points that are not finite are left out of the means and stay nan.
    """
    known = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    number = np.concatenate([[0], np.cumsum(known)])
    place = np.arange(len(y))
    reach = np.minimum(half, place)
    low, high = place - reach, np.minimum(place + reach + 1, len(y))
    count = np.maximum(number[high] - number[low], 1)
    return np.where(known, (total[high] - total[low]) / count, np.nan)


def line_chart(chart: LineChart) -> Html:
    """Return the chart as a `div.plot` with legend and SVG; empty if no series has a point to draw."""
    drawn = [line for series in chart.series if np.isfinite((line := _clean(series, chart)).y).any()]
    if not drawn:
        return Html("")
    all_x = np.concatenate([line.x[np.isfinite(line.y)] for line in drawn])
    all_y = np.concatenate([line.y[np.isfinite(line.y)] for line in drawn])
    first, last = float(all_x.min()), float(all_x.max())
    if not chart.log_x and 0 < first < 0.1 * last:
        first = 0.0
    horizontal = axis(first, last, LEFT, RIGHT, log=chart.log_x)
    vertical = axis(float(all_y.min()), float(all_y.max()), BOTTOM, TOP, log=chart.log_y, widen=True)
    order = ("faint", "third", "second", "main")
    behind = sorted(drawn, key=lambda line: order.index(line.series.style))
    lines = [_path(line, horizontal, vertical) for line in behind]
    svg = tag(
        "svg",
        _frame(horizontal, vertical, chart.x_label),
        _rug(chart, horizontal),
        *[_mark(x, text, horizontal) for x, text in chart.marks],
        *lines,
        tag("line", class_="cursor", x1=LEFT, x2=LEFT, y1=TOP, y2=BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.label}. {_summary(drawn)}",
    )
    return tag("div", _legend(drawn), svg, class_="plot", data_plot=_pointer_data(chart, drawn, horizontal))


class _Line(NamedTuple):
    """A series whose x are finite; gaps of y are nan."""

    series: Series
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values) & (np.abs(values) < _HUGE)]


def _clean(series: Series, chart: LineChart) -> _Line:
    """Convert x and y to floats: points whose x is not finite are dropped, a y that is not finite becomes nan."""
    x, y = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (series.x, series.y))
    length = min(len(x), len(y))
    x, y = x[:length], y[:length].copy()
    usable = np.isfinite(x) & (np.abs(x) < _HUGE) & ((x > 0) | (not chart.log_x))
    y[~(np.isfinite(y) & (np.abs(y) < _HUGE) & ((y >= _TINY) | (not chart.log_y)))] = np.nan
    return _Line(series, x[usable], y[usable])


def _path(line: _Line, horizontal: Axis, vertical: Axis) -> Html:
    """Return the path of one series, broken at gaps, with its dots."""
    series, x, y = line
    pieces, dots = [], []
    for part in np.split(np.arange(len(x)), np.flatnonzero(~np.isfinite(y))):
        known = part[np.isfinite(y[part])]
        if known.size == 0:
            continue
        places = [along.place(values) for along, values in zip((horizontal, vertical), thin(x[known], y[known]))]
        points = [(f"{a:g}", f"{b:g}") for a, b in zip(*places)]
        pieces.append("M" + "L".join(f"{a} {b}" for a, b in points))
        if series.dots or len(known) == 1:
            dots += [tag("circle", cx=a, cy=b, r=2.6) for a, b in points]
    return tag("g", tag("path", d="".join(pieces)), *dots, class_=f"series {series.style}")


def _frame(horizontal: Axis, vertical: Axis, x_label: str) -> Html:
    """Draw the grid lines, the texts of the ticks, and the name of the x axis."""
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
    """Draw a vertical line whose text appears under the pointer; return nothing if it lies outside the axis."""
    if not horizontal.low <= x <= horizontal.high:
        return Html("")
    place = f"{horizontal.place(x):g}"
    return tag("line", tag("title", text), x1=place, x2=place, y1=TOP, y2=BOTTOM, class_="mark")


def _legend(drawn: Sequence[_Line]) -> Html:
    listed = [series for series, _, _ in drawn if series.listed]
    if len(listed) < 2:
        return Html("")
    return tag("ul", *[tag("li", series.name, class_=f"key {series.style}") for series in listed], class_="legend")


def _summary(drawn: Sequence[_Line]) -> str:
    """Return the first, last and smallest value of each line, for readers who cannot see the picture."""
    sentences = []
    for series, _, y in drawn:
        if series.listed:
            seen = y[np.isfinite(y)]
            sentences.append(f"{series.name}: {figure(seen[0])} to {figure(seen[-1])}, minimum {figure(seen.min())}.")
    return " ".join(sentences)


def _pointer_data(chart: LineChart, drawn: Sequence[_Line], horizontal: Axis) -> str:
    """Return the numbers that the page's script shows beside the pointer."""
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
