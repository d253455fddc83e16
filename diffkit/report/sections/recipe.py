"""The recipe as text to copy, and every value with its origin."""

from __future__ import annotations

import re

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..page import Section
from ..wording import count

_LINE = re.compile(r"^(\s*(?:- )?)([A-Za-z0-9_.-]+)(:)(\s.*|)$")
_COMMENT = re.compile(r"(^|\s)(#.*)$")

VISIBLE = 25  # lines that the card shows without scrolling


def section(inputs: ReportInputs) -> Section | None:
    """Return the recipe and its effective values; None if both are missing."""
    parts = []
    if inputs.recipe_yaml.strip():
        parts.append(_text(inputs.recipe_yaml.rstrip()))
    if inputs.effective:
        parts.append(_effective(inputs))
    lead = "Save it to a file to run it again. The same seed gives the same run on the same kind of device."
    return Section("recipe", "Recipe", join(parts), lead) if parts else None


def _text(text: str) -> Html:
    button = tag("button", "Copy", type="button", data_copy="recipe-text", hidden=True)
    written = text.splitlines()
    title = f"As YAML, {count(len(written))} lines" + (": scroll to read all" if len(written) > VISIBLE else "")
    head = tag("div", tag("h3", title), button, class_="bar-head")
    lines = join([_coloured(line) for line in written], between="\n")
    code = tag("pre", tag("code", lines, id="recipe-text"), tabindex=0, aria_label="Recipe as YAML")
    return tag("div", head, code, class_="card code")


def _coloured(line: str) -> Html:
    """Color the key and the comment of a line of YAML."""
    comment = _COMMENT.search(line)
    code, rest = (line[: comment.start(2)], comment.group(2)) if comment else (line, "")
    key = _LINE.match(code)
    written = join([key[1], tag("span", key[2], class_="key"), key[3], key[4]]) if key else join([code])
    return join([written, tag("span", rest, class_="soft") if rest else None])


def _effective(inputs: ReportInputs) -> Html:
    head = tag("tr", *[tag("th", text, scope="col") for text in ("Setting", "Value", "From")])
    rows = [
        tag(
            "tr",
            tag("th", row.path, scope="row"),
            tag("td", row.value),
            tag("td", row.origin),
            class_="default" if row.origin.startswith("default") else "set",
        )
        for row in inputs.effective
    ]
    chosen = sum(not row.origin.startswith("default") for row in inputs.effective)
    title = f"All {count(len(inputs.effective))} values, {count(chosen)} of them not defaults"
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="settings")
    region = tag("div", table, class_="table", role="region", aria_label="All values", tabindex=0)
    return tag("details", tag("summary", title), region, class_="card")
