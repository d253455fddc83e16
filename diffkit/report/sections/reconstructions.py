"""Held-out examples, their reconstructions by a codec and the differences, and the distribution of its codes."""

from __future__ import annotations

import numpy as np

from ..charts import LineChart, Series, Style, line_chart
from ..inputs import Array, Reconstructions, ReportInputs, is_images
from ..markup import Html, join, tag
from ..page import Section, card, cards
from ..pictures import affordable
from ..wording import count, figure
from .samples import image

COLUMNS, CHANNELS = 8, 8
"""Pictures in a row, and channels of codes whose histograms are drawn."""
STYLES: tuple[Style, ...] = ("main", "second", "third", "faint")


def section(inputs: ReportInputs) -> Section | None:
    """Return the reconstructions of a codec and the statistics of its codes; None without them."""
    found = inputs.reconstructions
    if found is None:
        return None
    lead = "Held-out examples, not selected, and what the codec makes of them: the decoded means of their posteriors."
    pictures = [_pictures(found)] if is_images(found.examples) else []
    return Section("reconstructions", "Reconstructions", cards(*pictures, *_histograms(found), _table(found)), lead)


def _pictures(found: Reconstructions) -> Html:
    def grid(images: Array, name: str) -> Html:
        shown = images[: affordable(images)]
        return tag("div", tag("h4", name), image(shown, f"{name}: {len(shown)} images", COLUMNS))

    difference = (np.abs(found.made.astype(np.int16) - found.examples)).clip(0, 255).astype(np.uint8)
    rows = [
        grid(found.examples, "Original"),
        grid(found.made, "Reconstruction"),
        grid(difference, "Absolute difference"),
    ]
    root = float(np.sqrt(np.mean(np.square(found.made.astype(float) - found.examples)))) / 255
    caption = f"The root mean square difference is {figure(root)} of the range of values."
    return card(join(rows), title="Original, reconstruction, difference", caption=caption)


def _histograms(found: Reconstructions) -> list[Html]:
    """Draw the histograms of the channels, as many lines in a chart as there are styles."""
    middle = (found.edges[1:] + found.edges[:-1]) / 2
    normal = np.exp(-0.5 * np.square(middle)) / np.sqrt(2 * np.pi)
    made = []
    for first in range(0, min(CHANNELS, len(found.histogram)), len(STYLES) - 1):
        rows = found.histogram[first : first + len(STYLES) - 1]
        series = [Series(f"Channel {first + k}", middle, row, STYLES[k]) for k, row in enumerate(rows)]
        chart = LineChart(
            "Histogram of the codes by channel", "z", [*series, Series("N(0, 1)", middle, normal, "faint")]
        )
        made.append(card(line_chart(chart), title="Codes", caption="Relative frequency of the codes of each channel."))
    return made


def _table(found: Reconstructions) -> Html:
    columns = ["Channel", "Mean", "Std", *(["KL, nats"] if found.kl is not None else [])]
    kl = [] if found.kl is None else [found.kl]
    head = [tag("th", text, scope="col", class_="num" if k else None) for k, text in enumerate(columns)]
    rows = [
        tag("tr", tag("th", str(k), scope="row"), *(tag("td", figure(float(one)), class_="num") for one in values))
        for k, values in enumerate(zip(found.mean, found.std, *kl, strict=True))
    ]
    total = (
        f" KL is that of a dimension, {figure(float(found.kl.mean()))} nats on average." if found.kl is not None else ""
    )
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    caption = f"Statistics of the codes of {count(len(found.mean))} channels, over examples and positions.{total}"
    return card(tag("div", table, class_="table"), title="Channels of the codes", caption=caption)
