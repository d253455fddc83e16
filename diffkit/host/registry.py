"""The registry: every plugin that was found, and every name that those which work offer."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PluginError
from . import discovery, unknown_names
from .bibliography import bibtex
from .discovery import DEFAULTS, Candidate, candidates
from .entry import KINDS, Kind
from .loader import Plugin, Registered, call, implements, load, output_to_stderr
from .switches import Switches

if TYPE_CHECKING:
    import click


class Registry:
    """What can be named. Nothing here imports a component before `Registered.load` does."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._settle(plugins)

    @classmethod
    def discover(cls, switches: Switches | None = None, extra: Sequence[Candidate] = ()) -> Registry:
        """Loads the defaults, the installed plugins that the switches let through, and one-file plugins (`extra`).

        Raises `UsageError` DK011 where a switch names what is not installed, and never for what a plugin does.
        """
        switches = switches or Switches()
        found = candidates()
        switches.verify({name for one in found for name in (one.name, one.distribution) if name}, DEFAULTS)
        plugins: list[Plugin] = []
        for candidate in [*found, *extra]:
            names = (candidate.name, candidate.distribution)
            optional = not candidate.essential and candidate.path is None
            disabled_reason = switches.disabled_reason(names) if optional else None
            plugins.append(_switched_off(candidate, disabled_reason) if disabled_reason else _admit(candidate, plugins))
        return cls(plugins)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """Every plugin that was found: loaded, broken or off."""
        return self._plugins

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of components by name."""
        return dict(self._kinds)

    def entries(self, kind: str | None = None) -> tuple[Registered, ...]:
        """What is registered, of one kind or of all. Raises `UsageError` DK013 for an unknown kind."""
        if kind is not None and kind not in self._kinds:
            raise unknown_names.no_kind(kind, self._kinds)
        return tuple(one for one in self._entries if kind in (None, one.kind))

    def has(self, kind: str, name: str) -> bool:
        """Whether some plugin that works offers the name."""
        return any((one.kind, one.name) == (kind, name) for one in self._entries)

    def find(self, kind: str, name: str) -> Registered:
        """The one component that `name` or `plugin/name` means.

        Raises `PluginError` where the plugin that has it is broken, off or not installed (DK201, DK205) or where
        several have it (DK202), and `UnknownNameError`, a `RecipeError` DK102, where no plugin is known to.
        """
        prefix, _, bare = name.rpartition("/")
        found = [one for one in self.entries(kind) if one.name == bare]
        if prefix:
            found = [one for one in found if one.plugin.answers_to(prefix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise unknown_names.ambiguous(kind, name, found)
        if not prefix:
            raise unknown_names.no_name(self._plugins, self._entries, kind, name)
        owner = self._working(prefix)
        raise (
            unknown_names.no_name(self._plugins, self._entries, kind, bare, owner)
            if owner
            else unknown_names.no_plugin(self._plugins, prefix, f'{kind} "{name}"')
        )

    def recipes(self) -> dict[str, Path]:
        """Built-in recipes by name. A name that a default has is the default's; one that several other plugins have
        stands as `plugin/name` only."""
        offered = [(plugin, name, path) for plugin in self._plugins for name, path in plugin.contributions.recipes]
        names = [name for _, name, _ in offered]
        reserved = {name for plugin, name, _ in offered if plugin.essential}
        free = {name for name in names if names.count(name) == 1}
        return {
            name if plugin.essential or (name in free and name not in reserved) else f"{plugin.name}/{name}": path
            for plugin, name, path in offered
        }

    def law_modules(self) -> tuple[tuple[str, str], ...]:
        """(plugin, dotted name) of each module in which a working plugin registers laws of its components."""
        return tuple((plugin.name, module) for plugin in self._plugins for module in plugin.contributions.laws)

    def why(self, name: str) -> str:
        """What is to be known about a plugin: the traceback of a broken one, the switch that holds one off, notes.

        Raises `PluginError` DK205 where no plugin has this name.
        """
        plugins = [plugin for plugin in self._plugins if plugin.answers_to(name)]
        if not plugins:
            raise unknown_names.no_plugin(self._plugins, name, "diffkit plugins --why")
        return "\n\n".join(_account(plugin) for plugin in plugins)

    def bibtex(self, one: Registered) -> str | None:
        """The BibTeX entry of the paper behind a component; None where it names none."""
        return bibtex(one.entry.reference, one.plugin) if one.entry.reference else None

    def commands(self, group: click.Group) -> None:
        """Lets plugins add their commands; one that raises, or replaces or removes a command, is broken and undone."""
        for index in range(len(self._plugins)):
            plugin = self._plugins[index]
            if plugin.manager is None or not implements(plugin.manager, "diffkit_commands"):
                continue
            before = dict(group.commands)
            try:
                with output_to_stderr():
                    call(plugin.manager, plugin.name, "diffkit_commands", group=group)
                changed = sorted(name for name, command in before.items() if group.commands.get(name) is not command)
                if changed:
                    raise PluginError(f'the command "{changed[0]}" is taken', code="DK201")
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way, sys.exit included
                group.commands.clear()
                group.commands.update(before)
                self._settle([*self._plugins[:index], plugin.broken(error), *self._plugins[index + 1 :]])

    def add(self, candidate: Candidate) -> Plugin:
        """Loads one more plugin, a file, through the same door as all others."""
        self._settle([*self._plugins, _admit(candidate, self._plugins)])
        return self._plugins[-1]

    def _working(self, name: str) -> Plugin | None:
        return next((plugin for plugin in self._plugins if plugin.status == "ok" and plugin.answers_to(name)), None)

    def _settle(self, plugins: Sequence[Plugin]) -> None:
        self._plugins = resolve_conflicts(plugins)
        kinds = [*KINDS, *(kind for plugin in self._plugins for kind in plugin.contributions.kinds)]
        self._kinds = {kind.name: kind for kind in kinds}
        self._entries = tuple(
            Registered(entry, plugin, self._kinds[entry.kind]) for plugin in self._plugins for entry in plugin.entries
        )


def _admit(candidate: Candidate, present: Sequence[Plugin]) -> Plugin:
    owner = next((plugin for plugin in present if plugin.name == candidate.name), None)
    if owner is not None and candidate.fault is None:
        taken = f'the name "{candidate.name}" is taken by {owner.origin} ({owner.label})'
        candidate = replace(candidate, fault=PluginError(taken, code="DK201"))
    return load(candidate)


def _switched_off(candidate: Candidate, disabled_reason: str) -> Plugin:
    return Plugin(
        candidate.name,
        candidate.distribution,
        candidate.version,
        candidate.origin,
        status="off",
        reason=disabled_reason,
    )


def _account(plugin: Plugin) -> str:
    head = f"{plugin.name} ({plugin.label}, {plugin.origin}): {plugin.status}"
    lines = [f"{head}: {plugin.reason}" if plugin.reason else head, *(f"note: {note}" for note in plugin.notes)]
    return "\n".join([*lines, plugin.error] if plugin.error else lines)


def resolve_conflicts(plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """The same plugins, with those broken that claim what is taken, until no claim is left to refuse.

    A kind may be added by one plugin only; an entry needs a kind that exists; the names of the defaults are theirs.
    Two other plugins may well offer one name: a recipe then has to say `plugin/name`.
    """
    settled = list(plugins)
    while True:
        faults = {index: fault for index, plugin in enumerate(settled) if (fault := _fault(plugin, settled))}
        if not faults:
            return tuple(settled)
        for index, fault in faults.items():
            settled[index] = settled[index].broken(fault)


def _fault(plugin: Plugin, plugins: Sequence[Plugin]) -> PluginError | None:
    if plugin.status != "ok":
        return None
    kinds = {kind.name: "diffkit" for kind in KINDS}
    owned: dict[tuple[str, str], str] = {}
    for other in plugins:
        if other is not plugin:
            kinds.update({kind.name: other.name for kind in other.contributions.kinds if kind.name not in kinds})
            if other.essential:
                owned.update({(entry.kind, entry.name): other.name for entry in other.entries})
    for kind in plugin.contributions.kinds:
        if kind.name in kinds and not plugin.essential:
            return PluginError(f'the kind "{kind.name}" is taken by {_named(kinds[kind.name])}', code="DK201")
    known = kinds.keys() | {kind.name for kind in plugin.contributions.kinds}
    for entry in plugin.entries:
        if entry.kind not in known:
            return PluginError(f'{entry.name}: there is no kind "{entry.kind}"', code="DK201", choices=sorted(known))
        if (entry.kind, entry.name) in owned and not plugin.essential:
            owner = owned[entry.kind, entry.name]
            return PluginError(f'the {entry.kind} "{entry.name}" is taken by {_named(owner)}', code="DK201")
    return None


def _named(owner: str) -> str:
    return "diffkit itself" if owner == "diffkit" else f'plugin "{owner}"'


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
        discovery.forget()


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
    plugin = registry().add(discovery.candidate(path))
    if plugin.status == "broken":
        raise PluginError(
            f"{path} failed to load ({plugin.reason})", code="DK201", notes=[plugin.error] if plugin.error else []
        )
    return plugin
