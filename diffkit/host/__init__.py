"""The plugin host: it finds plugins, loads each in isolation, and resolves the names that they register.

Nothing here imports torch or the algebra. Plugin authors need `Entry`, `Kind` and `hookimpl` only.
"""

from .bibliography import bibtex
from .entry import Entry, Kind, hookimpl
from .loader import LoadError, Plugin, Registered
from .registry import Registry, configure, load_file, registry
from .unknown_names import UnknownNameError

__all__ = [
    "Entry",
    "Kind",
    "LoadError",
    "Plugin",
    "Registered",
    "Registry",
    "UnknownNameError",
    "bibtex",
    "configure",
    "hookimpl",
    "load_file",
    "registry",
]
