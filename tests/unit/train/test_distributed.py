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
from diffkit.runtime import distributed
from diffkit.runtime.distributed import SINGLE_PROCESS, join_ranks, require_devices, resolve_device
from diffkit.runtime.launch import Hosts, launch

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


@pytest.mark.parametrize(("rank", "in_use", "code"), [(0, True, "DK027"), (1, True, "DK027"), (1, False, "DK028")])
def test_a_port_in_use_and_a_first_process_that_never_comes(
    monkeypatch: pytest.MonkeyPatch, rank: int, in_use: bool, code: str
) -> None:
    """No process waits for another program that listens there; the second waits for the first as long as it may."""
    monkeypatch.setattr(distributed, "ANSWER_SECONDS", 0.3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if in_use:
            other.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in {**place, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=f"127.0.0.1:{place['MASTER_PORT']}") as caught:
            join_ranks(torch.device("cpu"), timeout=1.0)
    assert caught.value.code == code


@pytest.mark.parametrize(("in_use", "code"), [(True, "DK027"), (False, "DK028")])
def test_hosts_that_do_not_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_use: bool, code: str) -> None:
    monkeypatch.setattr(distributed, "ANSWER_SECONDS", 0.3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if in_use:
            other.listen()
        else:
            other.close()
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}") as caught:
            launch(("--version",), 1, tmp_path, hosts=Hosts(2, f"127.0.0.1:{port}"), timeout=1.0)
    assert caught.value.code == code


def test_a_process_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes than devices are refused before they start; started by torchrun, one of them prints the error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda", "cpu"):
        require_devices(name, 2)
    require_devices("cpu", 3)
    with pytest.raises(UsageError, match="3 processes need 3 CUDA devices, and this machine has 2"):
        require_devices("auto", 3)
    printed = []
    for rank in (2, 3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(UsageError) as caught:
            resolve_device("auto")
        printed.append(not caught.value.reported)
    assert printed == [True, False]


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="CUDA devices"):
        resolve_device("cuda:64")
