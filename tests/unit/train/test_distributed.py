"""Several processes are one: the same examples, the same weights, one decision to stop."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffkit.errors import UsageError
from diffkit.runtime.distributed import SINGLE_PROCESS, join_ranks, resolve_device

pytestmark = pytest.mark.xdist_group("distributed")

SCRIPT = Path(__file__).with_name("ranks.py")
Ranks = Callable[[str], list[tuple[dict[str, Any], dict[str, torch.Tensor]]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of two ranks says in a scenario, and its tensors."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(r), "2", port, str(out)], stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "FutureWarning" not in errors  # of torch, on what it will take away
    return lambda scenario: [
        (json.loads((out / f"{scenario}-{r}.json").read_text()), load_file(out / f"{scenario}-{r}.safetensors"))
        for r in range(2)
    ]


def test_two_processes_are_one(ranks: Ranks, toys: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """reliability 16: the same sample ids, weights within rounding; loss and importance history of the whole batch."""
    monkeypatch.setitem(sys.modules, "toys", toys)
    one, alone = runpy.run_path(str(SCRIPT))["train"](SINGLE_PROCESS, "train")
    (first, a), (second, b) = ranks("train")
    for step in range(8):
        together = [i for s in (first, second) for row in s["seen"] if row[0] == step for i in row[1:]]
        assert together == [i for row in one["seen"] if row[0] == step for i in row[1:]]
        assert len(together) == 11
    own = ("seen", "mean")  # the toy network's statistics of what each rank has seen
    for name, value in alone.items():
        if not name.endswith(own):
            assert torch.equal(a[name], b[name]), name
            torch.testing.assert_close(a[name], value, rtol=1e-5, atol=1e-6)
    assert second["records"] == []
    assert [r["step"] for r in first["records"]] == [4, 8]
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        for name in ("loss", "grad_norm", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_a_signal_to_one_rank_stops_all(ranks: Ranks) -> None:
    """reliability 5: the flag is shared once a step, so every rank stops at the same one."""
    for result, _ in ranks("stop"):
        assert (result["step"], result["stopped"], result["error"]) == (3, True, None)


def test_a_bad_loss_on_one_rank_stops_all_before_the_update(ranks: Ranks) -> None:
    (first, a), (second, b) = ranks("diverge")
    for result in (first, second):
        assert result["error"].startswith("DivergedError")
        assert "at step 5" in result["error"]
    for name, value in a.items():
        if not name.endswith(("seen", "mean")):
            assert torch.equal(value, b[name])
            assert bool(torch.isfinite(value).all())


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_ranks(torch.device("cpu"))
    assert world is SINGLE_PROCESS
    assert world.is_main
    assert world.any(True) is True
    assert world.any(False) is False
    rows = torch.arange(3.0)
    assert world.sum(rows) is rows


@pytest.mark.parametrize(("rank", "code"), [(0, "DK027"), (1, "DK028")])
def test_a_port_in_use_and_a_first_process_that_never_comes(
    monkeypatch: pytest.MonkeyPatch, rank: int, code: str
) -> None:
    """The first process cannot listen where another program does; the second waits for it as long as it may."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if rank == 0:
            other.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in {**place, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=f"127.0.0.1:{place['MASTER_PORT']}") as caught:
            join_ranks(torch.device("cpu"), timeout=1.0)
    assert caught.value.code == code


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="CUDA devices"):
        resolve_device("cuda:64")
