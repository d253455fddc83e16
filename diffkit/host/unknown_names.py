"""What to say where a name does not resolve: the nearest name, what is installed, and which plugin would have it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import DiffkitError, PluginError, RecipeError, UsageError
from . import known

if TYPE_CHECKING:
    from .loader import Plugin
    from .registry import Registered, Registry


SURE = 0.8


class UnknownNameError(RecipeError):
    """No installed plugin registers the name, and none is known to; the recipe layer fills in where it stands."""

    code = "DK102"
    listing = "installed"


def no_kind(kind: str, kinds: Iterable[str]) -> UsageError:
    """There is no such kind of component."""
    near = difflib.get_close_matches(kind, list(kinds), 1)
    hint = f'did you mean "{near[0]}"?' if near else None
    return UsageError(f'unknown kind "{kind}"', code="DK013", hint=hint, choices=sorted(kinds))


def ambiguous(kind: str, name: str, found: Sequence[Registered]) -> PluginError:
    """Several plugins offer the name."""
    return PluginError(
        f'{kind} "{name}" is offered by {len(found)} plugins: {", ".join(one.plugin.label for one in found)}',
        code="DK202",
        choices=[one.qualified for one in found],
        fix="write plugin/name, or drop one plugin with -p no:NAME",
    )


def no_plugin(registry: Registry, name: str, wanted: str) -> PluginError:
    """There is no plugin of this name, or it is broken or off; `wanted` is what was asked of it."""
    plugins = [plugin for plugin in registry.plugins if plugin.answers_to(name)]
    for plugin in plugins:
        if plugin.status == "broken":
            return _broken(plugin, f"{wanted} needs it")
        if plugin.status == "off":
            return _off(plugin, wanted)
    for distribution in known.FIRST_PARTY:
        if name in (distribution, distribution.removeprefix("diffkit-")):
            return _missing(distribution, wanted)
    near = difflib.get_close_matches(name, [plugin.name for plugin in registry.plugins], 1)
    return PluginError(
        f'{wanted}: no plugin "{name}" is installed',
        code="DK205",
        hint=f'did you mean "{near[0]}"?' if near else None,
        choices=[plugin.name for plugin in registry.plugins],
    )


def no_name(registry: Registry, kind: str, name: str, among: Plugin | None = None) -> DiffkitError:
    """No plugin that works offers the name (`among`: not the one that was asked for it)."""
    wanted = f'{kind} "{name}"'
    if among is None:
        if (named := _withheld(registry, kind, name)) is not None:
            return named
        for distribution in known.holders(kind, name):
            if not any(plugin.answers_to(distribution) for plugin in registry.plugins):
                return _missing(distribution, wanted)
    installed = [one for one in registry.entries(kind) if among in (None, one.plugin)]
    near, ratio = _nearest(name, [one.name for one in installed] + ([] if among else known.names(kind)))
    suspects = [] if among else [plugin for plugin in registry.plugins if _may_hold(plugin)]
    notes = [
        f'plugin "{plugin.name}" is installed but failed to load ({plugin.reason}); '
        f"see diffkit plugins --why {plugin.name}"
        for plugin in suspects
    ]
    if not among and (off := [plugin.name for plugin in registry.plugins if plugin.status == "off"]):
        notes.append(f"switched off: {', '.join(off)}")
    notes += [f'"{name}" is a {other}' for other in registry.kinds if other != kind and registry.has(other, name)]
    error = UnknownNameError if ratio >= SURE or not suspects else PluginError
    unknown = error(
        f'unknown {kind} "{name}"' + (f' in plugin "{among.name}"' if among else ""),
        code=UnknownNameError.code,
        hint=f'did you mean "{near}"? ({_source(near, kind, installed)})' if near else None,
        choices=f"{_grouped(installed)}      more: diffkit ls {kind}" if installed else (),
        notes=notes,
    )
    unknown.listing = UnknownNameError.listing
    return unknown


def _withheld(registry: Registry, kind: str, name: str) -> PluginError | None:
    for plugin in registry.plugins:
        offered = plugin.lost_contributions.entries if plugin.lost_contributions else ()
        holds = any((entry.kind, entry.name) == (kind, name) for entry in offered)
        if not holds and not any(plugin.answers_to(holder) for holder in known.holders(kind, name)):
            continue
        if plugin.status == "broken":
            return _broken(plugin, f'{kind} "{name}" needs it')
        if plugin.status == "off":
            return _off(plugin, f'{kind} "{name}"')
    return None


def _may_hold(plugin: Plugin) -> bool:
    return plugin.status == "broken" and plugin.lost_contributions is None


def _broken(plugin: Plugin, why: str) -> PluginError:
    return PluginError(
        f'plugin "{plugin.name}" is installed but failed to load ({plugin.reason}), and {why}',
        code="DK201",
        fix=f"see diffkit plugins --why {plugin.name}",
    )


def _off(plugin: Plugin, wanted: str) -> PluginError:
    return PluginError(
        f'{wanted} belongs to plugin "{plugin.name}", which is switched off ({plugin.reason})',
        code="DK205",
        fix=f"let {plugin.name} load: see --plugins, -p and DIFFKIT_PLUGINS",
    )


def _missing(distribution: str, wanted: str) -> PluginError:
    return PluginError(
        f"{wanted} belongs to {distribution}, which is not installed", code="DK205", fix=f"pip install {distribution}"
    )


def _plain(name: str) -> str:
    return name.lower().replace("++", "pp").replace("_", "-")


def _nearest(name: str, names: Sequence[str]) -> tuple[str | None, float]:
    plain = {_plain(other): other for other in reversed(names)}
    near = difflib.get_close_matches(_plain(name), list(plain), 1)
    if not near:
        return None, 0.0
    return plain[near[0]], difflib.SequenceMatcher(None, _plain(name), near[0]).ratio()


def _source(name: str, kind: str, installed: Sequence[Registered]) -> str:
    for one in installed:
        if one.name == name:
            return one.plugin.label
    return f"pip install {known.holders(kind, name)[0]}"


def _grouped(installed: Sequence[Registered]) -> str:
    groups: dict[str, list[str]] = {}
    for one in installed:
        groups.setdefault(one.plugin.label, []).append(one.name)
    return ", ".join(f"{', '.join(names)} ({label})" for label, names in groups.items())
