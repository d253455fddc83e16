"""Contestants that run the code of another checkout of diffkit, so that one run compares two versions.

Each contestant has a process of its own (turns.py). `in_checkout` runs first in that process: it puts the checkout and
its packages first on the path and forgets the modules that were imported from elsewhere.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from turns import Work


def in_checkout(checkout: Path, module: str, function: str, *arguments: object) -> Work:
    """Import `module` of `benchmarks/` with diffkit taken from `checkout`, and return what `function` builds.

    Args:
        checkout: root of a working tree of diffkit.
        module: name of a module in the `benchmarks` folder; the file of the checkout is used if it has one.
        function: name of a function in that module that returns the work of a contestant.
        *arguments: passed to the function; plain values that both versions understand.

    Returns:
        The work of the contestant, by name.
    """
    root = checkout.resolve()
    here = Path(__file__).parent
    for name in [n for n in sys.modules if n.split(".")[0].startswith("diffkit") or n in ("contestants", module)]:
        del sys.modules[name]
    sys.path[:0] = [str(root / "benchmarks"), str(root), *(str(p) for p in sorted((root / "plugins").glob("*/src")))]
    if not (root / "benchmarks" / f"{module}.py").is_file():
        sys.path.append(str(here))
    found = importlib.import_module("diffkit")
    if not str(found.__file__).startswith(str(root)):
        raise RuntimeError(f"diffkit comes from {found.__file__}, not from {root}")
    work: Work = getattr(importlib.import_module(module), function)(*arguments)
    return work
