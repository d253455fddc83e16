"""Solve many initial-value problems at once, each by scipy with its own error control.

`scipy.integrate.solve_ivp` uses one step size for all numbers of a problem: solved as one problem, the samples of a
batch would depend on each other. Here each row is a problem in its own thread, and the threads move in lock-step: one
evaluation of the field serves all of them. The result of a row does not depend on the other rows.
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
    """Raised in a row if another row, or the field, failed."""


def solve(
    field: Field, y: Array, start: float, end: float, *, method: Method = "RK45", rtol: float, atol: float
) -> Array:
    """Solve dy/dt = field(t, y) from `start` to `end`.

    Args:
        field: t (B,), y (B, K) -> (B, K). Each call evaluates all rows; results of finished rows are ignored.
        y: initial values (B, K).
        start: initial time of all rows.
        end: final time of all rows.
        method: method of scipy's solve_ivp; default "RK45".
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        The values at `end`, (B, K).

    Raises:
        DivergedError: DK511, a step size is below the spacing of floats. Errors of the field pass through.
    """
    rows = len(y)
    requests: SimpleQueue[tuple[int, float, Array] | None] = SimpleQueue()
    answers: list[SimpleQueue[Array | None]] = [SimpleQueue() for _ in range(rows)]

    def run(row: int) -> Any:
        def evaluate(t: float, state: Array) -> Array:
            requests.put((row, t, state))
            answer = answers[row].get()
            if answer is None:
                raise _CancelledError
            return answer

        try:
            return solve_ivp(evaluate, (start, end), y[row], method=method, rtol=rtol, atol=atol)
        finally:
            requests.put(None)

    with ThreadPoolExecutor(rows) as pool:
        runs = [pool.submit(run, row) for row in range(rows)]
        try:
            _serve(field, np.full(rows, start), y.copy(), requests, answers)
        finally:
            for answer in answers:
                answer.put(None)
    found = [one.result() for one in runs]
    for row, one in enumerate(found):
        if not one.success:
            raise DivergedError(
                f"the ODE solver failed for sample {row} of the batch: {one.message}",
                code="DK511",
                fix="raise rtol and atol, or use a sampler of fixed steps (ddim)",
            )
    return np.stack([one.y[:, -1] for one in found])


def _serve(
    field: Field,
    t: Array,
    y: Array,
    requests: SimpleQueue[tuple[int, float, Array] | None],
    answers: list[SimpleQueue[Array | None]],
) -> None:
    """Evaluate the field until all rows are finished; each running row sends one request, or None, per round."""
    waiting = list(range(len(y)))
    while waiting:
        received = [requests.get() for _ in waiting]
        waiting = []
        for one in received:
            if one is not None:
                row, t[row], y[row] = one
                waiting.append(row)
        if waiting:
            slopes = field(t, y)
            for row in waiting:
                answers[row].put(slopes[row])
