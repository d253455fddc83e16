"""Nearest neighbours: samples beside the training examples nearest to them."""

from __future__ import annotations

import numpy as np

from ..inputs import ReportInputs, is_images
from ..markup import tag
from ..page import Section
from ..pictures import affordable, as_images, data_uri, image_grid
from ..wording import figure

SHOWN = 24


def section(inputs: ReportInputs) -> Section | None:
    """Return pairs of images, the sample above its nearest training example; None if there are none, or for vectors."""
    found = inputs.neighbours
    if found is None or len(found.samples) == 0 or not (is_images(found.samples) and is_images(found.nearest)):
        return None
    made, real = as_images(found.samples), as_images(found.nearest)
    total = min(len(made), len(real), SHOWN, affordable(made))
    distances = None if found.distances is None else np.asarray(found.distances, dtype=np.float64).reshape(-1)
    pairs = []
    for k in range(total):
        distance = figure(distances[k]) if distances is not None and k < len(distances) else ""
        picture = image_grid(np.stack([made[k], real[k]]), 1, tile=80, gap=4)
        alt = f"Sample {k + 1} above the training example nearest to it" + (
            f", distance {distance}" if distance else ""
        )
        height, width = picture.shape[:2]
        shown = tag("img", src=data_uri(picture), alt=alt, width=width, height=height)
        pairs.append(tag("li", shown, tag("span", distance) if distance else None))
    lead = (
        "Each sample above the training example nearest to it. Equal pairs mean that the model "
        "memorised; pairs that are similar but differ are expected of a model of the distribution."
    )
    values = "values" if inputs.depicted else "pixels scaled to 0..1"
    measured = (
        f"The number is the root mean square difference of {values}, the unit of the metrics."
        if distances is not None
        else None
    )
    body = tag(
        "figure",
        tag("ul", *pairs, class_="pairs"),
        tag("figcaption", "Upper: sample. Lower: nearest training example. ", measured),
        class_="card",
    )
    return Section("neighbours", "Nearest neighbours", body, lead)
