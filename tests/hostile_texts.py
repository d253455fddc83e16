"""Texts that attack a page, and a report or comparison whose every text is one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from diffkit.report import Citation, EffectiveRow, LikelihoodTerms, ReportInputs, Trajectory, build_report
from diffkit.report.comparison import build_comparison
from diffkit.runs.results import MetricResult

ATTACKS = (
    "<script>window.hit = 1</script>",
    "\"><img src=x onerror='window.hit = 1'>",
    "' autofocus tabindex=0 onfocus='window.hit = 1' x='",
    "</style></script><script>window.hit = 1</script>",
    "</title></pre></code><svg onload=window.hit=1>",
    "--><script>window.hit = 1</script><!--",
    "javascript:window.hit=1//https://",
    '<iframe srcdoc="<script>parent.hit = 1</script>"></iframe>',
    "]]></svg><details open ontoggle=window.hit=1>x</details>",
    '{"series": []}\'"><body onload=window.hit=1>',
    "&lt;img src=x onerror=window.hit=1&gt;",
    '<meta http-equiv=refresh content="0;url=javascript:window.hit=1"><base href=//example.invalid>',
)

FILLED = ReportInputs(
    created="2026-01-01T00:00",
    parameters=3,
    total_steps=4,
    recipe_yaml="x",
    effective=[EffectiveRow("x", "x", "x")],
    environment={"x": "x", "group": {"x": ["x"], "deep": {"x": {"x": "x"}}}},
    training_log=[{"step": k, "loss": 1.0 / k, "held_out_loss": 1.0} for k in (1, 2)],
    events=[{"time": "x", "event": "x", "x": "x", "step": 1}, {"time": "x", "event": "resume", "step": 2}],
    results={
        "x": MetricResult(headline="x", values={"x": 1.0, "y": 2.0}, held_out={"x": 2.0}),
    },
    stage_seconds={"x": 3.0},
    samples=np.zeros((2, 4, 4, 1), np.uint8),
    sample_conditions={"x": ["x", "x"]},
    trajectory=Trajectory(np.zeros((2, 2, 4, 4, 1), np.uint8), None, ["x", "x"]),
    likelihood=[LikelihoodTerms("x", np.ones(2), np.ones(2), 0.1, np.ones(3), np.ones(3))],
    citations=[Citation("x", "x", "x", "x"), Citation("x", "x", "x", "https://x")],
    missing=["x"],
)


def attacked(value: Any, attack: str) -> Any:
    """Return a value with `attack` added to each text in it, keys of mappings included."""
    if isinstance(value, str):
        return f"{value if '://' in value else ''}{attack}"
    if isinstance(value, BaseModel):
        given = {name: getattr(value, name) for name in value.model_fields_set}
        return value.model_copy(update={name: attacked(item, attack) for name, item in given.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: attacked(item, attack) for name, item in fields.items()})
    if isinstance(value, Mapping):
        known = {"step", "loss", "held_out_loss", "time", "event", "resume"}
        return {key if key in known else key + attack: attacked(item, attack) for key, item in value.items()}
    return [attacked(item, attack) for item in value] if isinstance(value, list | tuple) else value


def pages(attack: str) -> tuple[str, str]:
    """Return a report and a comparison with `attack` in each text."""
    inputs = attacked(FILLED, attack)
    comparison = build_comparison(
        [attack, f"2{attack}"],
        {attack: [attack, [attack]]},
        {attack: [attack, "-"]},
        [attack],
        [([1.0, 2.0], [2.0, 1.0]), ([1.0], [3.0])],
        [attack.encode(), None],
    )
    return build_report(inputs), comparison
