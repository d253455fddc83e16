"""Whole runs that something happens to: `diffkit` in forked children, and what two runs are compared by."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SERVER = Path(__file__).with_name("server.py")
PATIENCE = 120.0
STREAMED = "{name: arrays, path: points.npy, held_out: 8, resident: never, workers: 2}"
MEASURED = ("images_per_second", "memory")  # by the clock, or of the machine: the only numbers that may differ

DATA = "{name: mixture, layout: ring, count: 32, held_out: 8}"
RECIPE = """\
# Points on a ring, trained for a moment
name: ring
data: {name: mixture, layout: ring, count: 32, held_out: 8}
schedule: {name: linear, steps: 10, beta_start: 0.1, beta_end: 0.9}
parameterization: eps
network: {name: mlp, width: 16, depth: 1, embedding_channels: 8, dropout: 0.1}
objective: simple
train:
  steps: 20
  batch_size: 16
  accumulate: 2
  lr_schedule: {name: constant, warmup: 5}
  ema: [0.9, {name: power, power: 6.94}]
  log_every: 3
  checkpoint_every: 5
  validate_every: 10
  sample_every: 10
sample: {sampler: ancestral, count: 8, batch_size: 4}
evaluate: {metrics: [sliced-wasserstein], steps: 5, count: 16, batch_size: 8}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal; None where it never ended), and what it said."""

    code: int | None
    out: str = ""
    err: str = ""


class Server:
    """Calls `diffkit` in a child of a process that has imported everything already. See server.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1"}
        environment.pop("DIFFKIT_DATA", None)
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def start(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        faults: Sequence[Mapping[str, Any]] = (),
        kill_after: float | None = None,
        out: str | None = None,
        err: str | None = None,
    ) -> int:
        """Begin a command; returns its process id. `out` and `err`: another file, or "closed"."""
        pid = self._ask(
            {
                "spawn": [str(argument) for argument in arguments],
                **({"out": out} if out else {}),
                **({"err": err} if err else {}),
                "cwd": str(cwd or self.folder),
                "env": dict(env or {}),
                "faults": [dict(fault) for fault in faults],
                "kill_after": kill_after,
            }
        )
        assert isinstance(pid, int)
        return pid

    def end(self, pid: int) -> Ended:
        """Wait for a command that was begun."""
        ended = self._ask({"wait": pid, "timeout": PATIENCE})
        return Ended(**ended)

    def __call__(self, *arguments: str | Path, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.end(self.start(*arguments, **options))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def fault(at: str, nth: int, *do: str) -> dict[str, Any]:
    """At the `nth` call of a function of diffkit, something happens first."""
    return {"at": f"diffkit.{at}", "nth": nth, "do": list(do)}


def at_once(*do: str) -> dict[str, Any]:
    """Something happens before the command begins."""
    return {"do": list(do)}


def run(
    diffkit: Server, recipe: Path, name: str = "run", faults: Sequence[Mapping[str, Any]] = (), **more: Any
) -> Ended:
    """`diffkit run` of a recipe file, in the directory `name` beside it."""
    command = ("run", recipe, "--out", recipe.parent / name, "--device", "cpu", *more.pop("options", ()))
    return diffkit(*command, faults=faults, cwd=recipe.parent, **more)


def ranks(
    diffkit: Server,
    recipe: Path,
    size: int = 2,
    faults: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    *options: str,
    out: Sequence[Path] = (),
    command: Sequence[str | Path] = (),
    **more: Any,
) -> list[Ended]:
    """`diffkit run` in processes as torchrun starts them; how each ended. `out`: another run directory for each;
    `command`: another command.

    A process with a fault that stops it is killed when the others have ended, as a launcher does.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        folder = out[rank] if out else recipe.parent / "run"
        words = command or ("run", recipe, "--out", folder, "--device", "cpu", *options)
        own = (faults or {}).get(rank, ())
        env = {name: str(value) for name, value in place.items()}
        started.append(diffkit.start(*words, cwd=recipe.parent, env=env, faults=own, **more))
    stopped = {rank for rank, own in (faults or {}).items() if any("stop" in one["do"] for one in own)}
    ended = {}
    for rank in sorted(range(size), key=lambda rank: rank in stopped):
        if rank in stopped:
            os.kill(started[rank], signal.SIGKILL)
        ended[rank] = diffkit.end(started[rank])
    return [ended[rank] for rank in range(size)]


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def events(run: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The events of a run, or those of one name."""
    return [event for event in records(run / "events.jsonl") if name in (None, event["event"])]


def steps(run: Path) -> list[int]:
    """The steps of its checkpoints, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def trained(run: Path) -> dict[str, Any]:
    """What training left, in a form that is equal where every bit is: the hashes of the newest checkpoint's files
    (network, averages, optimizer, state), and every number of metrics.jsonl that no clock has measured."""
    newest = run / "checkpoints" / f"step-{steps(run)[-1]:08d}"
    manifest = json.loads((newest / "manifest.json").read_text("utf-8"))
    numbers = [{n: v for n, v in record.items() if n not in MEASURED} for record in records(run / "metrics.jsonl")]
    return {"files": manifest["files"], "step": manifest["step"], "metrics": numbers}


def finished(run: Path) -> dict[str, Any]:
    """`trained`, and what the later stages left: samples, previews, pictures and metrics."""
    pictures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "samples").iterdir()}
    results = (
        json.loads((run / "results.json").read_text("utf-8"))["metrics"] if (run / "results.json").exists() else {}
    )
    measured = {n: {k: v for k, v in one.items() if k != "seconds"} for n, one in results.items()}
    assert (run / "report.html").is_file()
    return trained(run) | {"samples": pictures, "results": measured}


@pytest.fixture(scope="session")
def diffkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The command line, in children of one process."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "ring.yaml"
    path.write_text(RECIPE)
    return path


def write_streamed(folder: Path) -> Path:
    """A recipe whose data two worker processes read."""
    np.save(folder / "points.npy", np.random.default_rng(0).standard_normal((40, 2)).astype("float32"))
    (folder / "streamed.yaml").write_text(RECIPE.replace(DATA, STREAMED))
    return folder / "streamed.yaml"


@pytest.fixture
def streamed(tmp_path: Path) -> Path:
    return write_streamed(tmp_path)


@pytest.fixture(scope="session")
def uninterrupted_streamed(diffkit: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_streamed(tmp_path_factory.mktemp("streamed"))
    assert run(diffkit, recipe).code == 0
    return recipe.parent / "run"


@pytest.fixture(scope="session")
def uninterrupted(diffkit: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe to which nothing happened; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "ring.yaml").write_text(RECIPE)
    ended = diffkit("run", folder / "ring.yaml", "--out", folder / "ring", "-q", "--device", "cpu")
    assert ended.code == 0, ended.err
    return folder / "ring"


@pytest.fixture(scope="session")
def may_mount(diffkit: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where a process may not mount a file system in a name space of its own."""
    place = tmp_path_factory.mktemp("mount")
    if diffkit("ls", faults=[at_once(f"small-disk {place}")]).code != 0:
        pytest.skip("this machine lets nobody mount a file system of his own")
