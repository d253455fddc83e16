"""Laws: statements that every component of a kind must satisfy, each a function with its source and tolerance.

The laws of a kind are in `diffkit.testing.by_kind`. The laws of one paper are in the package of its plugin, which names
the modules in the hook `diffkit_laws`; they are imported when laws are first needed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffkit.errors import PluginError
from diffkit.host import registry
from diffkit.host.process_state import kept_state

if TYPE_CHECKING:
    from .case import Case

MODULES = (
    "schedule",
    "grid",
    "times",
    "parameterization",
    "parameterization_model",
    "sampler",
    "sampler_accuracy",
    "weighting",
    "objective",
    "objective_parts",
    "guidance",
    "network",
    "network_structure",
    "network_paths",
    "codec",
    "reconstruction_loss",
    "conditioner",
    "data",
    "metric",
    "optimizer",
    "strategy",
    "callback",
    "ema",
    "options",
)
"""The modules of `by_kind`, in the order in which their laws are listed."""


SINGLE_PRECISION = frozenset(
    {"augmentation", "codec", "conditioner", "data", "extractor", "network", "reconstruction-loss", "strategy"}
)
"""Kinds whose laws compare numbers in float32, in which these components compute; those of the others use float64."""


class NotApplicable(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a law that does not apply to a component; the message is the reason."""


@dataclass
class LawResult:
    """The errors that one law found on one component.

    `error` is the largest error. `example` and `expected` describe the first error above the tolerance, or else the
    largest: laws try small cases first, so the first failure is the easiest to understand. `checks` counts them.
    `options` names the options of a variant that is being checked, and precedes each example.
    """

    tolerance: float
    error: float = 0.0
    example: str = ""
    expected: str = ""
    checks: int = 0
    options: str = ""
    _failed: bool = field(default=False, repr=False)

    def note(self, error: float, example: str, expected: str = "") -> None:
        """Add one error.

        Args:
            error: the error, relative to the size of the expected value; nan counts as infinite.
            example: the case and the value found, such as "n = 3: 4 levels".
            expected: the value that the law requires.
        """
        self.checks += 1
        error = math.inf if math.isnan(error) else error
        failed = error > self.tolerance
        if (failed and not self._failed) or (not self._failed and error > self.error):
            self.example, self.expected = self.options + example, expected
        self._failed = self._failed or failed
        self.error = max(self.error, error)

    def compare(self, got: Tensor | float, want: Tensor | float, example: str, scale: float = 1.0) -> None:
        """Add the largest error of an entry, |got - want| / max(scale, max |want|).

        Args:
            got: the value found.
            want: the value that the law requires: the same shape, or a single number.
            example: the case, such as "alpha at t = 3".
            scale: the smallest size that errors are relative to.
        """
        g = torch.as_tensor(got).detach().double().cpu()
        w = torch.as_tensor(want).detach().double().cpu()
        if g.shape != w.shape and g.numel() != 1 and w.numel() != 1:
            self.note(math.inf, f"{example}: shape {tuple(g.shape)}", f"shape {tuple(w.shape)}")
            return
        same = torch.eq(g, w)
        gap = torch.where(same, torch.zeros_like(g - w), (g - w).abs())
        size = max(scale, float(w[torch.isfinite(w)].abs().max()) if bool(torch.isfinite(w).any()) else 0.0)
        error = float(gap.max()) / (size or 1.0) if gap.numel() else 0.0
        if not error <= self.tolerance:
            at = int(torch.where(torch.isnan(gap), torch.inf, gap).argmax())
            got_at, want_at = (float(v.expand(gap.shape).reshape(-1)[at]) for v in (g, w))
            self.note(error, f"{example}: {got_at:.10g}", f"{want_at:.10g}")
        else:
            self.note(error, example)

    def holds(self, condition: bool, example: str, expected: str) -> None:
        """Add the error 0 if a condition is true, infinity if it is false.

        Args:
            condition: whether the law is satisfied in this case.
            example: the case and the value found.
            expected: the value that the law requires.
        """
        self.note(0.0 if condition else math.inf, example, expected)


Check = Callable[["Case", LawResult], None]


@dataclass(frozen=True)
class Law:
    """One law. `check(case, result)` adds errors to `result`; the law is broken if the largest exceeds `tolerance`.

    `plugin` is the plugin whose package contains the law, "" for the laws of all components of a kind. Names are
    unique within one plugin and kind. `only` lists the components that a law about one method applies to: a name
    means a component of the law's own plugin, `plugin/name` a component of another. Empty: all components of the kind,
    or, for a law of a plugin on a kind that another has added, those of this plugin. `dtype` is the narrowest type of
    the numbers that it compares.
    """

    kind: str
    name: str
    statement: str
    source: str
    tolerance: float
    identities: str
    check: Check
    only: tuple[str, ...] = ()
    plugin: str = ""
    dtype: str = "float64"

    @property
    def derivation(self) -> str:
        """Why the law holds: the docstring of its function."""
        return (self.check.__doc__ or "").strip()

    def applies_to(self, name: str, plugin: str = "") -> bool:
        """Return whether the law applies to the component `name` of the plugin `plugin`.

        A law that no plugin owns, such as one written in a test, matches a bare name in `only` in every plugin.
        """
        if not self.only:
            return self.plugin in ("", plugin) or registry().owner(self.kind) == self.plugin
        owner = self.plugin or plugin
        return f"{plugin}/{name}" in {one if "/" in one else f"{owner}/{one}" for one in self.only}


_LAWS: dict[tuple[str, str, str], Law] = {}
"""All registered laws by (module, kind, name)."""
_OWNERS: dict[str, str] = {}
"""The plugin of each module that a hook `diffkit_laws` named."""


def law(
    kind: str,
    *,
    statement: str,
    source: str,
    tolerance: float,
    identities: str = "",
    only: tuple[str, ...] = (),
    name: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> Callable[[Check], Check]:
    """Register the decorated function as a law.

    Args:
        kind: the kind of component, such as "sampler".
        statement: what must be true, in one line; shown by `diffkit check`.
        source: the paper with its equation, or the definition.
        tolerance: the largest error that passes.
        identities: names of the identities in docs/theory/identities.md, separated by spaces.
        only: the components that the law applies to; empty means all of the kind.
        name: the name of the law; the name of the function with dashes by default.
        dtype: the narrowest dtype of the numbers that it compares; default that of the kind, see `SINGLE_PRECISION`.

    Returns:
        A decorator that returns the function unchanged.
    """

    def register(check: Check) -> Check:
        called = name or check.__name__.replace("_", "-")
        numbers = dtype or ("float32" if kind in SINGLE_PRECISION else "float64")
        one = Law(kind, called, statement, source, tolerance, identities, check, only, dtype=numbers)
        _LAWS[check.__module__, kind, called] = one
        return check

    return register


def laws(kind: str | None = None) -> tuple[Law, ...]:
    """Return the laws of one kind, or all of them sorted by kind.

    Raises:
        ValueError: two laws of one kind in diffkit itself have the same name.
    """
    for name in MODULES:
        importlib.import_module(f"{__package__}.by_kind.{name}")
    found, _ = _registered(dict(import_failures()))
    kinds = [kind] if kind is not None else sorted({one.kind for one in found})
    return tuple(one for each in kinds for one in found if one.kind == each)


def import_failures() -> Mapping[tuple[str, str], BaseException]:
    """Import the modules of laws of all plugins; return the errors by (plugin, module)."""
    failures: dict[tuple[str, str], BaseException] = {}
    for plugin, module in registry().law_modules():
        _OWNERS[module] = plugin
        try:
            with kept_state(draws=False) as changes:
                importlib.import_module(module)
            if changes:
                raise PluginError(f"the import of {module}: {changes[0]}", code="DK201")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; the others keep their laws
            failures[plugin, module] = error
    return failures


def faults() -> Mapping[tuple[str, str], BaseException]:
    """Return what is wrong with the laws of plugins by (plugin, module): modules that cannot be imported, two laws of
    one name, and laws that apply to no component.
    """
    return _registered(dict(import_failures()))[1]


def _registered(
    failures: dict[tuple[str, str], BaseException],
) -> tuple[list[Law], dict[tuple[str, str], BaseException]]:
    """Return all laws with their owners, and the failures with those of single laws added."""
    found: dict[tuple[str, str, str], Law] = {}
    entries = registry().entries()
    owners = {**{one.entry.target.partition(":")[0]: one.plugin.name for one in entries}, **_OWNERS}
    for (module, _, _), one in _LAWS.items():
        owner = next((p for m, p in owners.items() if module == m or module.startswith(f"{m}.")), "")
        general = module.startswith(f"{__package__}.")
        made = replace(one, plugin=owner)
        key = (owner or ("" if general else module), one.kind, one.name)
        if key in found:
            twice = ValueError(f"{owner or 'diffkit'} has two laws {one.name} of the kind {one.kind}")
            if not owner:
                raise twice
            failures[owner, module] = twice
        elif owner and not any(e.kind == one.kind and made.applies_to(e.name, e.plugin.name) for e in entries):
            failures[owner, module] = ValueError(f"the law {one.name} of the kind {one.kind} applies to no component")
        else:
            found[key] = made
    return list(found.values()), failures
