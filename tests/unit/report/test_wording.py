"""Numbers as people read them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffkit.report import wording


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, 10**400, [1], 1e301])
def test_only_finite_numbers_count(value):
    assert wording.number(value) is None


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2)])
def test_every_kind_of_number_counts(value):
    assert wording.number(value) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12684, "0.127"),
        (0, "0"),
        (-1.5, "−1.50"),
        (1239.6, "1,240"),
        (0.99999, "1.00"),
        (999.7, "1,000"),
        (3.21e-5, "3.21 × 10⁻⁵"),
        (0.001, "0.00100"),
        (6.1e9, "6.10 × 10⁹"),
        (None, "n/a"),
        (math.nan, "n/a"),
    ],
)
def test_figure(value, text):
    assert wording.figure(value) == text


@given(st.floats(-1e290, 1e290))
def test_figure_says_the_number_to_three_digits(value):
    said = wording.figure(value).replace("−", "-").replace(",", "")
    said = said.replace(" × 10", "e").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    assert float(said) == pytest.approx(value, rel=5.1e-3, abs=1e-300)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (9.44, "9.4 s"),
        (59.4, "59 s"),
        (151.3, "2 min 31 s"),
        (7260, "2 h 1 min"),
        (200_000, "2 d 7 h"),
        (-1, "unknown"),
        ("x", "unknown"),
    ],
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(431_898_624, "412 MiB"), (1023 * 2**20, "1023 MiB"), (2**31, "2 GiB"), (5, "5 B"), (2048, "2 KiB")],
)
def test_memory(size, text):
    assert wording.memory(size) == text


def test_large_count_and_what_is_unknown():
    assert [wording.large(v) for v in (35_746_307, 1200, 12, 2e9)] == ["35.7 M", "1.2 k", "12", "2 G"]
    assert wording.count(1_234_567) == "1,234,567"
    assert {wording.large(None), wording.count("many"), wording.memory(-1)} == {"unknown"}


def test_moments_are_readable_and_other_texts_pass():
    assert wording.moment("2025-01-31T12:00:59+00:00") == "2025-01-31 12:00 UTC"
    assert wording.moment("2025-01-31T12:00:59.5", seconds=True) == "2025-01-31 12:00:59"
    assert wording.moment("yesterday") == "yesterday"
