"""Runs: train, sample, evaluate and report into a run directory. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .import_weights import run_from_weights as run_from_weights
    from .pipeline import run as run
    from .trained import Run as Run
    from .trained import open_run as open_run


_WHERE = {"run_from_weights": "import_weights", "Run": "trained", "open_run": "trained", "run": "pipeline"}
__all__ = ["Run", "open_run", "run", "run_from_weights"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
