"""The denoising trajectory: the state x and the estimate of x0 at a few levels from noise to data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..inputs import Array, Density, ReportInputs, is_images
from ..markup import Html, tag
from ..page import Section, card
from ..pictures import data_uri, strip
from ..scatter import extent_of, scatter

COLUMNS, PANELS, ROWS = 12, 6, 3
SATURATED = 0.5  # share of black and white pixels from which the text explains them


def section(inputs: ReportInputs) -> Section | None:
    """Return strips of images with time from left to right; None without a trajectory."""
    path = inputs.trajectory
    if path is None or path.x.ndim < 3 or path.x.shape[0] == 0 or path.x.shape[1] == 0:
        return None
    if not is_images(path.x) and path.x.shape[-1] < 2:
        return None
    chosen = sorted({round(k) for k in np.linspace(0, len(path.x) - 1, COLUMNS if is_images(path.x) else PANELS)})
    labels = [str(path.labels[k]) if k < len(path.labels) else "" for k in chosen]
    rows = [("State x", path.x, "The state of the sampler at a few times, from noise to data.")]
    if path.x0 is not None and path.x0.shape == path.x.shape:
        rows.append(("Estimate of x₀", path.x0, _about_estimate(path.x0)))
    draw = _strip if is_images(path.x) else _panels
    figures = [card(draw(x[chosen], labels, title, inputs.density), title=title, caption=c) for title, x, c in rows]
    lead = "A few samples at several times between noise and data."
    return Section("trajectory", "Denoising trajectory", tag("div", *figures, class_="stack"), lead)


def _about_estimate(x0: Array) -> str:
    """Describe the estimates, and why the first ones of images are mostly black and white, if they are."""
    text = "The clean data that the model estimates from x at this time."
    if not is_images(x0):
        return f"{text} At the noisiest times x contains almost nothing of the data, so these estimates are guesses."
    first, last = (float(np.isin(frame, (0, 255)).mean()) for frame in (x0[0], x0[-1]))
    if first < max(SATURATED, 1.1 * last):
        return text
    return (
        f"{text} In the first picture {100 * first:.0f} % of the pixels are fully black or white: so close to pure "
        "noise a small error of the network is a large error of x₀, and values beyond the range of pixels are cut off."
    )


def _strip(moments: Array, labels: Sequence[str], title: str, _: Density | None) -> Html:
    """Draw a strip: one row for each sample, one column for each level."""
    picture = strip(moments[:, :ROWS], tile=80)
    height, width = picture.shape[:2]
    alt = f"{title} at {len(moments)} levels from noise on the left to data on the right"
    shown = tag("img", src=data_uri(picture), alt=alt, width=width, height=height)
    ticks = tag("ol", *[tag("li", label) for label in labels], class_="ticks") if any(labels) else None
    return tag("div", shown, ticks, class_="strip")


def _panels(moments: Array, labels: Sequence[str], title: str, density: Density | None) -> Html:
    """Draw one small scatter plot for each level."""
    clouds = np.asarray(moments, dtype=np.float64).reshape(*moments.shape[:2], -1)
    extent = extent_of([clouds[-1]], density)
    panels = []
    for cloud, label in zip(clouds, labels):
        drawn = scatter(cloud, extent, f"{title} {label}: {len(cloud)} points", density, ticks=False)
        panels.append(tag("li", tag("span", label), drawn))
    return tag("ol", *panels, class_="moments")
