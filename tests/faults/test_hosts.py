"""A run on two hosts: they meet at an address of one, and an error of one ends both."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .conftest import DATA, Server, finished, ranks


@pytest.mark.slow
def test_an_error_on_one_of_two_hosts_ends_both(recipe: Path) -> None:
    """One host lacks the data: it has the error, and both commands end with its code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{probe.getsockname()[1]}"
    text = recipe.read_text().replace(DATA, "{name: arrays, path: points.npy, held_out: 8}")
    options = ("--out", str(recipe.parent / "run"), "--device", "cpu", "--nproc", "1", "--hosts", "2", "--meet", meet)
    started = []
    for name in ("a", "b"):
        folder = recipe.parent / name
        folder.mkdir()
        (folder / "ring.yaml").write_text(text)
        if name == "a":
            np.save(folder / "points.npy", np.zeros((40, 2), dtype=np.float32))
        command = [sys.executable, "-m", "diffkit", "run", "ring.yaml", *options, "-q"]
        started.append(subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [5, 5]
    assert [text.count("error[") for text in errors] == [0, 1]
    assert "points.npy" in errors[1]


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with one cable between them: 10.77.0.1 and 10.77.0.2, whose host name leads to neither."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip, which makes network namespaces, is not installed")
    names = f"diffkit-{os.getpid()}-a", f"diffkit-{os.getpid()}-b"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("meeting", [1, 2])
def test_two_hosts_meet_at_an_address_of_one(
    diffkit: Server, recipe: Path, two_hosts: tuple[str, str], meeting: int
) -> None:
    """The run of two hosts ends on both, with the weights of two processes on one."""
    options = ("--device", "cpu", "--nproc", "1", "--hosts", "2", "--meet", f"10.77.0.{meeting}:29500", "-q")
    command = [sys.executable, "-m", "diffkit", "run", str(recipe), "--out", str(recipe.parent / "run"), *options]
    started = [
        subprocess.Popen(["ip", "netns", "exec", name, *command], stderr=subprocess.PIPE, text=True)
        for name in two_hosts
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one_host = recipe.parent / "one"
    assert [one.code for one in ranks(diffkit, recipe, 2, out=[one_host] * 2)] == [0, 0]
    assert finished(recipe.parent / "run") == finished(one_host)
