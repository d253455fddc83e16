"""The registry of this process: made on first use, after the switches were read."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PluginError
from . import files
from .plugin import Plugin
from .registry import Registry
from .switches import Switches


@dataclass
class _State:
    """`making` tells a plugin module that asks for the registry while it is being made."""

    switches: Switches | None = None
    registry: Registry | None = None
    making: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


_state = _State()


def configure(plugins: str | Iterable[str] | None = None, without: Iterable[str] = ()) -> None:
    """Sets the switches: `plugins` "a,b" pins the set, "none" loads the defaults only, None leaves it to
    DIFFKIT_PLUGINS; `without` drops single ones. A registry made before is forgotten, one-file plugins with it.

    Raises `UsageError` DK011 here for a text that means nothing, on first use for a name that is not installed.
    """
    switches = Switches.read(plugins, without)
    with _state.lock:
        _state.switches, _state.registry = switches, None
        files.forget()


def registry() -> Registry:
    """The registry of this process."""
    with _state.lock:
        if _state.making:
            raise PluginError("a plugin module asks for the registry while it is being loaded", code="DK201")
        if _state.registry is None:
            _state.making = True
            try:
                _state.registry = Registry.discover(_state.switches or Switches.read())
            finally:
                _state.making = False
        return _state.registry


def load_file(path: str | Path) -> Plugin:
    """Registers the one-file plugin at `path`, which the user named, as if it were installed.

    Raises `UsageError` DK012 where it is no such file, and `PluginError` DK201 where it is broken: then it is
    listed like any other broken plugin, and the traceback stands in the notes.
    """
    plugin = registry().add(files.candidate(path))
    if plugin.status == "broken":
        raise PluginError(
            f"{path} failed to load ({plugin.reason})", code="DK201", notes=[plugin.error] if plugin.error else []
        )
    return plugin
