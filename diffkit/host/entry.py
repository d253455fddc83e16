"""What a plugin offers: entries (named classes) and kinds (what a name can be a name of). Both are plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import PluginError

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
LONGEST = 64


@dataclass(frozen=True)
class Entry:
    """A class under a name: `Entry("sampler", "ancestral", "diffkit.ddpm.sampler:Ancestral", "the chain", "ho2020")`.

    `kind` and `name` are kebab-case; `target` is "module:Class", imported when the entry is first used; `summary` is
    one line for listings; `reference` is a key of the `references.bib` beside the plugin module.
    Raises `PluginError` DK201 where a field is malformed.
    """

    kind: str
    name: str
    target: str
    summary: str
    reference: str | None = None

    def __post_init__(self) -> None:
        _check(self, "kind", self.kind, NAME, "kebab-case")
        _check(self, "name", self.name, NAME, "kebab-case")
        _check(self, "target", self.target, TARGET, '"module:Class"')
        _line(self, "summary", self.summary)
        if self.reference is not None:
            _line(self, "reference", self.reference)


@dataclass(frozen=True)
class Kind:
    """A sort of component: `base` is "module:Class", the class that every component of this kind derives from."""

    name: str
    base: str
    summary: str

    def __post_init__(self) -> None:
        _check(self, "name", self.name, NAME, "kebab-case")
        _check(self, "base", self.base, TARGET, '"module:Class"')
        _line(self, "summary", self.summary)


def _check(owner: object, field: str, value: object, pattern: re.Pattern[str], form: str) -> None:
    _line(owner, field, value)
    too_long = pattern is NAME and len(str(value)) > LONGEST
    if too_long or not pattern.fullmatch(str(value)):
        limit = f" of at most {LONGEST} characters" if pattern is NAME else ""
        raise PluginError(f"{type(owner).__name__}: {field} {value!r} is not {form}{limit}", code="DK201")


def _line(owner: object, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise PluginError(f"{type(owner).__name__}: {field} is a {type(value).__name__}, not a text", code="DK201")
    if value.splitlines() != [value]:
        raise PluginError(f"{type(owner).__name__}: {field} {value!r} is not one line of text", code="DK201")


KINDS = (
    Kind("schedule", "diffkit.schedule:Schedule", "a curve of noise levels over time"),
    Kind("parameterization", "diffkit.parameterization:Parameterization", "what the output of a network means"),
    Kind("network", "diffkit.network:Network", "what is trained"),
    Kind("sampler", "diffkit.sampler:Sampler", "the step from one level to a cleaner one"),
    Kind("grid", "diffkit.grid:Grid", "which levels a sampler visits"),
    Kind("times", "diffkit.times:Times", "which times are drawn in training"),
    Kind("objective", "diffkit.objective:Objective", "the loss"),
    Kind("weighting", "diffkit.objective:Weighting", "the weight of the x0 error at each level"),
    Kind("guidance", "diffkit.guidance:Guidance", "a denoiser made from a denoiser"),
    Kind("codec", "diffkit.codec:Codec", "data to what diffuses, and back"),
    Kind("augmentation", "diffkit.data:Augmentation", "a random change of training examples"),
    Kind("data", "diffkit.data:Data", "where the clean examples come from"),
    Kind("metric", "diffkit.metric:Metric", "how far samples are from data"),
    Kind("tracker", "diffkit.tracker:Tracker", "where the numbers of a run are sent"),
)
