"""Axes, line charts and scatter plots."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import assume, example, given, strategies as st

from diffkit.report import Density
from diffkit.report.charts import LIMIT, LineChart, Series, line_chart, smooth, spans_decades, thin
from diffkit.report.scatter import extent_of, outside, scatter
from diffkit.report.ticks import axis, nice_step, tick_label

NUMBERS = st.floats(-1e12, 1e12)


@given(low=NUMBERS, high=NUMBERS, widen=st.booleans())
def test_linear_ticks_are_few_even_and_inside(low, high, widen):
    low, high = min(low, high), max(low, high)
    found = axis(low, high, 0, 100, widen=widen)
    assert found.low < found.high
    assert 2 <= len(found.ticks) <= 9
    slack = 1e-6 * (found.high - found.low)
    assert found.low <= low + slack
    assert found.high >= high - slack
    assert all(found.low - slack <= tick <= found.high + slack for tick in found.ticks)
    assert np.diff(found.ticks) == pytest.approx(found.ticks[1] - found.ticks[0], rel=1e-3)


@given(low=st.floats(1e-12, 1e12), ratio=st.floats(1, 1e12))
def test_log_ticks_are_few_and_the_axis_holds_the_data(low, ratio):
    found = axis(low, low * ratio, 0, 100, log=True)
    assert found.low <= low * (1 + 1e-6)
    assert found.high >= low * ratio * (1 - 1e-6)
    assert 1 <= len(found.ticks) <= 9
    assert found.place([found.low, found.high]).tolist() == [0, 100]


@pytest.mark.parametrize(("rough", "nice"), [(0.9, 1), (1.1, 2), (2.2, 2.5), (3, 5), (7, 10), (0.03, 0.05)])
def test_nice_steps(rough, nice):
    assert nice_step(rough) == pytest.approx(nice)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.25, 0.25, "0.25"),
        (0.5, 0.25, "0.50"),
        (1e-17, 0.25, "0"),
        (1500, 500, "1.5k"),
        (20000, 1e4, "20k"),
        (-5, 5, "−5"),
        (2e6, 1e6, "2e6"),
        (1e-4, math.inf, "1e−4"),
        (0.02, math.inf, "0.02"),
    ],
)
def test_tick_labels(value, step, text):
    assert tick_label(value, step) == text


def test_small_values_share_one_notation_along_an_axis():
    assert axis(0, 1e-3, 0, 1).labels() == ["0", "2.5e−4", "5e−4", "7.5e−4", "1e−3"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
def test_thinning_keeps_ends_and_spikes(values):
    x, y = np.arange(len(values), dtype=float), np.array(values)
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= LIMIT
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])
    assert (thin_y.min(), thin_y.max()) == (y.min(), y.max())
    assert (np.diff(thin_x) > 0).all()


def test_smoothing_keeps_lines_straight_starts_true_and_passes_over_gaps():
    line = np.arange(50.0)
    assert smooth(line, 5)[:45] == pytest.approx(line[:45])
    assert smooth(np.array([3.0, 1.0, 5.0]), 1).tolist() == [3.0, 3.0, 3.0]
    gaps = smooth(np.array([1.0, np.nan, 3.0, np.inf, 5.0]), 2)
    assert gaps[[0, 2, 4]].tolist() == [1.0, 3.0, 4.0]
    assert np.isnan(gaps[[1, 3]]).all()


def test_decades_decide_for_a_log_axis():
    assert spans_decades([0.05, 1.5])
    assert not spans_decades([0.5, 1.5])
    assert not spans_decades([0.0, 1.0])
    assert not spans_decades([np.nan])
    assert spans_decades([1.0, np.nan, 100.0])


def chart(*series: Series, **options) -> str:
    return line_chart(LineChart("what it shows", "step", series, **options))


def test_a_chart_without_points_is_empty():
    assert chart(Series("a", [], [])) == ""
    assert chart(Series("a", [1, 2], [np.nan, np.inf])) == ""
    assert chart(Series("a", [1, 2], [0.0, -1.0]), log_y=True) == ""


def test_lines_run_from_corner_to_corner():
    svg = chart(Series("a", [0, 100], [0, 4]))
    assert 'd="M58 226L466 14"' in svg


def test_gaps_break_the_line_and_lonely_points_are_dots():
    svg = chart(Series("a", [0, 1, 2, 3, 4], [1, 2, np.nan, 3, np.nan]))
    path = re.search(r'<g class="series main"><path d="([^"]+)"', svg)
    assert path is not None
    assert path[1].count("M") == 2
    assert svg.count("<circle") == 1


def test_text_alternative_legend_and_values_name_every_listed_line():
    svg = chart(
        Series("a", [1, 2], [3, 1]), Series("b", [1, 2], [5, 6], "second"), Series("c", [1], [2], "faint", listed=False)
    )
    assert 'aria-label="what it shows. a: 3.00 to 1.00, minimum 1.00. b: 5.00 to 6.00, minimum 5.00."' in svg
    assert svg.count("<li ") == 2
    data = json.loads(re.search(r'data-plot="([^"]+)"', svg)[1].replace("&quot;", '"'))
    assert [line["name"] for line in data["series"]] == ["a", "b"]
    assert data["series"][1] == {"name": "b", "x": [1, 2], "y": [5, 6]}


def test_a_single_line_needs_no_legend():
    assert "<ul" not in chart(Series("a", [1, 2], [3, 1]))


def test_marks_and_rug_stay_inside():
    svg = chart(Series("a", [0, 10], [0, 1]), marks=[(5, "half"), (50, "beyond")], rug=[0, 10, 99, np.nan])
    assert "half" in svg
    assert "beyond" not in svg
    assert re.search(r'<path d="([^"]+)" class="rug"', svg)[1] == "M58 226v-7M466 226v-7"


def test_dots_mark_every_point_where_asked():
    assert chart(Series("a", [1, 2, 3], [3, 1, 2], dots=True)).count("<circle") == 3


@pytest.mark.parametrize("options", [{"log_y": True}, {"log_x": True}, {"log_x": True, "log_y": True}])
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=8))
@example(values=[5e-324])
def test_any_numbers_draw_without_a_fault(options, values):
    svg = chart(Series("a", range(len(values)), values), **options)
    assert "nan" not in svg.lower().replace("pointer", "")
    assert "inf" not in svg.lower()


def test_scatter_places_points_with_y_up():
    density = Density(np.eye(4), -1, 1, -1, 1)
    extent = extent_of([], density)
    svg = scatter(np.array([[-1.0, -1.0], [1.0, 1.0], [5.0, 0.0]]), extent, "label", density)
    assert 'd="M34 366h0M400 0h0"' in svg
    assert '<image href="data:image/png;base64,' in svg
    assert 'x="34.0" y="0.0" width="366.0" height="366.0"' in svg
    assert outside(np.array([[5.0, 0.0], [0.0, 0.0]]), extent) == 1
    assert "<text" not in scatter(np.zeros((1, 2)), extent, "label", ticks=False)


def test_a_density_that_is_no_square_keeps_its_proportions():
    density = Density(np.ones((2, 4)), -2, 2, -1, 1)
    extent = extent_of([], density)
    assert extent == (-2, 2, -2, 2)
    assert 'width="366.0" height="183.0"' in scatter(np.zeros((1, 2)), extent, "label", density)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=50))
def test_without_a_density_the_extent_is_a_square_around_the_points(points):
    cloud = np.array(points)
    assume(np.isfinite(cloud).all())
    x_min, x_max, y_min, y_max = extent_of([cloud])
    assert x_max - x_min == pytest.approx(y_max - y_min, rel=1e-6, abs=1e-6)
    assert x_max > x_min
    assert outside(np.median(cloud, axis=0)[None], (x_min, x_max, y_min, y_max)) == 0


def test_points_that_are_not_finite_are_counted_as_outside():
    extent = extent_of([np.array([[np.nan, 0.0], [np.inf, 1.0]])])
    assert extent == (-1, 1, -1, 1)
    assert outside(np.array([[np.nan, 0.0], [0.0, 0.0]]), extent) == 1
