"""Samples beside real data: grids of images, points over the true density, or histograms of one number."""

from __future__ import annotations

import numpy as np

from ..charts import LineChart, Series, line_chart
from ..inputs import Array, ReportInputs, Snapshot, is_images
from ..markup import Html, join, tag
from ..page import Section, card, cards
from ..pictures import affordable, as_images, data_uri, image_grid
from ..scatter import extent_of, outside, scatter
from ..wording import count

SHOWN, SNAPSHOTS, ROW = 64, 8, 8
MAX_STATED = 64
"""Conditions of samples that a caption lists."""


def section(inputs: ReportInputs) -> Section | None:
    """Return samples beside real examples, then samples at several steps of training."""
    if inputs.samples is None or len(inputs.samples) == 0:
        return None
    body = _images(inputs) if is_images(inputs.samples) else _vectors(inputs)
    drawn = f" ({inputs.sampling})" if inputs.sampling else ""
    lead = f"Samples of the model{drawn}, not selected and in the order in which they were drawn."
    return Section("samples", "Samples", join([body, _snapshots(inputs)]), lead)


def image(images: Array, alt: str, columns: int | None = None, tile: int = 56) -> Html:
    """Draw a grid of images as one picture that shrinks with the page.

    Args:
        images: uint8 (N, H, W, C).
        alt: Text alternative.
        columns: Images in a row; default about square.
        tile: Pixels that an image spans at least; default 56.

    Returns:
        The element.
    """
    picture = image_grid(images, columns, tile=tile)
    height, width = picture.shape[:2]
    return tag("img", src=data_uri(picture), alt=alt, width=width, height=height)


def _images(inputs: ReportInputs) -> Html:
    def grid(images: Array, title: str, alt: str, caption: str) -> Html:
        pixels = as_images(images)
        pixels = pixels[: min(SHOWN, affordable(pixels))]
        what = inputs.depicted or f"images of {pixels.shape[2]} × {pixels.shape[1]} pixels"
        shown = image(pixels, f"{alt}: a grid of {len(pixels)} {what}")
        return card(shown, title=title, caption=f"{caption} {len(pixels)} {what}.")

    assert inputs.samples is not None
    made = [grid(inputs.samples, "Samples", "Samples of the model", f"Drawn from noise by the model.{_stated(inputs)}")]
    for name, given in inputs.sample_conditions.items():
        if isinstance(given, np.ndarray):
            made.append(grid(given, f"Condition {name}", f"Condition {name}", "The condition of each sample."))
    if inputs.real is not None and len(inputs.real) and is_images(inputs.real):
        name = f"of {inputs.data_name} " if inputs.data_name else ""
        made.append(grid(inputs.real, "Real data", "Real examples", f"Examples {name}for comparison."))
    return cards(*made)


def _stated(inputs: ReportInputs) -> str:
    """Return a sentence on each condition of the samples: once each value of a cycle, in its order."""
    found = []
    for name, given in inputs.sample_conditions.items():
        if isinstance(given, np.ndarray):
            continue
        values, title = list(given), "Classes" if name == "label" else f"Condition {name}"
        cycle = values[: len(set(values))]
        in_turn = values == (cycle * len(values))[: len(values)]
        shown = cycle if in_turn else values
        more = f" and {len(shown) - MAX_STATED} more" if len(shown) > MAX_STATED else ""
        order = ", in turn from left to right" if in_turn else ", from left to right"
        found.append(f" {title}{order}: {', '.join(shown[:MAX_STATED])}{more}.")
    return "".join(found)


def _vectors(inputs: ReportInputs) -> Html:
    samples, real = _flat(inputs.samples), _flat(inputs.real)
    if samples is None:
        return Html("")
    if samples.shape[1] == 1:
        return cards(_histogram(samples[:, 0], None if real is None else real[:, 0]))
    extent = extent_of([samples, *([] if real is None else [real])], inputs.density)
    if outside(samples, extent) > len(samples) / 2:
        extent = extent_of([samples, *([] if real is None else [real])])
    axes = "" if samples.shape[1] == 2 else f" The first two of {samples.shape[1]} coordinates."
    over = " over the true density (shaded)" if inputs.density is not None else ""

    def panel(points: Array, title: str) -> Html:
        lost = outside(points, extent)
        beyond = f" {count(lost)} lie outside the picture." if lost else ""
        label = f"{title}: {count(len(points))} points{over}"
        stated = _stated(inputs) if title == "Samples" else ""
        caption = f"{count(len(points))} points{over}.{axes}{beyond}{stated}"
        return card(scatter(points, extent, label, inputs.density), title=title, caption=caption)

    return cards(panel(samples, "Samples"), *([] if real is None else [panel(real, "Real data")]))


def _flat(points: Array | None) -> Array | None:
    """Return the examples as (N, D) floats; None if there are none."""
    if points is None or points.size == 0:
        return None
    return np.asarray(points, dtype=np.float64).reshape(len(points), -1)


def _histogram(samples: Array, real: Array | None) -> Html:
    everything = np.concatenate([samples, samples if real is None else real])
    everything = everything[np.isfinite(everything)]
    if everything.size == 0:
        return Html("")
    low, high = np.quantile(everything, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, 61)
    middle = (edges[1:] + edges[:-1]) / 2
    rows = [("Samples", samples, "main")] + ([] if real is None else [("Real data", real, "second")])
    series = [
        Series(name, middle, np.histogram(values, edges, density=True)[0], style)  # type: ignore[arg-type]
        for name, values, style in rows
    ]
    chart = LineChart("Histogram of the samples and of real data", "x", series)
    return card(line_chart(chart), title="Distribution", caption="Relative frequency of each value, in 60 bins.")


def _snapshots(inputs: ReportInputs) -> Html:
    """Draw the samples of a few training steps: strips of images, or small scatter plots."""
    usable = [shot for shot in inputs.snapshots if len(shot.samples) > 0 and _drawable(shot)]
    if not usable:
        return Html("")
    chosen = [usable[k] for k in sorted({round(k) for k in np.linspace(0, len(usable) - 1, SNAPSHOTS)})]
    pictures = is_images(chosen[-1].samples)
    extent = None if pictures else extent_of([_points(chosen[-1])], inputs.density)
    rows = []
    for shot in chosen:
        alt = f"Samples after {count(shot.step)} steps"
        if extent is None:
            shown = image(shot.samples[:ROW], alt, columns=ROW)
        else:
            shown = scatter(_points(shot), extent, alt, inputs.density, ticks=False)
        rows.append(tag("li", tag("span", f"step {count(shot.step)}"), shown))
    moments = tag("ol", *rows, class_="moments rows" if pictures else "moments")
    return card(moments, title="While training", caption="Samples at several training steps, each from the same noise.")


def _drawable(shot: Snapshot) -> bool:
    """Return whether the examples are images, or points of at least two dimensions."""
    return is_images(shot.samples) or _points(shot).shape[1] >= 2


def _points(shot: Snapshot) -> Array:
    return np.asarray(shot.samples, dtype=np.float64).reshape(len(shot.samples), -1)
