"""SIGKILL at a random moment of `diffkit run`: the same command goes on, and nothing tells the two apart."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from .conftest import Server, fault, finished, run


def kill_and_resume(diffkit: Server, recipe: Path, seeds: range, enough: int | None = None) -> int:
    """How many of the kills struck a running process, up to `enough`, as some come after its end; each is followed by
    a resume, which must end as a run does to which nothing happened."""
    command = ("run", recipe, "-q", "--device", "cpu", "--out")
    assert diffkit(*command, recipe.with_name("whole")).code == 0
    expected = finished(recipe.with_name("whole"))
    began = time.monotonic()  # of a second run: the first one warms up much that later ones find ready
    assert diffkit(*command, recipe.with_name("again")).code == 0
    longest = time.monotonic() - began
    struck = 0
    for seed in seeds:
        out = recipe.with_name(f"run{seed}")
        ended = diffkit(*command, out, kill_after=random.Random(seed).uniform(0.0, longest))
        assert ended.code in (-9, 0), ended.err
        struck += ended.code == -9
        ended = diffkit(*command, out)
        assert ended.code == 0, f"seed {seed}: {ended.err}"
        assert finished(out) == expected, f"seed {seed}"
        assert not list(out.rglob(".*")), f"seed {seed}"
        shutil.rmtree(out)
        if struck == enough:
            break
    return struck


def test_some_random_kills(diffkit: Server, recipe: Path) -> None:
    """Pains 6."""
    assert kill_and_resume(diffkit, recipe, range(6), enough=2) >= 1


def test_a_kill_leaves_no_lock_behind(diffkit: Server, streamed: Path) -> None:
    """Workers that read data notice the end of their parent some seconds later; the next start waits for nobody."""
    assert run(diffkit, streamed, faults=[fault("train.engine:Engine.advance", 8, "kill")]).code == -9
    ended = run(diffkit, streamed)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_many_random_kills(diffkit: Server, recipe: Path) -> None:
    assert kill_and_resume(diffkit, recipe, range(1000, 2000), enough=200) == 200
