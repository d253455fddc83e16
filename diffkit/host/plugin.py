"""A plugin as the host knows it: loaded, broken or switched off, and never forgotten."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pluggy

from ..errors import DiffkitError
from .entry import Entry, Kind

Status = Literal["ok", "broken", "off"]


@dataclass(frozen=True)
class Offer:
    """What the hooks of one plugin yielded."""

    entries: tuple[Entry, ...] = ()
    kinds: tuple[Kind, ...] = ()
    recipes: tuple[tuple[str, Path], ...] = ()


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
    offer: Offer = Offer()
    withheld: Offer | None = None
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
            offer=Offer(),
            withheld=None if self.offer == Offer() else self.offer,
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
