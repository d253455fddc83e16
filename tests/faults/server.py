"""A fork server: imports torch and diffkit once, then forks a child for each command line of `diffkit`.

Usage: python server.py     one JSON request a line on stdin, one JSON answer a line on stdout.

    {"spawn": ["run", ...], "cwd": DIR, "env": {}, "faults": [...], "kill_after": SECONDS}    -> PID
    {"wait": PID, "timeout": SECONDS}    -> {"code": EXIT CODE, "out": TEXT, "err": TEXT}

A child leads a process group of its own; "out" and "err" may name a file, or be "closed": a pipe that nobody reads.
A fault is {"at": "module:attribute", "nth": 3, "do": ["term"]}: the third call of that function first does what is
listed (see `act`); without "at" it is done at once. `kill_after` seconds after the first step of training, SIGKILL is
sent to the child.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

import diffkit.runs.pipeline  # noqa: F401 - imported once, for every child
from diffkit.cli.main import main
from diffkit.errors import DataError
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
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 1 << 5, 1 << 12, 1 << 14, 1 << 18


class EnoughError(Exception):
    """The rest of a fault is left out."""


def act(what: str) -> None:
    """One thing that goes wrong: a signal to this process or its group, a pause, an error."""
    verb, _, value = what.partition(" ")
    if verb in ("kill", "term", "int"):
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[verb]
        if value == "group":
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
    elif verb == "once":  # of several processes, the first one goes on
        try:
            os.close(os.open(value, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise EnoughError from None
    elif verb == "await":
        while not os.path.exists(value):
            time.sleep(0.005)
    elif verb == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    elif verb == "pause":
        time.sleep(float(value))
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "flip":  # one weight changes, as if the memory were faulty
        engine = next(one for one in gc.get_objects() if isinstance(one, Engine))
        with torch.no_grad():
            next(engine.network.parameters()).view(-1)[0] += 1.0
    elif verb == "exit":
        os._exit(int(value))
    elif verb == "error":
        raise DataError("an example cannot be read") if value == "data" else ArithmeticError(value)
    elif verb == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    elif verb == "limit":  # a full disk: no file may be written to beyond so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), resource.RLIM_INFINITY))
    elif verb == "unlimit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    elif verb == "read-only":
        own_mounts()
        mount(value, value, BIND)
        mount(value, value, BIND | REMOUNT | READ_ONLY)
    elif verb == "bind":  # this process sees the first folder at the place of the second
        own_mounts()
        mount(*value.split(" "), BIND)
    elif verb == "set":  # a constant of a module
        module, name, number = value.split(" ")
        setattr(importlib.import_module(module), name, float(number))
    elif verb == "small-disk":
        own_mounts()
        mount("tmpfs", value, 0, "tmpfs", "size=256k")
    elif verb == "move":
        os.rename(*value.split(" "))
    elif verb == "damage":  # every file of a folder loses its end
        for path in sorted(pathlib.Path(value).iterdir()):
            os.truncate(path, 60)
    elif verb == "copy":
        shutil.copytree(*value.split(" "))
    else:
        raise ValueError(what)


def mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(texts[0], texts[1], texts[2], flags, texts[3]):
        raise OSError(ctypes.get_errno(), "mount")


def own_mounts() -> None:
    """A name space of its own for this process, in which it may mount."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    mount("none", "/", RECURSIVE | PRIVATE)


def arm(fault: Fault) -> None:
    """Wrap the function at `fault["at"]`, so that its `nth` call does something first."""
    if "at" not in fault:
        for what in fault["do"]:
            act(what)
        return
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
        if calls == fault["nth"]:
            with contextlib.suppress(EnoughError):
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


def child(request: dict[str, Any], streams: Sequence[int], gate: int | None) -> int:
    """Do what is requested; returns the exit code, and what runs at the end of a process has run."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in enumerate((nothing, *streams)):
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


class Child:
    """A command that runs, and what it said so far."""

    def __init__(self, request: dict[str, Any], private: Sequence[int]) -> None:
        delay = request.get("kill_after")
        pipes = [os.pipe() for _ in range(3)]
        self.said = dict.fromkeys(("out", "err"), b"")
        self.pipes: dict[str, int] = {}
        for name, (reading, _) in zip(self.said, pipes):
            os.set_blocking(reading, False)
            if request.get(name) == "closed":
                os.close(reading)
            else:
                self.pipes[name] = reading
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for handle in (*self.pipes.values(), pipes[2][0], *private):
                    os.close(handle)
                streams = [
                    os.open(path, os.O_RDWR) if (path := request.get(name, "closed")) != "closed" else pipe[1]
                    for name, pipe in zip(self.said, pipes)
                ]
                code = child(request, streams, None if delay is None else pipes[2][1])
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)  # taking the interpreter apart would take four times as long as a run
        for _, writing in pipes:
            os.close(writing)
        gate = pipes[2][0]
        if delay is not None:
            select.select([gate], [], [], 60.0)
            time.sleep(delay)
            os.kill(self.pid, signal.SIGKILL)  # not waited for yet, so the number is still the child's
        os.close(gate)

    def end(self, seconds: float) -> dict[str, Any]:
        """The exit code, minus the signal that ended it, or None: it had to be killed after `seconds`; what it said."""
        until, code = time.monotonic() + seconds, None
        while code is None and time.monotonic() < until:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.002)
            self._listen()
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._listen()
        for handle in self.pipes.values():
            os.close(handle)
        return {"code": code, **{name: text.decode("utf-8") for name, text in self.said.items()}}

    def _listen(self) -> None:
        for name, handle in self.pipes.items():
            with contextlib.suppress(BlockingIOError):
                while more := os.read(handle, 1 << 16):
                    self.said[name] += more


def serve() -> None:
    commands = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    children: dict[int, Child] = {}
    gc.collect()
    gc.freeze()  # what is there now is never looked at again, so children do not copy its pages
    for line in commands:
        request = json.loads(line)
        if "spawn" in request:
            started = Child(request, (commands.fileno(), answers.fileno()))
            children[started.pid] = started
            answer: object = started.pid
        else:
            answer = children.pop(request["wait"]).end(request["timeout"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)
