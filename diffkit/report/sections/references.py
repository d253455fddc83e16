"""The papers whose components the run uses."""

from __future__ import annotations

from ..inputs import ReportInputs
from ..markup import tag
from ..page import Section


def section(inputs: ReportInputs) -> Section | None:
    """Return the list of works to cite; None if there are none."""
    if not inputs.citations:
        return None
    items = [
        tag(
            "li",
            tag("a", citation.text, href=citation.url, rel="noreferrer")
            if citation.url.startswith("https://")
            else tag("span", citation.text),
            tag("span", f" Used for {citation.used_for}." if citation.used_for else "", class_="soft"),
            tag("code", citation.key),
        )
        for citation in inputs.citations
    ]
    lead = "Please cite these works if you publish results of this run."
    return Section("references", "References", tag("ol", *items, class_="references"), lead)
