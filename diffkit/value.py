"""Values: components that are equal where their options are, so that what follows from them may be remembered."""

from __future__ import annotations

from typing import Any


def is_value(component: Any) -> bool:
    """Whether the component is a frozen dataclass, hashable by its fields."""
    parameters = getattr(type(component), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen) and type(component).__hash__ is not None
