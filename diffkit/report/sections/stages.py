"""How long each stage took."""

from __future__ import annotations

from collections.abc import Mapping

from ..wording import number
from .scores import mapping

ORDER = ("train", "sample", "evaluate", "report")


def stage_seconds(results: Mapping[str, object]) -> dict[str, float]:
    """Seconds by stage, those of a run in the order in which it takes them, without what is no duration."""
    found = {str(stage): number(value) for stage, value in mapping(results.get("timings")).items()}
    names = [*(stage for stage in ORDER if stage in found), *(stage for stage in found if stage not in ORDER)]
    return {stage: seconds for stage in names if (seconds := found[stage]) is not None and seconds >= 0}
