"""Load one plugin, or one component of it, in isolation: an error of a plugin is kept in its record, and others work.

Each plugin has its own plugin manager. So it is validated alone, its hooks are called alone, and a plugin that
fails is unregistered as a whole when its manager is dropped.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

import pluggy

from ..errors import DiffkitError, PluginError, plain
from . import entry as hooks
from .discovery import Candidate
from .entry import Entry, Kind
from .process_state import Change, SideEffectWarning, kept_state

MAX_HOOK_VALUES = 1000
MAX_IMPORT_SECONDS = 1.0
PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RECIPE_NAME = PLUGIN_NAME
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
API = 1
"""The version of the plugin interface."""
SERVED = tuple(range(max(1, API - 1), API + 1))
Status = Literal["ok", "broken", "off"]
T = TypeVar("T")


@dataclass(frozen=True)
class Contributions:
    """The values that the hooks of one plugin yielded."""

    entries: tuple[Entry, ...] = ()
    kinds: tuple[Kind, ...] = ()
    recipes: tuple[tuple[str, Path], ...] = ()
    laws: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plugin:
    """One plugin. It has contributions only if its `status` is "ok".

    `origin` is the module of its entry point, or its file. `error` is the traceback of a broken plugin, `reason` the
    last line and `code` that of the error; `lost_contributions` is its contributions if it worked, None if it failed
    before they were read.
    `notes` are remarks such as a slow import, or state of the process that it changed. `essential` marks the default
    plugins of diffkit.
    """

    name: str
    distribution: str | None
    version: str | None
    origin: str
    status: Status = "ok"
    essential: bool = False
    api: int | None = None
    folder: Path | None = None
    contributions: Contributions = Contributions()
    lost_contributions: Contributions | None = None
    error: str | None = None
    reason: str | None = None
    code: str | None = None
    notes: tuple[str, ...] = ()
    manager: pluggy.PluginManager | None = field(default=None, repr=False, compare=False)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The components that the plugin registers; empty unless its status is "ok"."""
        return self.contributions.entries

    @property
    def label(self) -> str:
        """The origin of a component in messages: `diffkit`, `diffkit-edm 0.1`, or a file."""
        if self.essential:
            return "diffkit"
        if self.distribution is None:
            return Path(self.origin).name
        return f"{self.distribution} {self.version or ''}".rstrip()

    @property
    def is_file(self) -> bool:
        """Whether the plugin is one file that was loaded by its path."""
        return self.distribution is None and not self.essential and self.origin.endswith(".py")

    def answers_to(self, name: str) -> bool:
        """Return whether `name` means this plugin: its own name, or that of its distribution."""
        return name in (self.name, self.distribution)

    def broken(self, error: BaseException) -> Plugin:
        """Return the plugin marked as broken: without contributions, with the traceback of `error`."""
        return replace(
            self,
            status="broken",
            contributions=Contributions(),
            lost_contributions=None if self.contributions == Contributions() else self.contributions,
            error="".join(traceback.format_exception(error)).rstrip(),
            reason=describe(error),
            code=error.code if isinstance(error, PluginError) else "DK201",
            manager=None,
        )


class LoadError(PluginError):
    """Raised if the class behind a name cannot be used; `traceback` is the error of its plugin, if there is one."""

    code = "DK203"
    traceback: str | None = None


@dataclass(frozen=True)
class Registered:
    """An entry, the plugin that contributes it, and the kind that its class must be of."""

    entry: Entry
    plugin: Plugin
    of: Kind

    @property
    def kind(self) -> str:
        """The kind of component, such as "sampler"."""
        return self.entry.kind

    @property
    def name(self) -> str:
        """The name in recipes; `plugin/name` if two plugins have it."""
        return self.entry.name

    @property
    def qualified(self) -> str:
        """The name with its plugin, `plugin/name`, which is never ambiguous."""
        return f"{self.plugin.name}/{self.entry.name}"

    def load(self) -> type:
        """Import the target. Raises LoadError DK203, which names the plugin, unless it is a class that can be used."""
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
        imported = sys.modules.get(module_name)
        if hasattr(imported, class_name):
            return getattr(imported, class_name)
        changes: list[Change] = []
        try:
            with kept_state(draws=False) as changes:
                module = importlib.import_module(module_name)
                return getattr(module, class_name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failure = self._error(f"{what} cannot be imported from {target} ({describe(error)})", error, class_name)
            raise failure from error
        finally:
            for change in changes:
                message = f'plugin "{self.plugin.name}" ({self.plugin.label}): the import of {target}: {change}'
                warnings.warn(plain(message), SideEffectWarning, stacklevel=2)

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
            fix=f"try every component of it: diffkit check {self.plugin.name}",
            notes=notes,
        )
        error.traceback = "".join(traceback.format_exception(cause)) if cause else None
        return error


def load(candidate: Candidate) -> Plugin:
    """Import a plugin and call its hooks; a plugin that fails is returned with the status "broken"."""
    plugin = Plugin(
        candidate.name,
        candidate.distribution,
        candidate.version,
        candidate.origin,
        essential=candidate.essential,
        folder=candidate.path.parent if candidate.path else None,
    )
    try:
        with kept_state(draws=False) as changes:
            if not PLUGIN_NAME.fullmatch(plugin.name) or plugin.name == "none":
                raise PluginError(f"{plugin.name!r} cannot be the name of a plugin", code="DK201")
            before, started = "torch" in sys.modules, time.perf_counter()
            module = candidate.load()
            notes = _notes(plugin, time.perf_counter() - started, not before and "torch" in sys.modules)
            plugin = replace(plugin, folder=_folder(module), notes=notes, api=interface_version(module))
            manager = _register(module, plugin.name)
            plugin = replace(plugin, manager=manager, contributions=_collect(manager, plugin.name))
        return noted(plugin, changes, "its import")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way, sys.exit included
        return plugin.broken(error)


def noted(plugin: Plugin, changes: Iterable[Change], when: str) -> Plugin:
    """Add what a plugin changed in the process to its notes.

    Args:
        plugin: the plugin.
        changes: what it changed.
        when: the subject of the note, such as "its import".

    Returns:
        The plugin with one more note for each change.

    Raises:
        PluginError: DK201 if a change cannot be put back.
    """
    for change in changes:
        if change.lasting:
            raise PluginError(f"{when}: {change}", code="DK201", fix=f"disable it with -p no:{plugin.name}")
    return replace(plugin, notes=(*plugin.notes, *(f"{when}: {change}" for change in changes)))


def call(manager: pluggy.PluginManager, plugin: str, hook: str, **arguments: object) -> list[object]:
    """Call one hook of one plugin; with DIFFKIT_TRACE_PLUGINS set, print the time that it takes to stderr.

    Args:
        manager: the manager of the plugin.
        plugin: the name of the plugin, for the trace.
        hook: the name of the hook.
        arguments: the arguments of the hook.

    Returns:
        The results of the hook, at most one.
    """
    started = time.perf_counter()
    try:
        results: list[object] = getattr(manager.hook, hook)(**arguments)
        return results
    finally:
        if os.environ.get("DIFFKIT_TRACE_PLUGINS"):
            spent = 1000 * (time.perf_counter() - started)
            print(plain(f"diffkit: {plugin}: {hook}({', '.join(arguments)}) {spent:.1f} ms"), file=sys.stderr)


def implements(manager: pluggy.PluginManager, hook: str) -> bool:
    """Return whether the plugin of this manager implements `hook`."""
    return bool(getattr(manager.hook, hook).get_hookimpls())


def interface_version(module: ModuleType) -> int:
    """Return the interface version of a plugin module; raises PluginError DK204 if this diffkit does not support it."""
    version: object = getattr(module, "DIFFKIT_API", 1)
    if type(version) is not int:
        message = f"DIFFKIT_API of {module.__name__} is {version!r}, not a whole number"
        raise PluginError(message, code="DK204", fix=f"write DIFFKIT_API = {API} in the plugin module")
    if version in SERVED:
        return version
    package = module.__name__.partition(".")[0].replace("_", "-")
    newer, older = ("diffkit", package) if version > API else (package, "diffkit")
    raise PluginError(
        f"{module.__name__} is built for version {version} of the plugin interface; this diffkit supports "
        f"{' and '.join(str(number) for number in SERVED)}",
        code="DK204",
        fix=f"pip install --upgrade {newer}, or an older {older}",
    )


def describe(error: BaseException) -> str:
    """Return one line for an error of any type."""
    if isinstance(error, DiffkitError):
        return str(error)
    kind = type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{kind}: {error.name}"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the message is computed by code of the plugin
        text = "(its message cannot be shown)"
    first = next((line for line in text.splitlines() if line.strip()), "")
    return f"{kind}: {first}" if first else kind


def _register(module: ModuleType, name: str) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("diffkit")
    manager.add_hookspecs(hooks)
    known = sorted(hook for hook in vars(manager.hook) if hook.startswith("diffkit_"))
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split()), code="DK201") from error
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        for implementation in caller.get_hookimpls():
            if not caller.has_spec() and not implementation.optionalhook:
                near = difflib.get_close_matches(caller.name, known, 1)
                hint = f', did you mean "{near[0]}"?' if near else ""
                raise PluginError(f'there is no hook "{caller.name}"{hint}', code="DK201", choices=known)
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginError(
                    f"{caller.name} is a hook wrapper, but a plugin cannot wrap the hooks of other plugins",
                    code="DK201",
                )
    marked = {caller.name for caller in callers}
    for attribute, value in list(vars(module).items()):
        if attribute.startswith("diffkit_") and callable(value) and attribute not in marked:
            raise PluginError(f"{attribute} of {module.__name__} is not marked with @hookimpl", code="DK201")
    if marked.isdisjoint(known):
        raise PluginError(f"{module.__name__} implements no hook of diffkit", code="DK201", choices=known)
    return manager


def _collect(manager: pluggy.PluginManager, name: str) -> Contributions:
    kinds = tuple(_values(manager, name, "diffkit_kinds", Kind))
    entries = tuple(_values(manager, name, "diffkit_components", Entry))
    _require_unique("kind", [kind.name for kind in kinds])
    _require_unique("component", [f"{entry.kind} {entry.name}" for entry in entries])
    recipes: list[tuple[str, Path]] = []
    for folder in _values(manager, name, "diffkit_recipes", Path):
        if not (folder.is_absolute() and folder.is_dir()):
            raise PluginError(f"diffkit_recipes: {folder} is not an absolute path of a directory", code="DK201")
        recipes += [(file.stem, file) for file in sorted(folder.glob("*.yaml"))]
    for recipe, file in recipes:
        if not RECIPE_NAME.fullmatch(recipe):
            raise PluginError(f"diffkit_recipes: {file.name} is not a name for a recipe", code="DK201")
    _require_unique("recipe", [recipe for recipe, _ in recipes])
    laws = tuple(_values(manager, name, "diffkit_laws", str))
    for module in laws:
        if not MODULE_NAME.fullmatch(module):
            raise PluginError(f"diffkit_laws: {module!r} is not the dotted name of a module", code="DK201")
    return Contributions(entries, kinds, tuple(recipes), laws)


def _values(manager: pluggy.PluginManager, plugin: str, hook: str, wanted: type[T]) -> Iterator[T]:
    if not implements(manager, hook):
        return
    results = call(manager, plugin, hook)
    must = f"it must yield {wanted.__name__} values"
    if not results:
        raise PluginError(f"{hook} returned nothing: {must}", code="DK201")
    (items,) = results
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise PluginError(f"{hook} returned a {type(items).__name__}: {must}", code="DK201")
    for count, item in enumerate(islice(items, MAX_HOOK_VALUES + 1)):
        if not isinstance(item, wanted):
            raise PluginError(f"{hook} yielded a {type(item).__name__}, not a {wanted.__name__}", code="DK201")
        if count == MAX_HOOK_VALUES:
            raise PluginError(f"{hook} yielded more than {MAX_HOOK_VALUES} values", code="DK201")
        yield item


def _require_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PluginError(f"the {what} {twice[0]} is yielded twice", code="DK201")


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else None


def _notes(plugin: Plugin, seconds: float, torch: bool) -> tuple[str, ...]:
    notes = []
    if seconds > MAX_IMPORT_SECONDS:
        notes.append(f"its import took {seconds:.1f} s, which delays every command")
    if torch and plugin.distribution is not None:
        notes.append("its plugin module imports torch: move the components to modules of their own")
    return tuple(notes)
