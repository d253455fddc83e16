"""The state of the process that code of a plugin must leave as it was: put back afterwards, and the changes named."""

from __future__ import annotations

import builtins
import contextlib
import gc
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, cast

PutBack = Callable[[], bool]
"""A function that puts a part of the state back, and returns whether that was necessary."""
BUILTINS = frozenset(vars(builtins))
_lock = threading.RLock()
_left_running: list[threading.Thread] = []
_read: dict[str, tuple[tuple[int, ...], frozenset[str]]] = {}
"""By owner, the identities of its members, and the names of those that are defined elsewhere."""


class SideEffectWarning(UserWarning):
    """Warns that the code of a plugin changed the state of the process."""


@dataclass(frozen=True)
class Change:
    """A change that code of a plugin made to the process; `lasting` if it cannot be undone."""

    what: str
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.what}, which {'cannot be' if self.lasting else 'was'} put back"


@contextlib.contextmanager
def kept_state(*, draws: bool = True, output: bool = False) -> Iterator[list[Change]]:
    """Return a context for code of a plugin, after which the state of the process is restored.

    Args:
        draws: whether to leave the global random numbers where the code moved them, as when weights are drawn.
        output: whether to leave standard output as it is, because other threads may print. Otherwise what the code
            prints goes to standard error, since standard output may be JSON for another program.

    Yields:
        A list that contains the changes afterwards. A replaced function of torch, and a thread that keeps the process
        alive, are detected only.
    """
    changes: list[Change] = []
    with _lock, contextlib.nullcontext() if output else _kept_streams(changes):
        torch = _torch()
        before = {**_python_state(), **(_torch_state(torch) if torch else {}), **({} if draws else _random_state())}
        replaced = _replaced()
        try:
            with _started_threads() as threads:
                yield changes
        finally:
            if torch is None and (torch := _torch()):
                before |= _torch_state(torch, imported_now=True)
            changes += [Change(f"it changed {what}") for what, put_back in before.items() if put_back()]
            changes += [Change(f"it replaced {name}", lasting=True) for name in sorted(_replaced() - replaced)]
            started = [one for one in threads if one.is_alive() and not one.daemon]
            changes += [Change(f'it started the thread "{one.name}"', lasting=True) for one in started]
            _left_running.extend(started)


@contextlib.contextmanager
def _started_threads() -> Iterator[list[threading.Thread]]:
    """Record the threads that the present thread starts; those of other threads are theirs."""
    owner, start = threading.current_thread(), threading.Thread.start
    started: list[threading.Thread] = []

    def recorded(thread: threading.Thread) -> None:
        start(thread)
        if threading.current_thread() is owner:
            started.append(thread)

    threading.Thread.start = recorded  # type: ignore[method-assign, assignment]
    try:
        yield started
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


def is_kept_alive() -> bool:
    """Return whether a thread that a plugin started keeps the process alive."""
    return any(thread.is_alive() for thread in _left_running)


def _torch() -> Any:
    """Return torch if it is imported, whole; else None."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "get_default_device") and hasattr(torch, "nn") else None


def _keep(read: Callable[[], Any], write: Callable[[Any], object], *initial: Any) -> PutBack:
    """Return the function that writes the present value, or `initial`, again if another is read."""
    (value,) = initial or (read(),)

    def put_back() -> bool:
        changed: bool = read() != value
        if changed:
            write(value)
        return changed

    return put_back


def _python_state() -> dict[str, PutBack]:
    found = {
        "sys.path": _path(list(sys.path)),
        "the variables of the environment": _variables(dict(os.environ)),
        "the warning filters": _filters(list(warnings.filters)),
        "the locale": _keep(partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
        "the recursion limit": _keep(sys.getrecursionlimit, sys.setrecursionlimit),
        "the garbage collector": _keep(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    }
    with contextlib.suppress(OSError):  # a working directory that was removed
        found["the working directory"] = _keep(os.getcwd, os.chdir)
    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGINT, signal.SIGTERM):
            found[f"the handler of {one.name}"] = _keep(partial(signal.getsignal, one), partial(signal.signal, one))
    return found


def _torch_state(torch: Any, imported_now: bool = False) -> dict[str, PutBack]:
    """Return how to put torch back: to its present state, or to that after its import if it was imported just now."""
    keep = {
        "the default dtype of torch": (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        "the gradient mode of torch": (torch.is_grad_enabled, torch.set_grad_enabled, True),
        "the default device of torch": (torch.get_default_device, partial(_set_device, torch), torch.device("cpu")),
        "the precision of products in torch": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
        ),
    }
    return {what: _keep(*names, *((value,) if imported_now else ())) for what, (*names, value) in keep.items()}


def _set_device(torch: Any, device: Any) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _random_state() -> dict[str, PutBack]:
    found = {"the random numbers of Python": _keep(random.getstate, random.setstate)}
    if torch := _torch():
        state = torch.random.get_rng_state()
        found["the random numbers of torch"] = _keep(
            lambda: torch.random.get_rng_state().tolist(), lambda _: torch.random.set_rng_state(state)
        )
    return found


def _path(before: list[str]) -> PutBack:
    def put_back() -> bool:
        changed = sys.path[: len(before)] != before
        if changed:  # new entries come last: they may be those of a package that contains others
            sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]
        return changed

    return put_back


def _variables(before: Mapping[str, str]) -> PutBack:
    def put_back() -> bool:
        lost = {name: value for name, value in before.items() if os.environ.get(name) != value}
        os.environ.update(lost)
        return bool(lost)

    return put_back


def _filters(before: list[Any]) -> PutBack:
    """Return how to put the filters back; a filter for the warnings of one module, or of one kind, is left."""

    def put_back() -> bool:
        added: list[Any] = [one for one in warnings.filters if one not in before]
        narrow = [one for one in added if one[1] or one[3] or one[2].__module__ != "builtins"]
        changed = narrow != added or any(one not in warnings.filters for one in before)
        if changed:
            warnings.resetwarnings()
            cast(list[Any], warnings.filters).extend([*narrow, *before])
        return changed

    return put_back


def _replaced() -> frozenset[str]:
    """Return the names of functions of Python and of torch that are defined elsewhere."""
    owners: dict[str, Any] = {"builtins": builtins}
    if torch := _torch():
        owners |= {"torch": torch, "torch.Tensor": torch.Tensor, "torch.nn.Module": torch.nn.Module}
        owners |= {"torch.nn.functional": torch.nn.functional}
    return frozenset().union(*(_foreign(owner, vars(place)) for owner, place in owners.items()))


def _foreign(owner: str, members: Mapping[str, object]) -> frozenset[str]:
    """Return the names of functions that are defined elsewhere; the members are read again only after a change."""
    present = tuple(map(id, members.values()))
    if owner not in _read or _read[owner][0] != present:
        names = frozenset(
            f"{owner}.{name}"
            for name, value in members.items()
            if isinstance(value, FunctionType)
            and not name.startswith("_")
            and (owner != "builtins" or name in BUILTINS)
            and value.__globals__.get("__name__", "").partition(".")[0] not in ("torch", "builtins", "_sitebuiltins")
        )
        _read[owner] = present, names
    return _read[owner][1]


@contextlib.contextmanager
def _kept_streams(changes: list[Change]) -> Iterator[None]:
    """Send standard output to standard error, also below Python; open again what the code closed."""
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    saved: dict[int, int] = {}
    for number in range(3):
        with contextlib.suppress(OSError):  # closed before
            saved[number] = os.dup(number)
    if streams["stdout"] is not None:
        with contextlib.suppress(OSError, ValueError):
            streams["stdout"].flush()
    if saved.keys() >= {1, 2}:
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        if any(getattr(sys, name) is not stream for name, stream in {**streams, "stdout": streams["stderr"]}.items()):
            changes.append(Change("it replaced a standard stream"))
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        for number, (name, stream) in enumerate(streams.items()):
            if stream is not None and _is_closed(stream):
                changes.append(Change(f"it closed sys.{name}"))
                stream = open(number, "w" if number else "r", closefd=False, buffering=1)  # noqa: SIM115
            setattr(sys, name, stream)


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except ValueError:  # detached
        return True
