"""The plugin host: what plugins are, how they are found and isolated, and what their names resolve to.

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
