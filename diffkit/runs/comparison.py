"""The page that compares runs, made from their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report.comparison import build_comparison
from ..storage import atomic
from .listing import Comparison

MAX_PICTURE_BYTES = 64 << 20


def write_comparison(found: Comparison, names: Sequence[str], path: Path) -> None:
    """Write a comparison of runs as one HTML file.

    Args:
        found: The comparison.
        names: Names of the runs.
        path: The file, which is replaced.

    Raises:
        ResourceError: The file cannot be written.
        CheckpointError: A picture of a run cannot be read.
    """
    pictures = [None if at is None else atomic.read_bounded(at, MAX_PICTURE_BYTES) for at in found.pictures]
    page = build_comparison(names, found.recipes, found.results, found.not_comparable(), found.losses, pictures)
    with atomic.writing(path):
        atomic.replace(path, page.encode())
