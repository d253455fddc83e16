"""The likelihood: the terms of each bound over t, the rate-distortion curve, and progressive reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..charts import LineChart, Series, Style, line_chart, spans_decades
from ..inputs import LikelihoodTerms, ReportInputs, is_images
from ..markup import Html, tag
from ..page import Section, card, cards
from ..pictures import data_uri, strip
from ..wording import figure

STYLES: tuple[Style, ...] = ("main", "second", "third", "faint")
MAX_PIXEL = 127.5
"""Half of the range of pixels, 0 to 255, which are -1 to 1 for the model."""


def section(inputs: ReportInputs) -> Section | None:
    """Return the terms of the bounds of a run; None without a bound on a chain of layers."""
    bounds = inputs.likelihood[: len(STYLES)]
    if not bounds:
        return None
    charts = [_stacked(bounds), _terms(bounds), _rate_distortion(bounds)]
    shown = [cards(*(chart for chart in charts if chart)), *(one for one in map(_strip, bounds[:1]) if one)]
    lead = (
        "The model as layers of latents between noise and data: the bound on the code length of held-out examples is "
        "what each layer adds, from noise to data."
    )
    return Section("likelihood", "Likelihood", tag("div", *shown, class_="stack"), lead)


def _stacked(bounds: Sequence[LikelihoodTerms]) -> Html:
    """Draw the terms stacked from the data to noise; the last point is the whole bound without the prior."""
    lines = [Series(one.name, one.t, np.cumsum(one.layers), style) for one, style in zip(bounds, STYLES)]
    chart = line_chart(LineChart("Terms of the bound stacked over t, in bits per dimension", "t", lines))
    totals = ", ".join(f"{one.name} {figure(float(one.layers.sum() + one.prior), 4)}" for one in bounds)
    caption = (
        f"Bits per dimension of the decoder and of all layers up to t; with the prior the whole is {totals}. The curve "
        "is steep at those t whose layers cost the most."
    )
    return card(chart, title="Terms, stacked over t", caption=caption) if chart else Html("")


def _terms(bounds: Sequence[LikelihoodTerms]) -> Html:
    """Draw each term by itself."""
    lines = [Series(one.name, one.t, one.layers, style) for one, style in zip(bounds, STYLES)]
    values = np.concatenate([one.layers for one in bounds])
    chart = line_chart(LineChart("Terms of the bound over t", "t", lines, log_y=spans_decades(values)))
    caption = "Bits per dimension that each layer adds; the leftmost point is the decoder."
    return card(chart, title="Terms over t", caption=caption) if chart else Html("")


def _rate_distortion(bounds: Sequence[LikelihoodTerms]) -> Html:
    """Draw the error of the reconstruction over the bits that were received (Ho et al. 2020, section 4.3)."""
    scale, unit = (MAX_PIXEL, "of pixels 0 to 255") if bounds[0].pixels else (1.0, "in the units of the model")
    lines = [
        Series(one.name, one.rate[:-1], scale * np.sqrt(one.squared_error[:-1]), style)
        for one, style in zip(bounds, STYLES)
    ]
    label = "Distortion over rate"
    chart = line_chart(LineChart(label, "bits per dimension received", lines))
    caption = (
        f"Root mean square error {unit}, after the latents from noise down to some t are received. The last bits, "
        "those of the decoder, make it 0. Source: Ho et al. 2020, section 4.3."
    )
    return card(chart, title=label, caption=caption) if chart else Html("")


def _strip(bound: LikelihoodTerms) -> Html | None:
    """Draw what is known of a few examples after more and more bits; the last column is the example itself."""
    shown = bound.reconstructions
    if shown is None or not is_images(shown) or shown.ndim != 5:
        return None
    picture = strip(shown, tile=80)
    height, width = picture.shape[:2]
    alt = f"{shown.shape[1]} held-out examples after {len(shown) - 1} numbers of bits, and the examples themselves"
    labels = [f"{figure(float(rate), 2)} bits" for rate in bound.reconstruction_rates]
    ticks = tag("ol", *[tag("li", label) for label in labels], class_="ticks")
    image = tag("img", src=data_uri(picture), alt=alt, width=width, height=height)
    caption = (
        "The estimate of held-out examples after these numbers of bits per dimension, by "
        f"{bound.name}. The last column is the example, after all bits."
    )
    return card(tag("div", image, ticks, class_="strip"), title="Progressive reconstructions", caption=caption)
