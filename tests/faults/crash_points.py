"""Kill a process at each line of saving, rotating and cleaning, and see what a restart finds.

Usage: python crash_points.py DIRECTORY SCENARIO COUNT   (COUNT lines spread evenly, 0: every line)

The parent imports torch once and forks a child for each line; the child sends itself SIGKILL when it reaches the
line. Printed: {"lines": how many there are, "killed": how many were tried, "failures": [what went wrong]}.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from diffkit.storage.checkpoint import CheckpointStore

TRACED = (f"diffkit{os.sep}storage{os.sep}", f"{os.sep}shutil.py")
KEY = "0" * 32


def content(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"network": {"w": torch.full((50, 30), value)}, "optimizer": {"w.exp_avg": torch.full((50, 30), -value)}}


def prepare(directory: Path) -> None:
    """Two whole checkpoints, and what an earlier crash may have left."""
    store = CheckpointStore(directory, keep=2)
    store.save(1, content(1), {"value": 1}, {})
    store.save(2, content(2), {"value": 2}, {})
    stale = directory / f".tmp-step-00000003-{KEY}"
    stale.mkdir()
    (stale / "network.safetensors").write_bytes(b"half")


def save(directory: Path) -> None:
    """The third of two that are kept: write, read back, rotate."""
    CheckpointStore(directory, keep=2).save(3, content(3), {"value": 3}, {})


def replace(directory: Path) -> None:
    """Another checkpoint of a step that has one."""
    CheckpointStore(directory, keep=2).save(2, content(3), {"value": 3}, {})


def clean(directory: Path) -> None:
    """A start that finds a half-written and a half-replaced checkpoint."""
    (directory / "step-00000002").rename(directory / f".old-step-00000002-{KEY}")
    CheckpointStore(directory, keep=2).clean()


SCENARIOS: dict[str, Callable[[Path], None]] = {"save": save, "replace": replace, "clean": clean}


def traced(action: Callable[[Path], None], directory: Path, kill_at: int | None) -> int:
    """Lines that `action` runs in the traced files; SIGKILL on reaching the one numbered `kill_at`."""
    seen = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if any(part in frame.f_code.co_filename for part in TRACED) else None

    sys.settrace(call)
    try:
        action(directory)
    finally:
        sys.settrace(None)
    return seen


def after_restart(directory: Path) -> str | None:
    """What is wrong with what a restart finds; None where nothing was lost."""
    store = CheckpointStore(directory, keep=2)
    store.clean()
    loaded = store.load(content(0))
    if loaded is None:
        return "there is no checkpoint"
    value = loaded.state["value"]
    if value not in (2, 3):
        return f"it went back to {value}"
    for group, named in content(value).items():
        for name, tensor in named.items():
            if not torch.equal(loaded.tensors[group][name], tensor):
                return f"{group}.{name} is not what was saved"
    store.save(9, content(9), {"value": 9}, {})
    if hidden := [path.name for path in directory.iterdir() if path.name.startswith(".")]:
        return f"left over: {hidden}"
    again = store.load(content(0))
    return None if again is not None and again.state == {"value": 9} else "the run cannot go on"


def main() -> None:
    root, scenario, count = Path(sys.argv[1]), SCENARIOS[sys.argv[2]], int(sys.argv[3])
    torch.set_num_threads(1)
    prepare(root / "base")
    shutil.copytree(root / "base", root / "count")
    lines = traced(scenario, root / "count", None)
    chosen = range(1, lines + 1) if count == 0 else sorted({1 + i * (lines - 1) // (count - 1) for i in range(count)})
    failures = []
    for number in chosen:
        directory = root / "run"
        shutil.copytree(root / "base", directory)
        child = os.fork()
        if child == 0:
            traced(scenario, directory, number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            failures.append(f"line {number}: the child was not killed")
        elif wrong := after_restart(directory):
            failures.append(f"line {number}: {wrong}")
        shutil.rmtree(directory)
    print(json.dumps({"lines": lines, "killed": len(chosen), "failures": failures}))


if __name__ == "__main__":
    main()
