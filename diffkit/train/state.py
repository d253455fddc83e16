"""The JSON state of a checkpoint, compared with an example of what its reader expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .files import fault


def check_state(state: Mapping[str, Any], example: Mapping[str, Any], step: int) -> None:
    """A fault unless `state` has all that `example` has, of the same JSON types; a `step` in it must be `step`.

    Integers and other numbers are one type. A mapping that is empty in the example may hold numbers under any name,
    or null for those that JSON does not have.
    """
    _check(state, example, "state")
    if "step" in example and state["step"] != step:
        raise fault(f"state.step is {str(state['step'])[:40]} in a checkpoint of step {step}")


def _check(state: Mapping[str, Any], example: Mapping[str, Any], path: str) -> None:
    for name, want in example.items():
        where = f"{path}.{name}"
        if name not in state:
            raise fault(f"{where} is missing")
        have = state[name]
        if _kind(have) is not _kind(want):
            raise fault(f"{where} is a {type(have).__name__} where a {type(want).__name__} is expected")
        if isinstance(want, Mapping) and want:
            _check(have, want, where)
        elif isinstance(want, Mapping) and not all(v is None or _kind(v) is float for v in have.values()):
            raise fault(f"{where} holds something else than numbers")


def _kind(value: object) -> type:
    return float if type(value) is int else list if isinstance(value, tuple) else type(value)
