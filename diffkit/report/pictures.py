"""Pictures: grids of images as PNG, line plots of series and slices of volumes, which are images then. Small images are
enlarged with nearest neighbours, so that 8 x 8 digits show.

Images are uint8 (N, H, W, C): C = 1 is grey, C >= 3 shows the first three channels as RGB, C = 2 the first as grey.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

Pixels = NDArray[np.uint8]
TILE = 56  # pixels that an enlarged image should at least span
BUDGET = 1_600_000  # pixels of one picture; more images than fit are left out
PLOT = (64, 96)  # height and width of the plot of a series
FINER = 4  # a plot is drawn 4 times as large, then averaged
LINES = ("#3d56c9", "#c2571a", "#2e8540", "#8b3fa8", "#5a636e")  # of the channels, in turn
SPAN, MAX_BOUND = 1.25, 1e30
MAX_SLICES = 16


def as_images(x: Any) -> Pixels:
    """Convert a tensor or array to images, uint8 (N, H, W, C).

    A torch tensor is (N, C, H, W), uint8 or float in [-1, 1] (clipped; nan becomes 0); a numpy array is uint8
    (N, H, W) or (N, H, W, C) and kept. Raises ValueError for any other type or number of axes.
    """
    tensor = hasattr(x, "detach")
    if tensor:
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    array = np.asarray(x)
    if array.ndim == 4 and tensor:
        array = np.moveaxis(array, 1, -1)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] == 0:
        raise ValueError(f"expected images (N, C, H, W) or (N, H, W, C), got shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if not (tensor and np.issubdtype(array.dtype, np.floating)):
        raise ValueError(f"expected uint8, or a float tensor in [-1, 1], got {array.dtype}")
    return np.rint((np.nan_to_num(array.astype(np.float64), nan=0.0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def plots(x: Any) -> Pixels:
    """Draw series (N, C, L), a tensor, as line plots with a grey line at 0: uint8 (N, 64, 96, 3).

    Each channel is a line. All plots span -b to b, where b is the first of ..., 0.31, 1.25, 5, 20, ... that holds 99
    percent of the values, so that samples and data in -1..1, or with a standard deviation of 1, have the same b. Other
    values lie at the edges, and nan at 0.
    """
    height, width = (FINER * side for side in PLOT)
    values = np.nan_to_num(x.detach().cpu().double().numpy(), nan=0.0)
    most = np.quantile(np.abs(values), 0.99) if values.size else 0.0
    bound = SPAN * 4.0 ** math.ceil(math.log(most / SPAN, 4)) if 0 < most < MAX_BOUND else SPAN
    rows = (1 - values.clip(-bound, bound) / bound) / 2 * (height - 2 * FINER) + FINER
    columns = np.linspace(FINER, width - FINER, values.shape[2])
    made = np.empty((len(values), *PLOT, 3), dtype=np.uint8)
    for picture, series in zip(made, rows, strict=True):
        canvas = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(canvas)
        draw.line([(0, height // 2), (width, height // 2)], fill="#d5d7da", width=FINER)
        for k, line in enumerate(series):
            colour = LINES[k % len(LINES)]
            draw.line(list(zip(columns, line, strict=True)), fill=colour, width=FINER + 1, joint="curve")
        picture[:] = np.asarray(canvas.reduce(FINER))
    return made


def slices(x: Any) -> Any:
    """Lay slices of volumes side by side, about square: at most 16, evenly spaced, the first one at the upper left.

    Args:
        x: Tensor (N, C, D, H, W).

    Returns:
        Images, (N, C, rows * H, columns * W); cells that are left over hold the smallest value of x.
    """
    chosen = x[:, :, np.unique(np.linspace(0, x.shape[2] - 1, min(MAX_SLICES, x.shape[2])).round().astype(int))]
    count, (high, wide) = chosen.shape[2], chosen.shape[3:]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    made = x.new_full((*x.shape[:2], rows * high, columns * wide), float(x.min()) if x.numel() else 0)
    for k in range(count):
        top, left = k // columns * high, k % columns * wide
        made[:, :, top : top + high, left : left + wide] = chosen[:, :, k]
    return made


def magnification(height: int, width: int, tile: int = TILE) -> int:
    """Return the smallest integer factor by which an image spans `tile` pixels.

    Args:
        height: Pixels.
        width: Pixels.
        tile: Pixels that the larger side spans at least; default 56.

    Returns:
        The factor, at least 1.
    """
    return max(1, math.ceil(tile / max(height, width, 1)))


def affordable(images: Pixels, tile: int = TILE, budget: int = BUDGET) -> int:
    """Return the number of images that fit into one picture.

    Args:
        images: uint8 (N, H, W, C).
        tile: Pixels that an image spans at least; default 56.
        budget: Largest number of pixels of the picture.

    Returns:
        A number from 1 to N.
    """
    _, height, width, _ = images.shape
    cost = height * width * magnification(height, width, tile) ** 2
    return int(max(1, min(len(images), budget // max(1, cost))))


def image_grid(
    images: Any, columns: int | None = None, *, tile: int = TILE, gap: int = 4, background: int | None = None
) -> Pixels:
    """Draw images in rows, with gaps between them.

    Args:
        images: As `as_images` takes them.
        columns: Images in a row; default about square.
        tile: Pixels that an image spans at least; small ones are enlarged.
        gap: Pixels between images.
        background: Grey value of gaps and empty cells; None makes them transparent.

    Returns:
        uint8 (H, W, C); C = 1 or 3, and one more for a transparent background.

    Raises:
        ValueError: There is no image.
    """
    array = as_images(images)
    if array.size == 0:
        raise ValueError("a picture needs at least one image")
    total, height, width, channels = array.shape
    array = array[..., :3] if channels >= 3 else array[..., :1]
    factor = magnification(height, width, tile)
    array = array.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = max(1, min(total, columns if columns is not None else math.ceil(math.sqrt(total))))
    rows = math.ceil(total / columns)
    high, wide, depth = array.shape[1:]
    size = (rows * (high + gap) - gap, columns * (wide + gap) - gap, depth + (background is None))
    picture = np.full(size, 0 if background is None else background, dtype=np.uint8)
    for k in range(total):
        top, left = (k // columns) * (high + gap), (k % columns) * (wide + gap)
        picture[top : top + high, left : left + wide, :depth] = array[k]
        picture[top : top + high, left : left + wide, depth:] = 255
    return picture


def strip(images: Any, *, tile: int = TILE, gap: int = 4, background: int | None = None) -> Pixels:
    """Draw a strip: one row for each of B examples, one column for each of K moments.

    Args:
        images: uint8 (K, B, H, W, C).
        tile: As `image_grid`.
        gap: As `image_grid`.
        background: As `image_grid`.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: `images` has another number of axes.
    """
    array = np.asarray(images)
    if array.ndim != 5:
        raise ValueError(f"expected images (K, B, H, W, C), got shape {array.shape}")
    moments = array.shape[0]
    rows = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
    return image_grid(rows, moments, tile=tile, gap=gap, background=background)


def density_layer(values: NDArray[Any], colour: tuple[int, int, int] = (86, 114, 224)) -> Pixels:
    """Convert a density (rows, columns), row 0 lowest, to an RGBA image whose opacity is the square root of the
    density.
    """
    finite = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    peak = finite.max(initial=0.0)
    layer = np.empty((*finite.shape, 4), dtype=np.uint8)
    layer[..., :3] = colour
    layer[..., 3] = np.rint(200 * np.sqrt(finite / peak if peak > 0 else finite)).astype(np.uint8)
    return layer[::-1]


def png(picture: NDArray[np.uint8], texts: Mapping[str, str] | None = None) -> bytes:
    """Encode uint8 (H, W, C) as a PNG file with `texts` by name; C = 1 is grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    pixels = np.ascontiguousarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    stream = io.BytesIO()
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    Image.fromarray(pixels).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return the PNG as a data: address, for use inside a page."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")
