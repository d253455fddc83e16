"""Laws: statements that every component of a kind must satisfy, each a named function with its source and tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .subject import Subject


class Inapplicable(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a law that says nothing about this component; the message says why."""


@dataclass
class Worst:
    """What a law found: the largest error, and the first example beyond the tolerance (cases come smallest first)."""

    tolerance: float
    error: float = 0.0
    example: str = ""
    expected: str = ""
    checks: int = 0
    _failed: bool = field(default=False, repr=False)

    def note(self, error: float, example: str, expected: str = "") -> None:
        """One error, already relative; nan counts as infinite."""
        self.checks += 1
        error = math.inf if math.isnan(error) else error
        failed = error > self.tolerance
        if (failed and not self._failed) or (not self._failed and error > self.error):
            self.example, self.expected = example, expected
        self._failed = self._failed or failed
        self.error = max(self.error, error)

    def compare(self, got: Tensor | float, want: Tensor | float, example: str, scale: float = 1.0) -> None:
        """|got - want| relative to max(scale, |want|), over all entries."""
        g = torch.as_tensor(got).detach().double().cpu()
        w = torch.as_tensor(want).detach().double().cpu()
        if g.shape != w.shape and g.numel() != 1 and w.numel() != 1:
            self.note(math.inf, f"{example}: shape {tuple(g.shape)}", f"shape {tuple(w.shape)}")
            return
        same = torch.eq(g, w)
        gap = torch.where(same, torch.zeros_like(g - w), (g - w).abs())
        size = max(scale, float(w[torch.isfinite(w)].abs().max()) if bool(torch.isfinite(w).any()) else 0.0)
        error = float(gap.max()) / size if gap.numel() else 0.0
        if not error <= self.tolerance:
            at = int(torch.where(torch.isnan(gap), torch.inf, gap).argmax())
            got_at, want_at = (float(v.expand(gap.shape).reshape(-1)[at]) for v in (g, w))
            self.note(error, f"{example}: {got_at:.10g}", f"{want_at:.10g}")
        else:
            self.note(error, example)

    def holds(self, condition: bool, example: str, expected: str) -> None:
        """A statement that is true or false."""
        self.note(0.0 if condition else math.inf, example, expected)


Check = Callable[["Subject", Worst], None]


@dataclass(frozen=True)
class Law:
    """`check(subject, worst)` notes errors; a component breaks the law where the worst exceeds `tolerance`.

    `only` names the entries that a law about one known method speaks of; empty: all of the kind.
    """

    kind: str
    name: str
    statement: str
    source: str
    tolerance: float
    identities: str
    check: Check
    only: tuple[str, ...] = ()

    @property
    def derivation(self) -> str:
        """Why it holds: the docstring of the function."""
        return (self.check.__doc__ or "").strip()


_LAWS: dict[str, dict[str, Law]] = {}


def law(
    kind: str,
    *,
    statement: str,
    source: str,
    tolerance: float,
    identities: str = "",
    only: tuple[str, ...] = (),
    name: str | None = None,
) -> Callable[[Check], Check]:
    """Registers a function as a law of `kind`, under its own name with dashes. Raises ValueError for a taken name."""

    def register(check: Check) -> Check:
        called = name or check.__name__.replace("_", "-")
        laws = _LAWS.setdefault(kind, {})
        if called in laws and laws[called].check.__module__ != check.__module__:
            raise ValueError(f"{kind} has a law {called} already")
        laws[called] = Law(kind, called, statement, source, tolerance, identities, check, only)
        return check

    return register


def laws(kind: str | None = None) -> tuple[Law, ...]:
    """The laws of one kind, or all."""
    from . import all_laws

    all_laws.load()
    kinds = [kind] if kind is not None else sorted(_LAWS)
    return tuple(one for each in kinds for one in _LAWS.get(each, {}).values())
