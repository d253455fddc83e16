"""Hostile files in a run directory: the commands that read them name the file, or leave it out by name."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffkit.cli.main import main as diffkit
from diffkit.errors import plain

from .test_hostile_data import SEED, mutated, npy, packed

SECONDS = 5.0
LIMIT_BYTES = 256 << 20
"""Twice the memory that a JSON file or a log of a run may take."""
RECIPE = """\
name: ring
data: {name: mixture, layout: ring, count: 256, held_out: 64}
schedule: {name: linear, steps: 50}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
objective: simple
train: {steps: 4, batch_size: 8, optimizer: {name: adam, lr: 1.0e-3}, log_every: 1, ema: 0.9}
sample: {sampler: ancestral, count: 4, steps: 2}
evaluate: {metrics: [sliced-wasserstein], steps: 2, count: 8}
"""
STEP = "checkpoints/step-00000004"
JSON = ("results.json", "stages.json", "environment.json", "data.json", f"{STEP}/manifest.json", f"{STEP}/state.json")
LOGS = ("metrics.jsonl", "events.jsonl")
PACKED = ("samples/samples.npz", "samples/trajectory.npz", "samples/step-00000002.npz")
OTHERS = ("LOCK", "effective.yaml", "recipe.yaml", "report.html", f"{STEP}/network.safetensors", "samples/grid.png")
FILES = (*JSON, *LOGS, *PACKED, *OTHERS)
FOLDERS = ("checkpoints", STEP, "samples")
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        2**63,
        10**400,
        1e308,
        0.5,
        "",
        "x" * 9999,
        "\ud800",
        "\x1b[2J[red]\u202e",
        "../../etc/passwd",
    ),
    *([], {}, [[]] * 99, {"": {}}, {"name": "x"}, ["x"], {"\x1b]0;x\x07": "\x9b"}, "9" * 5000),
)
Case = tuple[str, str, Callable[[Path], None]]
"""A name, the file inside the run, and a function that puts something hostile in its place."""


@functools.cache
def contents() -> dict[str, bytes]:
    """Contents for any file; those of the largest size that is read hold as many values, or as wide characters."""
    record = b'{"step": 1, "event": "save", "loss": 1, "x": %s}\n'
    return {
        "empty": b"",
        "zeros": bytes(4096),
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "not UTF-8": b'{"a": "\xff\xfe"}\n',
        "a byte order mark": b"\xef\xbb\xbf{}\n",
        "a list": b"[1, 2]\n",
        "a number": b"7\n",
        "deep": b"[" * 100_000 + b"\n",
        "a deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n",
        "not numbers": record % b"NaN" + record % b"-Infinity" + record % b"1e999",
        "a long number": record % (b"9" * 5000),
        "a name twice": b'{"step": 1, "step": 2, "a": 1, "a": 2}\n',
        "control characters": b'{"\\u001b[2J": "\\u009b\\u202e[bold]", "event": "\\u001b]0;x\\u0007", "step": 1}\n',
        "a half of a pair": b'{"event": "\\ud800", "step": 1, "loss": 1}\n',
        "wide characters": record % (b'"\\ud83d\\ude00' + b"x" * (1 << 19) + b'"') * 15,
        "many values": record % (b"[" + b"[]," * 30_000 + b"1]") * 80,
        "many names": b"{" + b",".join(b'"%d":1' % i for i in range(55_000)) + b"}\n",
        "many short lines": b'{"step": 1, "loss": 2, "event": "x"}\n' * 300_000,
        "yaml": b"a: &a [1]\nb: *a\nc: !!python/object:os.system x\n",
        "html": b"<script>alert(1)</script>",
    }


def put(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        remove(path)
        path.write_bytes(content)

    return make


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def special(kind: str) -> Callable[[Path], None]:
    """Put something else than a regular file in place of a file or folder."""

    def make(path: Path) -> None:
        if kind == "a link to itself in sound form":
            path.rename(path.with_name("moved"))
            return path.symlink_to("moved")
        remove(path)
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "a terabyte":
                path.touch()
                os.truncate(path, 1 << 40)
            case "nothing":
                pass
            case _:
                path.symlink_to({"loop": path.name, "folder above": ".."}.get(kind, kind))
        return None

    return make


SPECIAL = (
    *("pipe", "folder", "a terabyte", "nothing", "loop", "folder above", "/dev/zero", "/dev/full", "/etc/passwd"),
    *("/nowhere", "a link to itself in sound form"),
)


def odd_value(number: int) -> Callable[[Path], None]:
    """Replace one value of a JSON file, or of a line of a log, by an odd one."""

    def change(path: Path) -> None:
        draw = random.Random(f"{SEED} {number}")
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = draw.randrange(len(lines))
        tree = json.loads(lines[at])
        places = list(_places(tree))
        inside, key = draw.choice(places)
        inside[key] = draw.choice(ODD)
        if draw.random() < 0.3:
            inside, key = draw.choice(places)
            inside[key] = draw.choice(ODD)
        lines[at] = json.dumps(tree)
        path.write_text("\n".join(lines) + "\n")

    return change


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in list(steps):
        yield tree, key
        yield from _places(item)


def odd_bytes(number: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(mutated(path.read_bytes(), random.Random(f"{SEED} {number}"))) and None


def arrays() -> Iterator[tuple[str, bytes]]:
    """Files of samples with arrays of other types, shapes and names."""
    for kind in ("?", "<f2", ">f4", "<i8", "<c8", "S3", "<M8[s]"):
        yield f"type {kind}", packed("view", npy(np.zeros((4, 2), kind)), 0)
    for shape in ((), (0, 2), (4,), (4, 2, 2), (4, 9999), (4, 8, 8, 3), (2,) * 12):
        yield f"shape {shape}", packed("view.npy", npy(np.ones(shape, "f4")), 0)
    yield "not finite", packed("view.npy", npy(np.full((4, 2), np.nan, "f4")), 0)
    yield "large", packed("view.npy", npy(np.full((4, 2), 3e38, "f4")), 0)
    yield "objects", packed("view.npy", npy(np.array([{}] * 4, dtype=object)), 0)
    yield "compressed", packed("view.npy", npy(np.zeros((4, 2), "f4")))
    yield "a name of control characters", packed("\x1b[2J[red].npy", npy(np.zeros((4, 2), "f4")), 0)


def cases() -> Iterator[Case]:
    """Every case, in a fixed order."""
    for file in FILES:
        for what, content in contents().items():
            if file not in (*PACKED, *OTHERS) or len(content) < 9999:
                yield f"{file} is {what}", file, put(content)
    for place in (*FILES, *FOLDERS):
        yield from ((f"{place} is {kind}", place, special(kind)) for kind in SPECIAL)
    for number in range(8):
        yield from ((f"{file}, odd value {number}", file, odd_value(number)) for file in (*JSON, *LOGS, "LOCK"))
        yield from ((f"{file}, odd bytes {number}", file, odd_bytes(number)) for file in FILES if "grid" not in file)
    for file in PACKED:
        yield from ((f"{file} of {what}", file, put(content)) for what, content in arrays())


def commands(folder: Path) -> list[list[str]]:
    """The commands that read a run; the sound run is beside the hostile one."""
    run = str(folder / "ring")
    return [
        ["ls", "runs", "--runs", str(folder)],
        ["compare", run, str(folder / "sound"), "--html", str(folder / "both.html")],
        ["checkpoints", run, "--verify"],
        ["report", run],
        ["sample", run, "--count", "1", "--steps", "1", "-q", "--device", "cpu", "--out", str(folder / "x.npz")],
    ]


def call(line: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        code = diffkit(line)
    return code, out.getvalue(), err.getvalue()


def attempt(sound: Path, folder: Path, case: Case, last: int = 5) -> None:
    """Put a hostile file into a copy of a run, and require of the first commands a result or a named error."""
    name, file, make = case
    shutil.copytree(sound, folder / "ring")
    if not (folder / "sound").exists():
        shutil.copytree(sound, folder / "sound")
    if not (folder / "ring" / file).exists():
        shutil.copy(sound / PACKED[0], folder / "ring" / file)
    make(folder / "ring" / file)
    for line in commands(folder)[:last]:
        began = time.process_time()
        code, out, err = call(line)
        seconds = time.process_time() - began
        what = f"{name}: diffkit {line[0]} ended with {code}: {err}"
        assert seconds < SECONDS, f"{what}: {seconds:.1f} s"
        assert code in (0, 2, 3, 5, 6, 8, 9), what
        assert "Traceback" not in err, what
        assert plain(out + err) == out + err, what
        assert not code or "\n  fix: " in err or "\n  allowed: " in err or "\n  --> " in err, what
        assert line[0] != "ls" or (code == 0 and "sound" in out), what
        if line[0] == "compare" and file != "effective.yaml":
            assert code == 0, what
    shutil.rmtree(folder / "ring")


def finished(folder: Path) -> Path:
    """Run a small recipe to the end."""
    (folder / "ring.yaml").write_text(RECIPE)
    assert call(["run", str(folder / "ring.yaml"), "--out", str(folder / "ring"), "-q", "--device", "cpu"])[0] == 0
    return folder / "ring"


def test_hostile_runs_are_named(tmp_path: Path) -> None:
    """One case of each kind; `make faults` tries all of them."""
    sound = finished(tmp_path)
    every = list(cases())
    assert len(every) > 400
    small = [case for case in every if " is many" not in case[0] and " is wide" not in case[0]]
    for case in random.Random(SEED).sample(small, 12):
        attempt(sound, tmp_path / "try", case, 3)


@pytest.mark.slow
def test_all_hostile_runs_within_limits(tmp_path: Path) -> None:
    """In a process of its own, whose largest memory is measured."""
    code = "import sys; from tests.faults.test_hostile_runs import main; main(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stdout + ended.stderr


def main(folder: str, only: str = "") -> None:
    """Try all cases; the first fault ends the process, as does too much memory."""
    sound = finished(Path(folder))
    attempt(sound, Path(folder) / "try", ("as it is", "LOCK", lambda path: None))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in cases():
        if only in case[0]:
            attempt(sound, Path(folder) / "try", case)
            used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            assert used < LIMIT_BYTES, f"{case[0]} took {used >> 20} MiB"
