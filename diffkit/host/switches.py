"""Switches for plugins, read before plugins are searched: `--plugins`, `-p no:NAME` and DIFFKIT_PLUGINS.

The default plugins of diffkit always load.
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
    """`only` are the plugins that may load (None: all that are installed), `without` the names that may not."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    origin: str = "--plugins"

    @classmethod
    def read(cls, plugins: str | Iterable[str] | None = None, without: Iterable[str] = ()) -> Switches:
        """Read the switches from arguments, or from DIFFKIT_PLUGINS if `plugins` is None.

        Args:
            plugins: "a,b" or a list of names: these may load; "none": the default plugins only.
            without: names of plugins that may not load.

        Returns:
            The switches; all installed plugins may load if neither argument nor variable is given.

        Raises:
            UsageError: DK011 if the text is empty, or names "none" beside others.
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
            raise UsageError(
                f'{origin}: "none" cannot be combined with names',
                code="DK011",
                fix='name plugins, "a,b", or write "none"',
            )
        return cls(frozenset(filter(None, names)), dropped, origin)

    def verify(self, installed: Collection[str], essential: Collection[str]) -> None:
        """Raise UsageError DK011 for a name that no plugin has, and for a default plugin in `without`."""
        for name in sorted((self.only or frozenset()) | self.without):
            if name in essential:
                if name in self.without:
                    message = f'plugin "{name}" is part of diffkit and cannot be disabled'
                    raise UsageError(message, code="DK011", fix=f"leave out no:{name}")
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
        """Return why the plugin with one of these names is off; None if it may load."""
        for name in names:
            if name in self.without:
                return f"disabled by -p no:{name}"
        if self.only is not None and self.only.isdisjoint(names):
            return f"not named by {self.origin}"
        return None
