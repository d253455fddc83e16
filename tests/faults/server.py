"""A fork server: imports torch and diffkit once, then forks a child for each command line of `diffkit`.

Usage: python server.py     one JSON request a line on stdin, one JSON answer a line on stdout.

    {"spawn": ["run", ...], "out": FILE, "err": FILE, "cwd": DIR, "env": {}, "faults": [...], "kill_after": SECONDS}
    {"wait": PID, "timeout": SECONDS}

A child leads a process group of its own. A fault is {"at": "module:attribute", "nth": 3, "do": ["term"]}: the third
call of that function first does what is listed. `kill_after` seconds after the first step of training (or after the
child has begun, where it never trains) SIGKILL is sent to the child.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import torch

import diffkit.stages.pipeline  # noqa: F401 - imported once, for every child
from diffkit.cli.main import main
from diffkit.host import registry
from diffkit.train.engine import Engine

for module in (
    "torch._dynamo",
    "sklearn.datasets",
    "diffkit.basics.plugin",
    "diffkit.ddpm.plugin",
    "diffkit.cli.running",
    "PIL.Image",
):
    importlib.import_module(module)
registry().entries()
torch.set_num_threads(1)

Fault = dict[str, Any]


def act(what: str) -> None:
    """One thing that goes wrong: a signal to this process or its group, a pause, an error."""
    verb, _, value = what.partition(" ")
    if verb in ("kill", "term", "int"):
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[verb]
        if value == "group":
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
    elif verb == "pause":
        time.sleep(float(value))
    elif verb == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    elif verb == "full":
        raise OSError(28, "No space left on device")
    elif verb == "move":
        os.rename(*value.split(" "))
    elif verb == "copy":
        shutil.copytree(*value.split(" "))
    else:
        raise ValueError(what)


def arm(fault: Fault) -> None:
    """Wrap the function at `fault["at"]`, so that its `nth` call (every call from `from` on) does something first."""
    module, _, path = fault["at"].partition(":")
    *parents, last = path.split(".")
    holder: Any = importlib.import_module(module)
    for part in parents:
        holder = getattr(holder, part)
    original: Callable[..., Any] = getattr(holder, last)
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.get("nth") or calls >= fault.get("from", calls + 1):
            for what in fault["do"]:
                act(what)
        return original(*arguments, **options)

    setattr(holder, last, wrapped)


def announce(gate: int) -> None:
    """Write a byte to `gate` when training takes its first step."""
    original = Engine.advance

    def advance(self: Engine, *arguments: Any) -> Any:
        Engine.advance = original  # type: ignore[method-assign]
        os.write(gate, b"t")
        return original(self, *arguments)

    Engine.advance = advance  # type: ignore[method-assign]


def child(request: dict[str, Any], gate: int | None) -> int:
    """Do what is requested; returns the exit code, and what runs at the end of a process has run."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        handle = os.open(request.get(name, name), flags | (os.O_CREAT | os.O_TRUNC if number else 0), 0o644)
        os.dup2(handle, number)
        os.close(handle)
    if gate is not None:
        announce(gate)
    for fault in request.get("faults", ()):
        arm(fault)
    try:
        code = main(request["spawn"])
    except SystemExit as end:
        code = int(end.code or 0)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def spawn(request: dict[str, Any], commands: TextIO, answers: TextIO) -> int:
    """The child's process id; in the child this does not return."""
    delay = request.get("kill_after")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for handle in (reading, commands.fileno(), answers.fileno()):
            os.close(handle)
        code = 1
        try:
            code = child(request, None if delay is None else writing)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)  # taking the interpreter apart would take four times as long as a run
    os.close(writing)
    if delay is not None:
        select.select([reading], [], [], 60.0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still the child's
    os.close(reading)
    return pid


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of the child, minus the signal that ended it, or None: it had to be killed after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def serve() -> None:
    commands = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for line in commands:
        request = json.loads(line)
        answer = spawn(request, commands, answers) if "spawn" in request else wait(request["wait"], request["timeout"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)
