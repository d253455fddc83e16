"""The registry: every plugin that was found, and every name that those which work offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PluginError
from . import lookup
from .bibliography import bibtex
from .conflicts import settle
from .discovery import DEFAULTS, Candidate, candidates
from .entry import Kind
from .kinds import KINDS
from .loader import call, implements, load, output_to_stderr
from .plugin import Plugin
from .registered import Registered
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
            excuse = switches.excuse(names) if optional else None
            plugins.append(_switched_off(candidate, excuse) if excuse else _admit(candidate, plugins))
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
            raise lookup.no_kind(kind, self._kinds)
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
            raise lookup.ambiguous(kind, name, found)
        if not prefix:
            raise lookup.no_name(self, kind, name)
        owner = self._working(prefix)
        raise lookup.no_name(self, kind, bare, owner) if owner else lookup.no_plugin(self, prefix, f'{kind} "{name}"')

    def recipes(self) -> dict[str, Path]:
        """Built-in recipes by name. A name that a default has is the default's; one that several other plugins have
        stands as `plugin/name` only."""
        offered = [(plugin, name, path) for plugin in self._plugins for name, path in plugin.offer.recipes]
        names = [name for _, name, _ in offered]
        reserved = {name for plugin, name, _ in offered if plugin.essential}
        free = {name for name in names if names.count(name) == 1}
        return {
            name if plugin.essential or (name in free and name not in reserved) else f"{plugin.name}/{name}": path
            for plugin, name, path in offered
        }

    def why(self, name: str) -> str:
        """What is to be known about a plugin: the traceback of a broken one, the switch that holds one off, notes.

        Raises `PluginError` DK205 where no plugin has this name.
        """
        plugins = [plugin for plugin in self._plugins if plugin.answers_to(name)]
        if not plugins:
            raise lookup.no_plugin(self, name, "diffkit plugins --why")
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
        self._plugins = settle(plugins)
        kinds = [*KINDS, *(kind for plugin in self._plugins for kind in plugin.offer.kinds)]
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


def _switched_off(candidate: Candidate, excuse: str) -> Plugin:
    return Plugin(
        candidate.name, candidate.distribution, candidate.version, candidate.origin, status="off", reason=excuse
    )


def _account(plugin: Plugin) -> str:
    head = f"{plugin.name} ({plugin.label}, {plugin.origin}): {plugin.status}"
    lines = [f"{head}: {plugin.reason}" if plugin.reason else head, *(f"note: {note}" for note in plugin.notes)]
    return "\n".join([*lines, plugin.error] if plugin.error else lines)
