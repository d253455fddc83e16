"""What plugins may not do to each other. The verdicts do not depend on the order in which plugins are looked at."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PluginError
from .kinds import KINDS
from .plugin import Plugin


def settle(plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
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
            kinds.update({kind.name: other.name for kind in other.offer.kinds if kind.name not in kinds})
            if other.essential:
                owned.update({(entry.kind, entry.name): other.name for entry in other.entries})
    for kind in plugin.offer.kinds:
        if kind.name in kinds and not plugin.essential:
            return PluginError(f'the kind "{kind.name}" is taken by {_named(kinds[kind.name])}', code="DK201")
    known = kinds.keys() | {kind.name for kind in plugin.offer.kinds}
    for entry in plugin.entries:
        if entry.kind not in known:
            return PluginError(f'{entry.name}: there is no kind "{entry.kind}"', code="DK201", choices=sorted(known))
        if (entry.kind, entry.name) in owned and not plugin.essential:
            owner = owned[entry.kind, entry.name]
            return PluginError(f'the {entry.kind} "{entry.name}" is taken by {_named(owner)}', code="DK201")
    return None


def _named(owner: str) -> str:
    return "diffkit itself" if owner == "diffkit" else f'plugin "{owner}"'
