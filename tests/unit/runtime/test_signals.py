"""Signals become a flag; a second one leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diffkit.runtime.signals import StopSignals

LOOP = """
import sys, time
from diffkit.runtime.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    end = time.monotonic() + 20
    asked = False
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except SystemExit:
            if "stubborn" not in sys.argv:
                raise
        if stop.requested and not asked:
            print("asked", stop.received.name, flush=True)
            asked = True
            if "obedient" in sys.argv:
                sys.exit(75)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_first_signal_is_a_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.received is number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_loop_sees_it_and_ends_by_itself(number: signal.Signals) -> None:
    process = start("obedient")
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out) == (75, f"asked {number.name}\n")
    assert f"{number.name}: saving and stopping after this step" in err


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGTERM, 143),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_second_signal_leaves_at_once(first: signal.Signals, second: signal.Signals, status: int) -> None:
    process = start()
    process.send_signal(first)
    assert process.stdout is not None
    assert process.stdout.readline() == f"asked {first.name}\n"
    time.sleep(0.15)
    process.send_signal(second)
    assert finish(process)[0] == status


def test_the_third_signal_leaves_even_where_exceptions_are_swallowed() -> None:
    process = start("stubborn")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert finish(process)[0] == 130


def test_an_echo_of_the_same_signal_is_one_request() -> None:
    """A scheduler signals the whole job and the launcher passes it on: that is one wish, not two."""
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_a_forked_child_ignores_them() -> None:
    """Forked workers never save and never die of a signal to the group."""
    code = (
        "import os, signal\n"
        "from diffkit.runtime.signals import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        for _ in range(3):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os._exit(7 if stop.requested else 0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert not stop.requested\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_off_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body() -> None:
        with StopSignals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_workers_outlive_a_signal_to_the_whole_group(tmp_path: Path) -> None:
    """pains 6 and finding 6 of reliability: without the init function the loader dies of its workers."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from torch.utils.data import DataLoader\n"
        "from slow import Slow\n"
        "from diffkit.runtime.signals import StopSignals, ignore_stop_signals\n"
        "os.setpgrp()\n"
        "seen = 0\n"
        "with StopSignals() as stop:\n"
        "    for batch in DataLoader(Slow(), 4, num_workers=2, worker_init_fn=lambda worker: ignore_stop_signals()):\n"
        "        seen += len(batch)\n"
        "        if seen == 8:\n"
        "            os.killpg(0, signal.SIGTERM)\n"
        "assert stop.requested and seen == 40, seen\n"
    )
    (tmp_path / "slow.py").write_text(
        "import time, torch\n"
        "class Slow(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 40\n"
        "    def __getitem__(self, index): time.sleep(0.01); return torch.tensor(index)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_without_handlers_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(install=False) as stop:
        assert signal.getsignal(signal.SIGTERM) is before
        assert not stop.requested
