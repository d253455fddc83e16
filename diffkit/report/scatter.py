"""Points in the plane over a density, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import Density
from .markup import Html, tag
from .pictures import data_uri, density_layer
from .ticks import Axis, axis

SIDE, EDGE = 400, 34
LIMIT = 4000  # points drawn

Extent = tuple[float, float, float, float]


def extent_of(clouds: Sequence[NDArray[Any]], density: Density | None = None) -> Extent:
    """Return (x_min, x_max, y_min, y_max) of a square around the density, else around the middle 99.5 % of the
    points.
    """
    if density is not None:
        low, high = np.array([density.x_min, density.y_min]), np.array([density.x_max, density.y_max])
        half = float((high - low).max()) / 2
    else:
        points = np.concatenate([np.asarray(cloud, dtype=np.float64)[:, :2] for cloud in clouds])
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) == 0:
            return -1.0, 1.0, -1.0, 1.0
        low, high = np.quantile(points, 0.0025, axis=0), np.quantile(points, 0.9975, axis=0)
        half = float((high - low).max()) * 0.55
    x, y = (float(value) for value in (low + high) / 2)
    half = max(half, 1e-6)
    return x - half, x + half, y - half, y + half


def outside(points: NDArray[Any], extent: Extent) -> int:
    """Return the number of points that lie outside `extent`."""
    return int(len(points) - _inside(np.asarray(points, dtype=np.float64), extent).sum())


def scatter(
    points: NDArray[Any], extent: Extent, label: str, density: Density | None = None, *, ticks: bool = True
) -> Html:
    """Draw points over a density.

    Args:
        points: (N, D), D >= 2; the first two coordinates are drawn.
        extent: (x_min, x_max, y_min, y_max) of the picture.
        label: Text alternative.
        density: Drawn behind the points; default none.
        ticks: Draw tick labels; default True.

    Returns:
        The SVG.
    """
    edge = EDGE if ticks else 0
    x_axis = axis(extent[0], extent[1], edge, SIDE)
    y_axis = axis(extent[2], extent[3], SIDE - edge, 0)
    cloud = np.asarray(points, dtype=np.float64)
    cloud = cloud[_inside(cloud, extent)][:LIMIT]
    dots = "".join(f"M{a:g} {b:g}h0" for a, b in zip(x_axis.place(cloud[:, 0]), y_axis.place(cloud[:, 1])))
    parts: list[Html] = []
    if density is not None:
        parts.append(_layer(density, x_axis, y_axis))
    parts.append(tag("rect", x=edge, y=0, width=SIDE - edge, height=SIDE - edge, class_="box"))
    if ticks:
        for tick, text in zip(x_axis.ticks, x_axis.labels()):
            parts.append(tag("text", text, x=f"{x_axis.place(tick):g}", y=SIDE - edge + 18, class_="tick x"))
        for tick, text in zip(y_axis.ticks, y_axis.labels()):
            parts.append(tag("text", text, x=edge - 6, y=f"{y_axis.place(tick):g}", class_="tick y"))
    size = "few" if len(cloud) <= 400 else "many"
    parts.append(tag("path", d=dots, class_=f"points {size}"))
    return tag("svg", *parts, viewBox=f"0 0 {SIDE} {SIDE}", role="img", aria_label=label, class_="scatter")


def _inside(points: NDArray[np.float64], extent: Extent) -> NDArray[np.bool_]:
    x, y = points[:, 0], points[:, 1]
    return (x >= extent[0]) & (x <= extent[1]) & (y >= extent[2]) & (y <= extent[3])


def _layer(density: Density, x_axis: Axis, y_axis: Axis) -> Html:
    left, right = (float(place) for place in x_axis.place([density.x_min, density.x_max]))
    bottom, top = (float(place) for place in y_axis.place([density.y_min, density.y_max]))
    where = {"x": left, "y": top, "width": round(right - left, 1), "height": round(bottom - top, 1)}
    return tag("image", href=data_uri(density_layer(density.values)), preserveAspectRatio="none", **where)
