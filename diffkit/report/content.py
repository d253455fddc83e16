"""From inputs to the page: which parts there are, in which order. A part without material is left out."""

from __future__ import annotations

from .inputs import ReportInputs
from .page import render_page
from .sections import (
    metrics,
    neighbours,
    recipe,
    references,
    run_record,
    samples,
    schedule,
    summary,
    training,
    trajectory,
)
from .wording import moment

PARTS = (samples, metrics, neighbours, trajectory, training, schedule, recipe, run_record, references)


def build_report(inputs: ReportInputs) -> str:
    """The report as the text of one HTML file (write it as UTF-8). Depends on nothing but `inputs`."""
    sections = [section for part in PARTS if (section := part.section(inputs)) is not None]
    footer = "One file, complete in itself: it asks nothing of the network and can be mailed or archived as it is."
    made = f"Made by diffkit, {moment(inputs.created)}. " if inputs.created else "Made by diffkit. "
    return render_page(inputs.title, summary.header(inputs), sections, made + footer)
