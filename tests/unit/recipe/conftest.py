"""A registry with the defaults and the stand-ins of `standin.py`, whatever else is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffkit.host.discovery import candidate, candidates
from diffkit.host.loader import load
from diffkit.host.registry import Registry, _state

HERE = Path(__file__).parent

BASE = """\
name: points
data: points
schedule: {name: linear, steps: 10, beta_start: 0.1, beta_end: 0.6}
parameterization: eps
network: tiny
train: {steps: 100, batch_size: 8}
sample: {sampler: ancestral, count: 4}
"""


@pytest.fixture(scope="session")
def standins() -> Registry:
    plugins = [load(one) for one in candidates() if one.essential]
    standin = load(candidate(HERE / "standin.py"))
    assert standin.status == "ok", standin.error
    return Registry([*plugins, standin])


@pytest.fixture(autouse=True)
def _registry(standins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "registry", standins)


@pytest.fixture
def base() -> str:
    """A recipe without faults."""
    return BASE
