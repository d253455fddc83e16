"""The parts of the report and their order. A part without material is left out."""

from __future__ import annotations

from .inputs import ReportInputs
from .page import render_page
from .sections import (
    glossary,
    likelihood,
    metrics,
    neighbours,
    recipe,
    reconstructions,
    references,
    run_record,
    samples,
    schedule,
    summary,
    training,
    trajectory,
)
from .wording import moment

PARTS = (
    *(samples, reconstructions, metrics, likelihood, neighbours, trajectory, training, schedule),
    *(recipe, run_record, references, glossary),
)


def build_report(inputs: ReportInputs) -> str:
    """Return the report as the text of one HTML file (write it as UTF-8). It depends only on `inputs`."""
    sections = [section for part in PARTS if (section := part.section(inputs)) is not None]
    footer = "This file is complete: it loads nothing from the network."
    made = f"Made by diffkit, {moment(inputs.created)}. " if inputs.created else "Made by diffkit. "
    return render_page(inputs.title, summary.header(inputs), sections, made + footer)
