"""A component that a plugin registered: a name until it is needed, then a class."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from dataclasses import dataclass

from ..errors import PluginError
from .entry import Entry, Kind
from .loader import output_to_stderr
from .plugin import Plugin, describe


class LoadError(PluginError):
    """The class behind a name cannot be used; `traceback` is the text of what its plugin raised, if it did."""

    code = "DK203"
    traceback: str | None = None


@dataclass(frozen=True)
class Registered:
    """An entry, the plugin it comes from, and the kind that its class must be of."""

    entry: Entry
    plugin: Plugin
    of: Kind

    @property
    def kind(self) -> str:
        """The kind of component, such as "sampler"."""
        return self.entry.kind

    @property
    def name(self) -> str:
        """The name in recipes; `plugin/name` where two plugins offer it."""
        return self.entry.name

    @property
    def qualified(self) -> str:
        """`plugin/name`, which is never ambiguous."""
        return f"{self.plugin.name}/{self.entry.name}"

    def load(self) -> type:
        """Imports the target. Raises `LoadError` DK203, naming the plugin, unless it is a class that can be used."""
        base = self._import(self.of.base, f'the base class of kind "{self.kind}"')
        found = self._import(self.entry.target, f'{self.kind} "{self.name}"')
        if not isinstance(base, type):
            raise self._error(f"the base class {self.of.base} of kind {self.kind} is not a class")
        if not isinstance(found, type):
            raise self._error(f"{self.entry.target} is a {type(found).__name__}, not a class")
        if not issubclass(found, base):
            raise self._error(f"{self.entry.target} does not derive from {self.of.base}")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise self._error(f"{self.entry.target} is abstract: it does not define {missing}")
        return found

    def _import(self, target: str, what: str) -> object:
        module_name, _, class_name = target.partition(":")
        try:
            with output_to_stderr():
                module = importlib.import_module(module_name)
                return getattr(module, class_name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failure = self._error(f"{what} cannot be imported from {target} ({describe(error)})", error, class_name)
            raise failure from error

    def _error(self, message: str, cause: BaseException | None = None, wanted: str = "") -> LoadError:
        notes = []
        if isinstance(cause, AttributeError) and cause.name == wanted:
            notes += [f"the module has {near}" for near in difflib.get_close_matches(wanted, dir(cause.obj), 1)]
        frames = traceback.extract_tb(cause.__traceback__) if cause else []
        theirs = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
        if theirs:
            notes.append(f"raised at {theirs[-1].filename}:{theirs[-1].lineno}")
        error = LoadError(
            f'plugin "{self.plugin.name}" ({self.plugin.label}): {message}',
            fix=f"diffkit check {self.plugin.name} tries every component of it",
            notes=notes,
        )
        error.traceback = "".join(traceback.format_exception(cause)) if cause else None
        return error
