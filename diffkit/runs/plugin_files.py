"""Plugins in files that a run was made with: the run keeps a copy of each, and never loads it by itself."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, PluginError, plain
from ..host import registry
from ..recipe.signature import Resolved
from ..recipe.spec import Recipe
from ..storage.atomic import read_bounded
from ..storage.run_directory import ENVIRONMENT, RunDirectory

FOLDER, FILES = "plugins", "files"
MAX_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}\.py")


def read_files(recipe: Recipe) -> dict[str, bytes]:
    """Return the content of the plugin files that a recipe uses, by file name."""
    used = {name for component in recipe.components for name in _plugins(component)}
    paths = [Path(one.origin) for one in registry().plugins if one.name in used and one.is_file]
    return {path.name: read_bounded(path, MAX_BYTES) for path in paths}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def keep_files(directory: RunDirectory, files: dict[str, bytes]) -> None:
    """Write copies into a run directory. Raises ResourceError if they cannot be written."""
    for name, content in files.items():
        directory.write_bytes(f"{FOLDER}/{name}", content)


def require_files(directory: RunDirectory) -> None:
    """Require that the plugin files of a run are loaded, and warn if one has changed since.

    Raises:
        PluginError: DK207, a file is not loaded. No code of the run directory is executed.
    """
    recorded: object = {}
    with contextlib.suppress(CheckpointError):  # without this file, errors name the unknown components instead
        recorded = directory.read_json(ENVIRONMENT).get(FILES)
    for name, digest in recorded.items() if isinstance(recorded, dict) else ():
        if not _NAME.fullmatch(name):
            continue
        copy = directory.path / FOLDER / name
        plugin = name.removesuffix(".py").replace("_", "-").strip("-").lower()
        loaded = next((one for one in registry().plugins if one.name == plugin and one.status == "ok"), None)
        if loaded is None:
            raise PluginError(
                f"{directory.path} was made with the plugin file {name}, which is not loaded",
                code="DK207",
                fix=f"pass the file: -P {name}; in Python: diffkit.host.load_file({name!r})",
                notes=[f"the run keeps a copy: {copy}; read it first, because it is code"],
            )
        if loaded.is_file and digests({name: read_bounded(Path(loaded.origin), MAX_BYTES)})[name] != digest:
            message = f"{loaded.origin} has changed since {directory.path} was made; see {copy}"
            warnings.warn(plain(message), stacklevel=2)


def _plugins(component: Resolved) -> Iterator[str]:
    """Yield the plugins of a component and of its own components."""
    yield component.spec.plugin
    for value in component.arguments.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Resolved):
                yield from _plugins(one)
