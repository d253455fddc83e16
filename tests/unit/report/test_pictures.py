"""Grids of images, strips, densities and the PNG files made of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from diffkit.report import pictures


def test_a_float_tensor_maps_minus_one_to_one_onto_all_256_values_and_clips():
    x = torch.tensor([[[[-1.0, 0.0]], [[1.0, 3.0]], [[-9.0, float("nan")]]]])
    assert pictures.as_images(x).tolist() == [[[[0, 255, 0], [128, 255, 128]]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_type_of_a_tensor_is_read(dtype):
    assert pictures.as_images(torch.ones(2, 1, 3, 4, dtype=dtype)).shape == (2, 3, 4, 1)


def test_uint8_passes_unchanged_and_arrays_keep_channels_last():
    values = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert (pictures.as_images(values) == values).all()
    assert (pictures.as_images(torch.from_numpy(values).permute(0, 3, 1, 2)) == values).all()
    assert pictures.as_images(values[..., 0]).shape == (2, 2, 2, 1)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2, 0), np.uint8), np.zeros((1, 2, 2, 1))]
)
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        pictures.as_images(wrong)


def test_small_images_are_enlarged_by_whole_factors_without_blur():
    digit = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    grid = pictures.image_grid(digit, background=0)
    assert grid.shape == (56, 56, 1)
    assert (grid[::7, ::7] == digit[0]).all()
    assert set(np.unique(grid)) == set(np.unique(digit))


@pytest.mark.parametrize(("size", "factor"), [(8, 7), (28, 2), (32, 2), (56, 1), (256, 1)])
def test_magnification(size, factor):
    assert pictures.magnification(size, size) == factor


@given(
    count=st.integers(1, 13), columns=st.integers(1, 15), channels=st.sampled_from([1, 2, 3, 5]), gap=st.integers(0, 3)
)
def test_every_image_stands_in_its_cell_and_the_rest_is_background(count, columns, channels, gap):
    images = (
        np.full((count, 2, 3, channels), 200, dtype=np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    )
    grid = pictures.image_grid(images, columns, tile=3, gap=gap, background=9)
    used = min(columns, count)
    rows = -(-count // used)
    assert grid.shape == (rows * (2 + gap) - gap, used * (3 + gap) - gap, 3 if channels >= 3 else 1)
    for k in range(count):
        top, left = k // used * (2 + gap), k % used * (3 + gap)
        assert (grid[top : top + 2, left : left + 3] == 200 + k).all()
    assert (grid == 9).sum() == grid.size - count * 6 * grid.shape[-1]


def test_gaps_are_transparent_unless_a_background_is_given():
    grid = pictures.image_grid(np.zeros((3, 8, 8, 3), np.uint8), 2)
    assert grid.shape[-1] == 4
    assert grid[0, 0, 3] == 255
    assert grid[0, 57, 3] == 0, "the gap"
    assert grid[-1, -1, 3] == 0, "the empty cell"


def test_no_images_make_no_picture():
    with pytest.raises(ValueError, match="at least one"):
        pictures.image_grid(np.zeros((0, 8, 8, 1), np.uint8))


def test_a_strip_has_a_row_for_each_example_and_a_column_for_each_moment():
    moments = np.zeros((3, 2, 1, 1, 1), np.uint8)
    moments[:, :, 0, 0, 0] = [[1, 4], [2, 5], [3, 6]]
    assert pictures.strip(moments, tile=1, gap=0, background=0)[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match="K, B, H, W, C"):
        pictures.strip(moments[0])


def test_large_images_are_limited_by_a_budget_of_pixels():
    assert pictures.affordable(np.zeros((64, 8, 8, 1), np.uint8)) == 64
    assert pictures.affordable(np.zeros((64, 256, 256, 3), np.uint8)) == 24
    assert pictures.affordable(np.zeros((4, 3000, 3000, 1), np.uint8)) == 1


def test_density_turns_row_zero_down_and_opacity_grows_with_it():
    layer = pictures.density_layer(np.array([[1.0, 0.25], [0.0, np.nan]]))
    assert layer[..., 3].tolist() == [[0, 0], [200, 100]]
    assert (pictures.density_layer(np.zeros((2, 2)))[..., 3] == 0).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_holds_the_very_pixels(channels, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(pictures.png(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        assert (np.asarray(image).reshape(pixels.shape) == pixels).all()
    kind, _, content = pictures.data_uri(pixels).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == pictures.png(pixels)


def test_a_plot_has_a_line_for_each_channel_at_the_height_of_its_values():
    """The values 1.25 and -1.25 lie at the edges; nan lies at 0, and one huge value does not change the span."""
    x = torch.zeros(3, 2, 50)
    x[0, 0], x[0, 1], x[1, 0], x[1, 1], x[2, 1, 0] = 1.25, -1.25, 0.625, float("nan"), 1e20
    plots = pictures.plots(x)
    assert plots.shape == (3, 64, 96, 3)

    def row(plot: int, colour: str) -> float:
        ink = np.abs(plots[plot, :, 48].astype(int) - np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])).sum(-1)
        return float(np.flatnonzero(ink == ink.min()).mean())

    first, second = pictures.LINES[:2]
    assert row(0, first) < 3
    assert row(0, second) > 60
    assert 15 < row(1, first) < 18
    assert 30 < row(1, second) < 33
    assert (plots[2, :30, 4:] == 255).all()  # the one huge value changes neither the span nor the other columns


@pytest.mark.parametrize(("data", "samples"), [(1.0, 1.2), (1.0, 0.4), (3.0, 4.0), (3.0, 1.5)])
def test_samples_that_are_off_have_the_span_of_the_data(data, samples):
    """An overshoot by a fifth, and samples of less than half the size, are seen as such."""

    def top(largest: float, size: float) -> int:
        x = torch.linspace(-largest, largest, 50)[None, None]
        x[0, 0, 20:30] = size
        return int(np.flatnonzero((pictures.plots(x)[0, :, 48] < 200).any(-1))[0])

    assert abs(top(samples, 0.3) - top(data, 0.3)) <= 1


@pytest.mark.parametrize(("depth", "rows", "columns", "first", "last"), [(5, 2, 3, 0, 4), (40, 4, 4, 0, 39)])
def test_slices_of_a_volume_lie_in_order(depth, rows, columns, first, last):
    x = torch.arange(depth).float()[None, None, :, None, None].expand(2, 1, depth, 3, 2)
    laid = pictures.slices(x)
    assert laid.shape == (2, 1, rows * 3, columns * 2)
    values = [int(laid[1, 0, 3 * (k // columns), 2 * (k % columns)]) for k in range(rows * columns)]
    shown = min(depth, pictures.MAX_SLICES)
    assert values[0] == first
    assert values[shown - 1] == last
    assert values[:shown] == sorted(values[:shown])
    assert values[shown:] == [0] * (rows * columns - shown)
