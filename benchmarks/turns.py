"""Contestants in processes of their own, of which one works at a time, so that none inherits another's memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

Work = Mapping[str, Callable[[], object]]
"""What a contestant can do, by name."""


class Turns:
    """`builders` (picklable) make the work of each contestant, in its own process with so many threads.

    Use as a context; `measure` asks each in turn, for so many rounds.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Work]], threads: int, *, cpu_time: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        for name, builder in builders.items():
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, builder, threads, cpu_time), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes[name] = mine
            self._processes.append(process)
            self._ask(name, None)  # built one after the other

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()

    def measure(self, what: str, inner: int, rounds: int) -> dict[str, list[float]]:
        """Seconds of one call of `what`, as the mean of `inner`, for each contestant and round."""
        times: dict[str, list[float]] = {name: [] for name in self._pipes}
        for _ in range(rounds + 1):
            for name, spent in times.items():
                spent.append(self._ask(name, (what, inner)))
        return {name: spent[1:] for name, spent in times.items()}  # the first round is practice

    def _ask(self, name: str, order: tuple[str, int] | None) -> Any:
        if order is not None:
            self._pipes[name].send(order)
        try:
            return self._pipes[name].recv()
        except EOFError:
            raise RuntimeError(f"{name} has failed; its error is above") from None


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, float]:
    """How many times as long as `base` each took: the median over the rounds, in which all met the same machine."""
    return {
        name: statistics.median(a / b for a, b in zip(spent, times[base], strict=True)) for name, spent in times.items()
    }


def _serve(pipe: Connection, builder: Callable[[], Work], threads: int, cpu_time: bool) -> None:
    torch.set_num_threads(threads)
    clock = time.process_time if cpu_time else time.perf_counter
    work = builder()
    pipe.send(0.0)
    while True:
        try:
            what, inner = pipe.recv()
        except (EOFError, OSError):
            return
        _wait()
        began = clock()
        for _ in range(inner):
            work[what]()
        _wait()
        pipe.send((clock() - began) / inner)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
