"""How long each stage took."""

from __future__ import annotations

from collections.abc import Mapping

from ..wording import number
from .scores import mapping


def stage_seconds(results: Mapping[str, object]) -> dict[str, float]:
    """Seconds by stage, in the order of the file, without what is no duration."""
    found = {str(stage): number(value) for stage, value in mapping(results.get("timings")).items()}
    return {stage: seconds for stage, seconds in found.items() if seconds is not None and seconds >= 0}
