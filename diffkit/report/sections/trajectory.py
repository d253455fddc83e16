"""The denoising trajectory: the state x and the estimate of x0 at a few levels from noise to data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..inputs import Array, Density, ReportInputs, is_images
from ..markup import Html, tag
from ..page import Section, card
from ..pictures import data_uri, strip
from ..scatter import extent_of, scatter

COLUMNS, ROWS = 12, 3


def section(inputs: ReportInputs) -> Section | None:
    """Strips with time from left to right; None without a trajectory."""
    path = inputs.trajectory
    if path is None or path.x.ndim < 3 or path.x.shape[0] == 0 or path.x.shape[1] == 0:
        return None
    if not is_images(path.x) and path.x.shape[-1] < 2:
        return None
    chosen = sorted({round(k) for k in np.linspace(0, len(path.x) - 1, COLUMNS)})
    labels = [str(path.labels[k]) if k < len(path.labels) else "" for k in chosen]
    figures = [
        _figure(
            path.x[chosen],
            labels,
            inputs.density,
            "x",
            "State x",
            "What the sampler holds: noise at first, data at last.",
        )
    ]
    if path.x0 is not None and path.x0.shape[:1] == path.x.shape[:1]:
        told = "What the model takes the clean data to be, seen from that x: blurred at first, sharper as noise goes."
        figures.append(_figure(path.x0[chosen], labels, inputs.density, "x0", "Estimate of x₀", told))
    lead = "The same few samples on their way from noise (left) to data (right)."
    return Section("trajectory", "Denoising trajectory", tag("div", *figures, class_="stack"), lead)


def _figure(
    moments: Array, labels: Sequence[str], density: Density | None, kind: str, title: str, caption: str
) -> Html:
    if is_images(moments) and moments.ndim == 5:
        picture = strip(moments[:, :ROWS], tile=80)
        height, width = picture.shape[:2]
        alt = f"{title} at {len(moments)} levels from noise on the left to data on the right"
        shown = tag("img", src=data_uri(picture), alt=alt, width=width, height=height)
        ticks = tag("ol", *[tag("li", label) for label in labels], class_="ticks") if any(labels) else None
        return card(tag("div", shown, ticks, class_="strip"), title=title, caption=caption, wide=True)
    points = np.asarray(moments, dtype=np.float64).reshape(*moments.shape[:2], -1)
    extent = extent_of([points[-1]], density)
    panels = [
        tag(
            "li",
            tag("span", label),
            scatter(cloud, extent, f"{title} {label}: {len(cloud)} points", density, ticks=False),
        )
        for cloud, label in zip(points, labels)
    ]
    return card(tag("ol", *panels, class_="moments"), title=title, caption=caption, wide=True)
