"""The registry of all plugins that were found and all names that the working plugins register."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PluginError
from . import discovery, unknown_names
from .discovery import DEFAULTS, Candidate, Switches, candidates
from .entry import KINDS, Kind
from .loader import Plugin, Registered, call, implements, load, noted
from .process_state import kept_state

if TYPE_CHECKING:
    import click


class Registry:
    """The plugins of a process and what they register. No component is imported before `Registered.load`."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._set_plugins(plugins)

    @classmethod
    def discover(cls, switches: Switches | None = None, extra: Sequence[Candidate] = ()) -> Registry:
        """Load the default plugins, the installed plugins that are switched on, and one-file plugins.

        Args:
            switches: the plugins that may load; None: all.
            extra: one-file plugins, which the switches do not affect.

        Returns:
            The registry. An error of a plugin is kept in its record.

        Raises:
            UsageError: DK011 if a switch names a plugin that is not installed.
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

    def owner(self, kind: str) -> str | None:
        """Return the plugin that adds the kind; None for a kind of diffkit itself."""
        return next((p.name for p in self._plugins if kind in (k.name for k in p.contributions.kinds)), None)

    def entries(self, kind: str | None = None) -> tuple[Registered, ...]:
        """Return the registered components, of one kind or of all. Raises UsageError DK013 for an unknown kind."""
        if kind is not None and kind not in self._kinds:
            raise unknown_names.no_kind(kind, self._kinds)
        return tuple(one for one in self._entries if kind in (None, one.kind))

    def has(self, kind: str, name: str) -> bool:
        """Return whether a working plugin registers the name."""
        return any((one.kind, one.name) == (kind, name) for one in self._entries)

    def find(self, kind: str, name: str) -> Registered:
        """Find a component.

        Args:
            kind: the kind of component, such as "sampler".
            name: its name, or `plugin/name`.

        Returns:
            The only component with this name.

        Raises:
            PluginError: if its plugin is broken (DK201), off or not installed (DK205), or if several plugins
                register the name (DK202).
            UnknownNameError: a RecipeError DK102, if no plugin is known to register the name.
            UsageError: DK013 for an unknown kind.
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
        """Return the built-in recipes by name. A default plugin keeps its names; the recipe of another plugin is
        `plugin/name` if its name is taken.
        """
        contributed = [(plugin, name, path) for plugin in self._plugins for name, path in plugin.contributions.recipes]
        names = [name for _, name, _ in contributed]
        reserved = {name for plugin, name, _ in contributed if plugin.essential}
        free = {name for name in names if names.count(name) == 1}
        return {
            name if plugin.essential or (name in free and name not in reserved) else f"{plugin.name}/{name}": path
            for plugin, name, path in contributed
        }

    def law_modules(self) -> tuple[tuple[str, str], ...]:
        """Return (plugin, dotted name) of each module in which a working plugin registers laws of its components."""
        return tuple((plugin.name, module) for plugin in self._plugins for module in plugin.contributions.laws)

    def why(self, name: str) -> str:
        """Describe the state of a plugin: the traceback of a broken one, the switch that turns it off, and notes.

        Raises PluginError DK205 if no plugin has this name.
        """
        plugins = [plugin for plugin in self._plugins if plugin.answers_to(name)]
        if not plugins:
            raise unknown_names.no_plugin(self._plugins, name, "diffkit plugins --why")
        return "\n\n".join(_account(plugin) for plugin in plugins)

    def commands(self, group: click.Group) -> None:
        """Add the commands of plugins; a plugin that fails, or replaces a command, is marked as broken and adds
        none.
        """
        for index in range(len(self._plugins)):
            plugin = self._plugins[index]
            if plugin.manager is None or not implements(plugin.manager, "diffkit_commands"):
                continue
            before = dict(group.commands)
            try:
                with kept_state(draws=False) as changes:
                    call(plugin.manager, plugin.name, "diffkit_commands", group=group)
                changed = sorted(name for name, command in before.items() if group.commands.get(name) is not command)
                if changed:
                    raise PluginError(f'the command "{changed[0]}" is taken', code="DK201")
                if changes:
                    noticed = noted(plugin, changes, "its hook diffkit_commands")
                    self._set_plugins([*self._plugins[:index], noticed, *self._plugins[index + 1 :]])
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way, sys.exit included
                group.commands.clear()
                group.commands.update(before)
                self._set_plugins([*self._plugins[:index], plugin.broken(error), *self._plugins[index + 1 :]])

    def add(self, candidate: Candidate) -> Plugin:
        """Load one more plugin from a file, with the checks of all plugins."""
        self._set_plugins([*self._plugins, _admit(candidate, self._plugins)])
        return self._plugins[-1]

    def _working(self, name: str) -> Plugin | None:
        return next((plugin for plugin in self._plugins if plugin.status == "ok" and plugin.answers_to(name)), None)

    def _set_plugins(self, plugins: Sequence[Plugin]) -> None:
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
    """Return the same plugins, those with conflicting contributions marked as broken.

    One plugin only may add a kind; an entry needs a kind that exists; names of the default plugins are reserved. Two
    other plugins may register one name: a recipe then names it as `plugin/name`. The verdict does not depend on the
    order of the plugins.
    """
    resolved = list(plugins)
    while True:
        faults = {index: fault for index, plugin in enumerate(resolved) if (fault := _fault(plugin, resolved))}
        if not faults:
            return tuple(resolved)
        for index, fault in faults.items():
            resolved[index] = resolved[index].broken(fault)


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
    """The switches and the registry of this process. `loading` is True while the registry is built; it cannot be used
    before.
    """

    switches: Switches | None = None
    registry: Registry | None = None
    loading: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


_state = _State()


def configure(plugins: str | Iterable[str] | None = None, without: Iterable[str] = ()) -> None:
    """Select the plugins that may load, and drop the registry and the one-file plugins that were loaded before.

    Args:
        plugins: "a,b" loads these only, "none" the default plugins only; None: as DIFFKIT_PLUGINS selects.
        without: names of plugins that are not loaded.

    Raises:
        UsageError: DK011 for a text that cannot be read; for a name that is not installed on first use.
    """
    switches = Switches.read(plugins, without)
    with _state.lock:
        _state.switches, _state.registry = switches, None
        discovery.forget()


def registry() -> Registry:
    """Return the registry of this process, made on first use."""
    with _state.lock:
        if _state.loading:
            raise PluginError("a plugin module uses the registry while it is being loaded", code="DK201")
        if _state.registry is None:
            _state.loading = True
            try:
                _state.registry = Registry.discover(_state.switches or Switches.read())
            finally:
                _state.loading = False
        return _state.registry


def load_file(path: str | Path) -> Plugin:
    """Register a one-file plugin as if it were installed.

    Args:
        path: a Python file; `my_schedule.py` is the plugin my-schedule.

    Returns:
        The plugin.

    Raises:
        UsageError: DK012 if the path is not a Python file that can be imported.
        PluginError: DK201 if the plugin is broken, with the traceback in the notes, or DK204 if it is built for another
            version of the plugin interface; `Registry.plugins` lists it.
    """
    plugin = registry().add(discovery.candidate(path))
    if plugin.status == "broken":
        message = f"{path} failed to load ({plugin.reason})"
        raise PluginError(message, code=plugin.code, notes=[plugin.error] if plugin.error else [])
    return plugin
