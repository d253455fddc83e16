"""Many initial-value problems at once, each solved by scipy with an error control of its own.

`scipy.integrate.solve_ivp` has one step size for all numbers that it is given: as one problem, the samples of a batch
would feel each other. Here each row is a problem in a thread of its own, and the threads move in lock-step: one
evaluation of the field answers what all of them ask. A row's result is that of solving it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from diffkit import DivergedError

Array = NDArray[np.float64]
Field = Callable[[Array, Array], Array]
Method = Literal["RK45", "RK23", "DOP853"]


class _CancelledError(Exception):
    """Another row, or the field, has failed."""


def solve(
    field: Field, y: Array, start: float, end: float, *, method: Method = "RK45", rtol: float, atol: float
) -> Array:
    """dy/dt = field(t, y) from `start` to `end`; y: (B, K), field: t (B,), y (B, K) -> (B, K).

    The field is always asked for all rows; those of finished ones are repeated, and ignored.
    Raises DivergedError where a step size falls below what floats can tell apart, and whatever the field raises.
    """
    rows = len(y)
    asked: SimpleQueue[tuple[int, float, Array] | None] = SimpleQueue()
    answers: list[SimpleQueue[Array | None]] = [SimpleQueue() for _ in range(rows)]

    def run(row: int) -> Any:
        def ask(t: float, state: Array) -> Array:
            asked.put((row, t, state))
            answer = answers[row].get()
            if answer is None:
                raise _CancelledError
            return answer

        try:
            return solve_ivp(ask, (start, end), y[row], method=method, rtol=rtol, atol=atol)
        finally:
            asked.put(None)

    with ThreadPoolExecutor(rows) as pool:
        runs = [pool.submit(run, row) for row in range(rows)]
        try:
            _serve(field, np.full(rows, start), y.copy(), asked, answers)
        finally:
            for answer in answers:
                answer.put(None)
    found = [one.result() for one in runs]
    for row, one in enumerate(found):
        if not one.success:
            raise DivergedError(
                f"the ODE solver gave up on sample {row} of the batch: {one.message}",
                code="DK511",
                fix="raise rtol and atol, or use a sampler of fixed steps (ddim)",
            )
    return np.stack([one.y[:, -1] for one in found])


def _serve(
    field: Field,
    t: Array,
    y: Array,
    asked: SimpleQueue[tuple[int, float, Array] | None],
    answers: list[SimpleQueue[Array | None]],
) -> None:
    """Answer what the rows ask, until none does: each of those that run says one thing in each round."""
    waiting = list(range(len(y)))
    while waiting:
        told = [asked.get() for _ in waiting]
        waiting = []
        for one in told:
            if one is not None:
                row, t[row], y[row] = one
                waiting.append(row)
        if waiting:
            slopes = field(t, y)
            for row in waiting:
                answers[row].put(slopes[row])
