"""The report of a run: one HTML file that explains itself and loads nothing. Imports no torch."""

from .content import build_report
from .inputs import (
    Citation,
    Density,
    EffectiveRow,
    LikelihoodTerms,
    Neighbours,
    Reconstructions,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
)

__all__ = [
    "Citation",
    "Density",
    "EffectiveRow",
    "LikelihoodTerms",
    "Neighbours",
    "Reconstructions",
    "ReportInputs",
    "ScheduleCurves",
    "Snapshot",
    "Trajectory",
    "build_report",
]
