"""Strategies of several processes against one process, after 30 steps; and what a process holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("sharding")

SCRIPT = Path(__file__).with_name("equality.py")
TOLERANCE = {"ddp:float64": 1e-10, "fsdp:float64": 1e-10, "ddp:float32": 1e-5, "fsdp:float32": 3e-5}
"""Of the largest weight."""
CASES = ("ddp:float64", "fsdp:float64", "fsdp:float32:importance:checkpointing:width96")
MORE = (
    *("ddp:float32", "ddp:float64:importance", "fsdp:float32", "fsdp:float64:importance", "fsdp:float32:width96"),
    *("ddp:float64:plain", "ddp:float32:plain", "fsdp:float64:plain", "fsdp:float32:plain"),
)
Trained = Callable[..., tuple[dict[str, Any], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trained:
    """The facts and tensors of a case on a number of processes, from the last of them."""
    out = tmp_path_factory.mktemp("trained")
    slow = request.config.getoption("--slow")
    command = [sys.executable, str(SCRIPT), "1,2,3,4" if slow else "1,2", str(out), *CASES, *(MORE if slow else ())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr

    def read(size: int, case: str, rank: int = -1) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        path = out / f"{case}-{rank % size}-of-{size}"
        return json.loads(Path(f"{path}.json").read_text()), load_file(f"{path}.safetensors")

    return read


def check(trained: Trained, case: str, size: int) -> None:
    """Weights, averages and moments are those of one process, within the tolerance of the case."""
    (_, alone), (_, ours) = trained(1, case), trained(size, case)
    largest = max(float(t.abs().max()) for name, t in alone.items() if name.startswith("network/"))
    tolerance = TOLERANCE[":".join(case.split(":")[:2])]
    assert alone.keys() == ours.keys()
    for name, tensor in alone.items():
        assert float((tensor - ours[name]).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(trained: Trained, case: str) -> None:
    """Two parts a step, a batch of 11, importance sampling, two averages, label dropout, clipping, AdamW."""
    check(trained, case, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_several_processes_train_as_one(trained: Trained, case: str, size: int) -> None:
    check(trained, case, size)


@pytest.mark.parametrize("case", ["ddp:float64", "fsdp:float64"])
def test_a_callback_of_the_first_process_calls_the_model(trained: Trained, case: str) -> None:
    """In a preview, though the other processes hold shares of the weights."""
    alone, ours = (trained(size, case, 0)[0]["looks"] for size in (1, 2))
    assert len(alone) == 3
    assert ours == pytest.approx(alone, rel=1e-9)
    assert len(set(alone)) == 3


def test_a_process_holds_its_share(trained: Trained) -> None:
    """Weights, gradients, moments and averages of one of two processes: at most 60 percent."""
    facts, _ = trained(2, CASES[-1])
    assert facts["held"] <= 0.6 * facts["whole"]
    facts, _ = trained(2, "ddp:float64")
    assert facts["held"] == facts["whole"]
