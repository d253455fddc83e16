"""Errors for a name that does not resolve: the nearest name, the installed names, and the plugin that contains the
name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from ..errors import DiffkitError, PluginError, RecipeError, UsageError
from .loader import Plugin, Registered

MIN_SIMILARITY = 0.8
"""Similarity from which a name counts as a misspelling, although a broken plugin may have it."""


class KnownNames(NamedTuple):
    """The names that first-party plugins register.

    Attributes:
        components: names of components by distribution and kind.
        recipes: names of recipes by distribution.
    """

    components: dict[str, dict[str, list[str]]]
    recipes: dict[str, list[str]]


@cache
def known_names() -> KnownNames:
    """Return the names of known_names.json, which `python plugins/known_names.py` generates.

    A distribution `diffkit-NAME` has the entry point `NAME`.
    """
    found = json.loads((files("diffkit.host") / "known_names.json").read_text(encoding="utf-8"))
    return KnownNames(found["components"], found["recipes"])


def holders(kind: str, name: str) -> list[str]:
    """Return the first-party distributions that register `name`."""
    return [distribution for distribution, kinds in known_names().components.items() if name in kinds.get(kind, ())]


def first_party_names(kind: str) -> list[str]:
    """Return all names of a kind that first-party plugins register."""
    return [name for kinds in known_names().components.values() for name in kinds.get(kind, ())]


def recipe_holder(recipe: str) -> str | None:
    """Return the first-party distribution that contains a built-in recipe; None if there is none."""
    return next((distribution for distribution, names in known_names().recipes.items() if recipe in names), None)


class UnknownNameError(RecipeError):
    """Raised if no plugin registers the name; the recipe layer adds the place in the file."""

    code = "DK102"
    listing = "installed"


def no_kind(kind: str, kinds: Iterable[str]) -> UsageError:
    """Return the error for a kind that does not exist."""
    return UsageError(f'unknown kind "{kind}"', code="DK013", hint=_did_you_mean(kind, kinds), choices=sorted(kinds))


def ambiguous(kind: str, name: str, found: Sequence[Registered]) -> PluginError:
    """Return the error for a name that several plugins register.

    Args:
        kind: the kind of the component.
        name: the name in the recipe.
        found: the components with this name, one for each plugin.

    Returns:
        Error DK202; the fix is to write `plugin/name`.
    """
    return PluginError(
        f'{kind} "{name}" is registered by {len(found)} plugins: {", ".join(one.plugin.label for one in found)}',
        code="DK202",
        choices=[one.qualified for one in found],
        fix="write plugin/name, or disable one plugin with -p no:NAME",
    )


def no_plugin(plugins: Sequence[Plugin], name: str, wanted: str) -> PluginError:
    """Return the error for a plugin that is absent, broken or off.

    Args:
        plugins: the plugins that were found.
        name: the name of the plugin, or of its distribution.
        wanted: the component or recipe that needs the plugin, for the message.

    Returns:
        A PluginError DK201 for a broken plugin, else DK205.
    """
    for plugin in plugins:
        if plugin.answers_to(name) and plugin.status != "ok":
            return _unusable(plugin, wanted)
    for distribution in known_names().components:
        if name in (distribution, distribution.removeprefix("diffkit-")):
            return _missing(distribution, wanted)
    names = [plugin.name for plugin in plugins]
    message = f'{wanted}: no plugin "{name}" is installed'
    return PluginError(message, code="DK205", hint=_did_you_mean(name, names), choices=names)


def no_name(
    plugins: Sequence[Plugin], installed: Sequence[Registered], kind: str, name: str, within: Plugin | None = None
) -> DiffkitError:
    """Return the error for a name that no working plugin registers.

    Args:
        plugins: the plugins that were found.
        installed: the registered components.
        kind: the kind of component.
        name: the name without a plugin.
        within: the plugin to which the search is limited; None: all plugins.

    Returns:
        A PluginError if the plugin that contains the name is broken, off or not installed; else an UnknownNameError.
    """
    if within is None and (owned := _of_absent_plugin(plugins, kind, name)) is not None:
        return owned
    of_kind = [one for one in installed if one.kind == kind and within in (None, one.plugin)]
    near, similarity = _nearest(name, [one.name for one in of_kind] + ([] if within else first_party_names(kind)))
    suspects = [] if within else [p for p in plugins if p.status == "broken" and p.lost_contributions is None]
    notes = [
        f'plugin "{plugin.name}" is installed but failed to load ({plugin.reason}); '
        f"see diffkit plugins --why {plugin.name}"
        for plugin in suspects
    ]
    if not within and (off := [plugin.name for plugin in plugins if plugin.status == "off"]):
        notes.append(f"switched off: {', '.join(off)}")
    others = dict.fromkeys(one.kind for one in installed if one.name == name and one.kind != kind)
    notes += [f'"{name}" is a {other}' for other in others]
    error = UnknownNameError if similarity >= MIN_SIMILARITY or not suspects else PluginError
    unknown = error(
        f'unknown {kind} "{name}"' + (f' in plugin "{within.name}"' if within else ""),
        code=UnknownNameError.code,
        hint=f'did you mean "{near}"? ({_source(near, kind, of_kind)})' if near else None,
        choices=f"{_grouped(of_kind)}      more: diffkit ls {kind}" if of_kind else (),
        notes=notes,
    )
    unknown.listing = UnknownNameError.listing
    return unknown


def _of_absent_plugin(plugins: Sequence[Plugin], kind: str, name: str) -> PluginError | None:
    """Return the error for a name that a broken or disabled plugin, or a package that is not installed, contains; else
    None.
    """
    packages = holders(kind, name)
    for plugin in plugins:
        lost = plugin.lost_contributions.entries if plugin.lost_contributions else ()
        holds = any((entry.kind, entry.name) == (kind, name) for entry in lost)
        if plugin.status != "ok" and (holds or any(plugin.answers_to(package) for package in packages)):
            return _unusable(plugin, f'{kind} "{name}"')
    for distribution in packages:
        if not any(plugin.answers_to(distribution) for plugin in plugins):
            return _missing(distribution, f'{kind} "{name}"')
    return None


def _unusable(plugin: Plugin, wanted: str) -> PluginError:
    if plugin.status == "broken":
        message = f'plugin "{plugin.name}" is installed but failed to load ({plugin.reason}), and {wanted} needs it'
        return PluginError(message, code=plugin.code, fix=f"see diffkit plugins --why {plugin.name}")
    message = f'{wanted} belongs to plugin "{plugin.name}", which is switched off ({plugin.reason})'
    return PluginError(message, code="DK205", fix=f"let {plugin.name} load: see --plugins, -p and DIFFKIT_PLUGINS")


def _missing(distribution: str, wanted: str) -> PluginError:
    message = f"{wanted} belongs to {distribution}, which is not installed"
    return PluginError(message, code="DK205", fix=f"pip install {distribution}")


def _did_you_mean(name: str, names: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(names), 1)
    return f'did you mean "{near[0]}"?' if near else None


def _plain(name: str) -> str:
    return name.lower().replace("++", "pp").replace("_", "-")


def _nearest(name: str, names: Sequence[str]) -> tuple[str | None, float]:
    plain = {_plain(other): other for other in reversed(names)}
    near = difflib.get_close_matches(_plain(name), list(plain), 1)
    if not near:
        return None, 0.0
    return plain[near[0]], difflib.SequenceMatcher(None, _plain(name), near[0]).ratio()


def _source(name: str, kind: str, installed: Sequence[Registered]) -> str:
    label = next((one.plugin.label for one in installed if one.name == name), None)
    return label or f"pip install {holders(kind, name)[0]}"


def _grouped(installed: Sequence[Registered]) -> str:
    groups: dict[str, list[str]] = {}
    for one in installed:
        groups.setdefault(one.plugin.label, []).append(one.name)
    return ", ".join(f"{', '.join(names)} ({label})" for label, names in groups.items())
