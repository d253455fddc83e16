"""`train.profile`: a Chrome trace of a few steps in the run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import diffkit


def trained(out: Path, steps: int, profile: Any, **options: Any) -> list[str]:
    """Run a small recipe; return the names of the traces."""
    recipe = {
        "name": "profiled",
        "data": {"name": "mixture", "layout": "ring", "count": 32, "held_out": 8},
        "schedule": {"name": "linear", "steps": 10, "beta_start": 0.1, "beta_end": 0.9},
        "parameterization": "eps",
        "network": {"name": "mlp", "width": 16, "depth": 1, "embedding_channels": 8},
        "objective": "simple",
        "train": {"steps": steps, "batch_size": 8, "ema": [], "profile": profile},
        "sample": {"sampler": "ancestral", "count": 2, "batch_size": 2},
        "evaluate": {"metrics": []},
    }
    diffkit.run(recipe, out, device="cpu", **options)
    return sorted(path.name for path in out.glob("profile-*.json"))


def test_a_window_of_steps_is_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The optimizer is called once in each of the two steps."""
    assert trained(tmp_path / "run", 5, {"start": 2, "steps": 2}, quiet=False) == ["profile-00000002.json"]
    assert "trace of the steps after step 2: profile-00000002.json" in capsys.readouterr().err
    trace = json.loads((tmp_path / "run" / "profile-00000002.json").read_text("utf-8"))
    names = [event["name"] for event in trace["traceEvents"]]
    assert sum(name.startswith("Optimizer.step#") for name in names) == 2
    assert sum(name == "aten::addmm" for name in names) > 0


@pytest.mark.parametrize(
    ("steps", "window", "found"),
    [(3, {"start": 5}, 0), (3, {"start": 2, "steps": 9}, 1), (2, {"start": 0}, 1)],
)
def test_windows_at_the_ends_of_a_training(tmp_path: Path, steps: int, window: Any, found: int) -> None:
    """A window after the last step leaves nothing, and one that the last step cuts is written."""
    assert len(trained(tmp_path / "run", steps, window)) == found
