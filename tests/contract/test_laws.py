"""Every law of its kind holds for every registered component, in the type that it states."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from diffkit.host import Registered
from diffkit.testing import LawResult, engine
from diffkit.testing.engine import Row, check_ema, check_entry, select

ENTRIES = [one for one in select() if one is not None]
LONG = {
    "network/diffusers/diffusers",
    "network/stable-diffusion/stable-diffusion",
    "network/stable-diffusion/lora",
    "codec/stable-diffusion/of-run",
    "sampler/diffusers/diffusers",
    "metric/basics/classifier",
    "extractor/fidelity/inception-v3",
    "sampler/score-sde/probability-flow",
}
"""Components whose laws take 3 to 8 seconds each and that have tests of their own: nightly, with the deep form."""
QUICK = [one for one in ENTRIES if f"{one.kind}/{one.qualified}" not in LONG]


def told(rows: list[Row]) -> str:
    return "\n".join(
        f"{row.component} breaks {row.law} ({row.statement})\n  expected: {row.expected}\n  found:    {row.example}"
        for row in rows
    )


class Watched(LawResult):
    """Records the types of the numbers that are compared with a tolerance."""

    dtypes: ClassVar[set[torch.dtype]] = set()

    def compare(self, got: Any, want: Any, example: str, scale: float = 1.0) -> None:
        self.dtypes.update(one.dtype for one in (got, want) if isinstance(one, torch.Tensor))
        super().compare(got, want, example, scale)


@pytest.mark.parametrize("one", QUICK, ids=lambda one: f"{one.kind}/{one.qualified}")
def test_laws(one: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LawResult", Watched)
    other, apply = set(), engine.apply

    def watched(law: Any, *arguments: Any) -> Row:
        Watched.dtypes.clear()
        row = apply(law, *arguments)
        if law.tolerance and torch.float32 in Watched.dtypes and law.dtype == "float64":
            other.add(law.name)
        return row

    monkeypatch.setattr(engine, "apply", watched)
    rows = check_entry(one)
    broken = [row for row in rows if row.verdict == "fail"]
    assert not broken, told(broken)
    assert not other, "these laws compare float32 numbers: state dtype"


@pytest.mark.slow
@pytest.mark.parametrize("one", ENTRIES, ids=lambda one: f"{one.kind}/{one.qualified}")
def test_laws_deep(one: Registered) -> None:
    broken = [row for row in check_entry(one, deep=True, seed=1) if row.verdict == "fail"]
    assert not broken, told(broken)


def test_long_laws_are_of_what_is_registered() -> None:
    assert len(ENTRIES) - len(QUICK) == len(LONG)


def test_averages() -> None:
    broken = [row for row in check_ema() if row.verdict == "fail"]
    assert not broken, told(broken)
