"""The contributions of a plugin: entries (named classes), kinds of components, and the hooks that yield them.

A plugin module implements any of the hooks with `@hookimpl`; docs/reference/hooks.md shows an example of each. Hooks
yield their values: an error is then raised while the host iterates over one plugin, and affects no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from ..errors import PluginError

if TYPE_CHECKING:
    import click

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
MAX_NAME_CHARACTERS = 64

hookspec = pluggy.HookspecMarker("diffkit")
hookimpl = pluggy.HookimplMarker("diffkit")


@dataclass(frozen=True)
class Entry:
    """A class under a name: `Entry("sampler", "ancestral", "diffkit.ddpm.sampler:Ancestral", "the chain", "ho2020")`.

    `kind` and `name` are kebab-case; `target` is "module:Class", imported when the entry is first used; `summary` is
    one line for listings; `reference` is a key of the `references.bib` beside the plugin module.
    Raises PluginError DK201 if a field is malformed.
    """

    kind: str
    name: str
    target: str
    summary: str
    reference: str | None = None

    def __post_init__(self) -> None:
        _require_form(self, "kind", self.kind, NAME, "kebab-case")
        _require_form(self, "name", self.name, NAME, "kebab-case")
        _require_form(self, "target", self.target, TARGET, '"module:Class"')
        _require_line(self, "summary", self.summary)
        if self.reference is not None:
            _require_line(self, "reference", self.reference)

    @classmethod
    def table(cls, package: str, kinds: Mapping[str, Sequence[tuple[str, ...]]]) -> Iterator[Entry]:
        """Yield one entry for each row of a table.

        Args:
            package: the package that contains all targets.
            kinds: for each kind its rows (name, "module:Class" within `package`, summary), and a reference if any.
        """
        for kind, rows in kinds.items():
            for name, target, *texts in rows:
                yield cls(kind, name, f"{package}.{target}", *texts)


@dataclass(frozen=True)
class Kind:
    """A kind of component: `base` is "module:Class", the class that every component of this kind derives from.

    Raises PluginError DK201 if a field is malformed.
    """

    name: str
    base: str
    summary: str

    def __post_init__(self) -> None:
        _require_form(self, "name", self.name, NAME, "kebab-case")
        _require_form(self, "base", self.base, TARGET, '"module:Class"')
        _require_line(self, "summary", self.summary)


def _require_form(owner: object, field: str, value: object, pattern: re.Pattern[str], form: str) -> None:
    _require_line(owner, field, value)
    too_long = pattern is NAME and len(str(value)) > MAX_NAME_CHARACTERS
    if too_long or not pattern.fullmatch(str(value)):
        limit = f" of at most {MAX_NAME_CHARACTERS} characters" if pattern is NAME else ""
        raise PluginError(f"{type(owner).__name__}: {field} {value!r} is not {form}{limit}", code="DK201")


def _require_line(owner: object, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise PluginError(f"{type(owner).__name__}: {field} is a {type(value).__name__}, not a text", code="DK201")
    if value.splitlines() != [value]:
        raise PluginError(f"{type(owner).__name__}: {field} {value!r} is not one line of text", code="DK201")


KINDS = (
    Kind("schedule", "diffkit.schedule:Schedule", "a curve of noise levels over time"),
    Kind("parameterization", "diffkit.parameterization:Parameterization", "what the output of a network means"),
    Kind("network", "diffkit.network:Network", "the model that is trained"),
    Kind("sampler", "diffkit.sampler:Sampler", "the step from one level to a cleaner one"),
    Kind("grid", "diffkit.grid:Grid", "the levels that a sampler visits"),
    Kind("times", "diffkit.times:Times", "the distribution of times in training"),
    Kind("objective", "diffkit.objective:Objective", "the loss"),
    Kind("weighting", "diffkit.objective:Weighting", "the weight of the x0 error at each level"),
    Kind("guidance", "diffkit.guidance:Guidance", "a denoiser made from a denoiser"),
    Kind("codec", "diffkit.codec:Codec", "a map from data to the space of the diffusion, and back"),
    Kind("reconstruction-loss", "diffkit.reconstruction:ReconstructionLoss", "a term of the loss that trains a codec"),
    Kind("conditioner", "diffkit.conditioner:Conditioner", "a function from a condition to what the network receives"),
    Kind("augmentation", "diffkit.data:Augmentation", "a random change of training examples"),
    Kind("data", "diffkit.data:Data", "the source of clean examples"),
    Kind("metric", "diffkit.metric:Metric", "the distance of samples from data"),
    Kind("optimizer", "diffkit.optimizer:Optimizer", "the rule that updates the weights from the gradient"),
    Kind("lr-schedule", "diffkit.optimizer:LRSchedule", "the learning rate over the steps of a training"),
    Kind("strategy", "diffkit.strategy:Strategy", "the way in which several processes train one network"),
    Kind("callback", "diffkit.callback:Callback", "an observer of a training"),
    Kind("tracker", "diffkit.callback:Tracker", "the place that receives the numbers of a run"),
)


@hookspec
def diffkit_kinds() -> Iterable[Kind]:
    """Yield kinds of components beyond those of diffkit itself."""
    return ()


@hookspec
def diffkit_components() -> Iterable[Entry]:
    """Yield one `Entry` for each component; its target is imported on first use, not here."""
    return ()


@hookspec
def diffkit_recipes() -> Iterable[Path]:
    """Yield absolute directories; each `NAME.yaml` in them is the built-in recipe NAME."""
    return ()


@hookspec
def diffkit_laws() -> Iterable[str]:
    """Yield dotted names of modules that register laws with `diffkit.testing.law`; imported when laws are needed."""
    return ()


@hookspec
def diffkit_commands(group: click.Group) -> None:
    """Add commands to `group`, the command `diffkit`; names that are taken may not be replaced."""
