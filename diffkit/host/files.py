"""One-file plugins: a module imported from a path that the user gave, under the name of the file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ..errors import UsageError
from .discovery import Candidate

_current: dict[str, ModuleType] = {}


def candidate(path: str | Path) -> Candidate:
    """The plugin in the file at `path`: `my_schedule.py` is the plugin my-schedule, in the module my_schedule.

    Raises `UsageError` DK012 where there is no such file, or where its name cannot be that of a new module.
    """
    file = Path(path).resolve()
    name = file.stem
    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"{path} is not a Python file", code="DK012", fix="give the path of a .py file")
    if not (name.isidentifier() and name.isascii()):
        raise UsageError(
            f'"{file.name}" cannot be imported', code="DK012", fix="name it with letters, digits and underscores"
        )
    if _is_taken(name, file):
        raise UsageError(f'there already is a module "{name}"', code="DK012", fix=f"rename {file.name}")
    return Candidate(name.replace("_", "-").strip("-").lower(), str(file), path=file)


def import_file(path: Path) -> ModuleType:
    """Runs the file as the module of its stem, so that targets such as "my_schedule:Mine" resolve."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = _current[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem], _current[path.stem]
        raise
    return module


def forget() -> None:
    """Takes the modules of all one-file plugins out of `sys.modules`, so that others may bear their names."""
    while _current:
        name, module = _current.popitem()
        if sys.modules.get(name) is module:
            del sys.modules[name]


def _is_taken(name: str, file: Path) -> bool:
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and Path(spec.origin or "").resolve() != file
