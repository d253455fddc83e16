"""Which plugins may load, read before any of them is looked for: `--plugins`, `-p no:NAME` and DIFFKIT_PLUGINS.

The plugins that diffkit itself brings are never behind these switches.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..errors import UsageError

VARIABLE = "DIFFKIT_PLUGINS"


@dataclass(frozen=True)
class Switches:
    """`only` is the pinned set (None: all that are installed), `without` the names that are dropped."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    origin: str = "--plugins"

    @classmethod
    def read(cls, plugins: str | Iterable[str] | None = None, without: Iterable[str] = ()) -> Switches:
        """From arguments; where `plugins` is None, from DIFFKIT_PLUGINS (unset or empty: all that are installed).

        "a,b" pins the set, "none" loads the defaults only. Raises `UsageError` DK011 where the text means nothing.
        """
        origin = "--plugins"
        if plugins is None:
            origin, plugins = VARIABLE, os.environ.get(VARIABLE) or None
        dropped = frozenset(without)
        if plugins is None:
            return cls(None, dropped, origin)
        names = [name.strip() for name in (plugins.split(",") if isinstance(plugins, str) else plugins)]
        if names == ["none"]:
            return cls(frozenset(), dropped, origin)
        if isinstance(plugins, str) and not any(names):
            raise UsageError(f"{origin} is empty", code="DK011", fix='name plugins, "a,b", or write "none"')
        if "none" in names:
            raise UsageError(f'{origin}: "none" stands alone', code="DK011", fix='name plugins, "a,b", or write "none"')
        return cls(frozenset(filter(None, names)), dropped, origin)

    def verify(self, installed: Collection[str], essential: Collection[str]) -> None:
        """Raises `UsageError` DK011 for a name that no plugin has, and for a default that is to be dropped."""
        for name in sorted((self.only or frozenset()) | self.without):
            if name in essential:
                if name in self.without:
                    raise UsageError(
                        f'plugin "{name}" is part of diffkit and cannot be dropped',
                        code="DK011",
                        fix=f"leave out no:{name}",
                    )
            elif name not in installed:
                near = difflib.get_close_matches(name, installed, 1)
                raise UsageError(
                    f'{self.origin if name in (self.only or ()) else "-p no:" + name}: no plugin "{name}" is installed',
                    code="DK011",
                    hint=f'did you mean "{near[0]}"?' if near else None,
                    choices=sorted(installed),
                    fix="see diffkit plugins",
                )

    def disabled_reason(self, names: Collection[str | None]) -> str | None:
        """Why the plugin that goes by `names` is off; None where it is not."""
        for name in names:
            if name in self.without:
                return f"dropped by -p no:{name}"
        if self.only is not None and self.only.isdisjoint(names):
            return f"not named by {self.origin}"
        return None
