"""The table of metrics: each value beside that of real held-out data, then what each one means and rests on."""

from __future__ import annotations

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..page import Section
from ..wording import figure
from .scores import Score, scores
from .summary import GRADES

BETTER = {True: "Lower is better.", False: "Higher is better.", None: "As real data is best."}


def section(inputs: ReportInputs) -> Section | None:
    """None where results.json holds no metric."""
    found = scores(inputs.results)
    if not found:
        return None
    lead = (
        "Every measure is applied twice: to the samples, and to real held-out data in their place. The second column "
        "is what a perfect model would score, so the numbers need no other scale."
    )
    return Section("metrics", "Metrics", join([_table(found), _definitions(found), _grades()]), lead)


def _table(found: list[Score]) -> Html:
    heads = ("Measure", "Samples", "Real held-out", "Ratio")
    head = tag("tr", *[tag("th", text, scope="col", class_="num" if k else None) for k, text in enumerate(heads)])
    rows = [
        tag(
            "tr",
            tag("th", score.label, scope="row"),
            tag("td", figure(score.value), class_="num made"),
            tag("td", figure(score.held_out) if score.held_out is not None else "–", class_="num"),
            tag("td", f"{figure(score.ratio)} ×" if score.headline and score.ratio is not None else "–", class_="num"),
            class_="headline" if score.headline else "detail",
        )
        for score in found
    ]
    caption = tag("caption", "Samples against real held-out data. Ratio: how many times worse; 1 × is as good as real.")
    table = tag("table", caption, tag("thead", head), tag("tbody", *rows))
    return tag("div", table, class_="card table", role="region", aria_label="Metrics", tabindex=0)


def _definitions(found: list[Score]) -> Html:
    entries = []
    for score in found:
        if score.headline:
            better = BETTER[score.lower_is_better]
            rest = join([better, score.counted or None], between=" ")
            meaning = join([score.definition or None, tag("span", rest, class_="soft")], between=" ")
            entries.append(tag("div", tag("dt", score.metric), tag("dd", meaning)))
    return tag("dl", *entries, class_="definitions")


def _grades() -> Html:
    limits = [f"“{words.lower()}” up to {limit:g} times" for limit, words in GRADES]
    text = (
        f"The verdict at the top goes by the first measure: {', '.join(limits)} the real held-out score, “far” beyond."
    )
    return tag("p", text, class_="note")
