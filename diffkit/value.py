"""Values: components that are equal where their options are, so that what follows from them may be remembered."""

from __future__ import annotations

from functools import cache
from typing import Any


def is_value(component: Any) -> bool:
    """Whether the component is a frozen dataclass, hashable by its fields."""
    return _makes_values(type(component))  # type: ignore[arg-type]


@cache
def _makes_values(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen) and kind.__hash__ is not None
