"""Points in the plane over a density, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import Density
from .markup import Html, tag
from .pictures import data_uri, density_layer
from .ticks import axis

SIDE, EDGE = 400, 34
LIMIT = 4000  # points drawn

Extent = tuple[float, float, float, float]


def extent_of(clouds: Sequence[NDArray[Any]], density: Density | None = None) -> Extent:
    """(x_min, x_max, y_min, y_max): that of the density, else of the middle 99.5 % of all points with a margin."""
    if density is not None:
        return density.x_min, density.x_max, density.y_min, density.y_max
    points = np.concatenate([np.asarray(cloud, dtype=np.float64)[:, :2] for cloud in clouds])
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return -1.0, 1.0, -1.0, 1.0
    low, high = np.quantile(points, 0.0025, axis=0), np.quantile(points, 0.9975, axis=0)
    middle, half = (low + high) / 2, max(float((high - low).max()) * 0.55, 1e-6)
    return (
        *(float(v) for v in (middle[0] - half, middle[0] + half)),
        *(float(v) for v in (middle[1] - half, middle[1] + half)),
    )


def outside(points: NDArray[Any], extent: Extent) -> int:
    """How many points a picture of `extent` cannot show."""
    return int(len(points) - _inside(np.asarray(points, dtype=np.float64), extent).sum())


def scatter(
    points: NDArray[Any], extent: Extent, label: str, density: Density | None = None, *, ticks: bool = True
) -> Html:
    """Points (N, 2 or more; the first two coordinates count) over the density; `label` is the text alternative."""
    edge = EDGE if ticks else 0
    x_axis = axis(extent[0], extent[1], edge, SIDE)
    y_axis = axis(extent[2], extent[3], SIDE - edge, 0)
    cloud = np.asarray(points, dtype=np.float64)
    cloud = cloud[_inside(cloud, extent)][:LIMIT]
    dots = "".join(f"M{a:g} {b:g}h0" for a, b in zip(x_axis.place(cloud[:, 0]), y_axis.place(cloud[:, 1])))
    parts: list[Html] = []
    if density is not None:
        parts.append(_layer(density, edge))
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


def _layer(density: Density, edge: int) -> Html:
    side = SIDE - edge
    address = data_uri(density_layer(density.values))
    return tag("image", href=address, x=edge, y=0, width=side, height=side, preserveAspectRatio="none")
