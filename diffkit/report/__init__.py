"""The report of a run: one HTML file that explains itself and asks nothing of the network. Imports no torch."""

from .content import build_report
from .inputs import (
    Citation,
    Density,
    EffectiveRow,
    LossByLevel,
    Neighbours,
    ReportInputs,
    ScheduleCurves,
    Snapshot,
    Trajectory,
)

__all__ = [
    "Citation",
    "Density",
    "EffectiveRow",
    "LossByLevel",
    "Neighbours",
    "ReportInputs",
    "ScheduleCurves",
    "Snapshot",
    "Trajectory",
    "build_report",
]
