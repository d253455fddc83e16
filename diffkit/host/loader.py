"""Loading one plugin in isolation: whatever it does wrong, the host goes on and remembers why.

Each plugin gets a plugin manager of its own. So it is validated alone, its hooks are called alone, and a plugin
that fails is unregistered whole by forgetting its manager.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

import pluggy

from ..errors import DiffkitError, PluginError
from . import hookspecs
from .discovery import Candidate
from .entry import Entry, Kind

MOST = 1000
SLOW = 1.0
PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RECIPE_NAME = PLUGIN_NAME
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
T = TypeVar("T")


def load(candidate: Candidate) -> Plugin:
    """The plugin, or what is left of it: a `Plugin` whose status is "broken" and which offers nothing."""
    plugin = Plugin(
        candidate.name,
        candidate.distribution,
        candidate.version,
        candidate.origin,
        essential=candidate.essential,
        folder=candidate.path.parent if candidate.path else None,
    )
    try:
        with output_to_stderr():
            if not PLUGIN_NAME.fullmatch(plugin.name) or plugin.name == "none":
                raise PluginError(f"{plugin.name!r} cannot be the name of a plugin", code="DK201")
            before, started = "torch" in sys.modules, time.perf_counter()
            module = candidate.load()
            notes = _notes(plugin, time.perf_counter() - started, not before and "torch" in sys.modules)
            plugin = replace(plugin, folder=_folder(module), notes=notes, api=stated(module))
            manager = _register(module, plugin.name)
            plugin = replace(plugin, manager=manager, offer=_collect(manager, plugin.name))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way, sys.exit included
        return plugin.broken(error)
    return plugin


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """What a plugin prints while it is imported or asked goes to stderr: stdout may be JSON that another reads."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def call(manager: pluggy.PluginManager, plugin: str, hook: str, **arguments: object) -> list[object]:
    """Calls one hook of one plugin; with DIFFKIT_TRACE_PLUGINS set, says so on stderr."""
    started = time.perf_counter()
    try:
        results: list[object] = getattr(manager.hook, hook)(**arguments)
        return results
    finally:
        if os.environ.get("DIFFKIT_TRACE_PLUGINS"):
            spent = 1000 * (time.perf_counter() - started)
            print(f"diffkit: {plugin}: {hook}({', '.join(arguments)}) {spent:.1f} ms", file=sys.stderr)


def implements(manager: pluggy.PluginManager, hook: str) -> bool:
    """Whether the plugin of this manager implements `hook`."""
    return bool(getattr(manager.hook, hook).get_hookimpls())


def _register(module: ModuleType, name: str) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("diffkit")
    manager.add_hookspecs(hookspecs)
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
                raise PluginError(f"{caller.name} is a wrapper, and no other plugin may be wrapped", code="DK201")
    marked = {caller.name for caller in callers}
    for attribute, value in list(vars(module).items()):
        if attribute.startswith("diffkit_") and callable(value) and attribute not in marked:
            raise PluginError(f"{attribute} of {module.__name__} is not marked with @hookimpl", code="DK201")
    if marked.isdisjoint(known):
        raise PluginError(f"{module.__name__} implements no hook of diffkit", code="DK201", choices=known)
    return manager


def _collect(manager: pluggy.PluginManager, name: str) -> Contributions:
    kinds = tuple(_items(manager, name, "diffkit_kinds", Kind))
    entries = tuple(_items(manager, name, "diffkit_components", Entry))
    _once("kind", [kind.name for kind in kinds])
    _once("component", [f"{entry.kind} {entry.name}" for entry in entries])
    recipes: list[tuple[str, Path]] = []
    for folder in _items(manager, name, "diffkit_recipes", Path):
        if not (folder.is_absolute() and folder.is_dir()):
            raise PluginError(f"diffkit_recipes: {folder} is not an absolute path of a directory", code="DK201")
        recipes += [(file.stem, file) for file in sorted(folder.glob("*.yaml"))]
    for recipe, file in recipes:
        if not RECIPE_NAME.fullmatch(recipe):
            raise PluginError(f"diffkit_recipes: {file.name} is not a name for a recipe", code="DK201")
    _once("recipe", [recipe for recipe, _ in recipes])
    laws = tuple(_items(manager, name, "diffkit_laws", str))
    for module in laws:
        if not MODULE_NAME.fullmatch(module):
            raise PluginError(f"diffkit_laws: {module!r} is not the dotted name of a module", code="DK201")
    return Contributions(entries, kinds, tuple(recipes), laws)


def _items(manager: pluggy.PluginManager, plugin: str, hook: str, wanted: type[T]) -> Iterator[T]:
    if not implements(manager, hook):
        return
    results = call(manager, plugin, hook)
    if not results:
        raise PluginError(f"{hook} returned nothing: it must yield {wanted.__name__} values", code="DK201")
    (items,) = results
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise PluginError(
            f"{hook} returned a {type(items).__name__}: it must yield {wanted.__name__} values", code="DK201"
        )
    for count, item in enumerate(islice(items, MOST + 1)):
        if not isinstance(item, wanted):
            raise PluginError(f"{hook} yielded a {type(item).__name__}, not a {wanted.__name__}", code="DK201")
        if count == MOST:
            raise PluginError(f"{hook} yielded more than {MOST} values", code="DK201")
        yield item


def _once(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PluginError(f"the {what} {twice[0]} is offered twice", code="DK201")


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else None


def _notes(plugin: Plugin, seconds: float, torch: bool) -> tuple[str, ...]:
    notes = []
    if seconds > SLOW:
        notes.append(f"its import took {seconds:.1f} s: every command waits for that")
    if torch and plugin.distribution is not None:
        notes.append("its plugin module imports torch: move the components to modules of their own")
    return tuple(notes)


Status = Literal["ok", "broken", "off"]


@dataclass(frozen=True)
class Contributions:
    """What the hooks of one plugin yielded."""

    entries: tuple[Entry, ...] = ()
    kinds: tuple[Kind, ...] = ()
    recipes: tuple[tuple[str, Path], ...] = ()
    laws: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plugin:
    """One plugin. Only where `status` is "ok" does it offer anything.

    `origin` is the module of its entry point, or the file it came from. `error` is the traceback of a broken plugin
    and `reason` its last line; `withheld` is what it would have offered, None where it failed too early to say.
    `notes` are remarks such as a slow import. `essential` marks the defaults of diffkit itself.
    """

    name: str
    distribution: str | None
    version: str | None
    origin: str
    status: Status = "ok"
    essential: bool = False
    api: int | None = None
    folder: Path | None = None
    offer: Contributions = Contributions()
    lost_contributions: Contributions | None = None
    error: str | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    manager: pluggy.PluginManager | None = field(default=None, repr=False, compare=False)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The components that it registers; none unless its status is "ok"."""
        return self.offer.entries

    @property
    def label(self) -> str:
        """How messages name where a component comes from: `diffkit`, `diffkit-edm 0.1`, or a file."""
        if self.essential:
            return "diffkit"
        if self.distribution is None:
            return Path(self.origin).name
        return f"{self.distribution} {self.version or ''}".rstrip()

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this plugin: its own name, or that of its distribution."""
        return name in (self.name, self.distribution)

    def broken(self, error: BaseException) -> Plugin:
        """The same plugin, unregistered whole, with the traceback kept."""
        return replace(
            self,
            status="broken",
            offer=Contributions(),
            lost_contributions=None if self.offer == Contributions() else self.offer,
            error="".join(traceback.format_exception(error)).rstrip(),
            reason=describe(error),
            manager=None,
        )


def describe(error: BaseException) -> str:
    """One line for an error of any kind."""
    if isinstance(error, DiffkitError):
        return str(error)
    kind = type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{kind}: {error.name}"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the message is a plugin's code too
        text = "(its message cannot be shown)"
    first = next((line for line in text.splitlines() if line.strip()), "")
    return f"{kind}: {first}" if first else kind


API = 1
FIRST = 1
SERVED = tuple(range(max(FIRST, API - 1), API + 1))


def stated(module: ModuleType) -> int:
    """The version that a plugin module states; raises `PluginError` DK204 where the core does not serve it."""
    version: object = getattr(module, "DIFFKIT_API", FIRST)
    if type(version) is not int:
        raise PluginError(
            f"DIFFKIT_API of {module.__name__} is {version!r}, not a whole number",
            code="DK204",
            fix=f"write DIFFKIT_API = {API} in the plugin module",
        )
    if version in SERVED:
        return version
    served = " and ".join(str(number) for number in SERVED)
    package = module.__name__.partition(".")[0].replace("_", "-")
    fix = (
        f"pip install --upgrade diffkit, or an older {package}"
        if version > API
        else f"pip install --upgrade {package}, or an older diffkit"
    )
    raise PluginError(
        f"{module.__name__} is built for version {version} of the plugin interface; this diffkit serves {served}",
        code="DK204",
        fix=fix,
    )
