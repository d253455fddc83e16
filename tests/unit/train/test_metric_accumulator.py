"""Sums between log points, and how they outlive a checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diffkit.errors import CheckpointError
from diffkit.storage.atomic import dump_json
from diffkit.storage.checkpoint import validate_state
from diffkit.train.state import MetricAccumulator

CPU = torch.device("cpu")


def window(*losses: float) -> MetricAccumulator:
    made = MetricAccumulator(CPU)
    for loss in losses:
        made.add({"loss": torch.tensor(loss), "grad_norm": torch.tensor(2.0 * loss)})
    return made


def test_means_since_the_last_log_point() -> None:
    made = window(1.0, 3.0)
    assert made.means() == {"loss": 2.0, "grad_norm": 4.0}
    made.clear()
    assert made.means() == {}
    assert made.steps == 0


@pytest.mark.parametrize("overflow", [1.0, math.inf, math.nan])
def test_a_window_goes_on_from_its_state(overflow: float) -> None:
    """A gradient that overflowed, as happens in fp16, must not make a checkpoint impossible (JSON has no infinity)."""
    whole, first, second = window(0.1, overflow, 0.3), window(0.1, overflow), MetricAccumulator(CPU)
    state = json.loads(dump_json(first.state()))
    validate_state({"window": state}, {"window": MetricAccumulator(CPU).state()}, 0)
    second.load(state)
    second.add({"loss": torch.tensor(0.3), "grad_norm": torch.tensor(0.6)})
    for name, mean in whole.means().items():
        assert second.means()[name] == mean or not (math.isfinite(mean) or math.isfinite(second.means()[name]))


@pytest.mark.parametrize("sums", [{"loss": "1"}, {"loss": True}, {"loss": [1.0]}])
def test_a_state_holds_numbers_or_null(sums: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="may hold numbers only"):
        validate_state({"window": {"steps": 1, "sums": sums}}, {"window": MetricAccumulator(CPU).state()}, 0)
