"""`check`: every law that applies, to every component that is named."""

from __future__ import annotations

import json
import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch

from diffkit.errors import DiffkitError, UsageError
from diffkit.host import Registered, registry

from .law_registry import Inapplicable, Law, Worst, laws
from .subject import Subject, Unbuildable, subjects

Verdict = Literal["pass", "fail", "exempt", "n/a"]
EMA = "ema"


@dataclass(frozen=True)
class Row:
    """One law on one component, the worst over its variants. `reason` explains exempt and n/a."""

    component: str
    plugin: str
    law: str
    statement: str
    error: float | None
    tolerance: float | None
    verdict: Verdict
    expected: str = ""
    example: str = ""
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class Report:
    """All rows; `ok` where none fails."""

    rows: tuple[Row, ...]
    seed: int = 0
    deep: bool = False

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that fail."""
        return tuple(row for row in self.rows if row.verdict == "fail")

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    def count(self, verdict: Verdict) -> int:
        """How many rows have this verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def to_json(self) -> str:
        """One JSON object; an infinite error is the text "inf"."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["error"] is not None and not math.isfinite(row["error"]):
                row["error"] = str(row["error"])
        return json.dumps({"ok": self.ok, "seed": self.seed, "deep": self.deep, "rows": rows}, indent=2)


def check(
    targets: Sequence[str] = (),
    *,
    deep: bool = False,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Holds components against the laws of their kinds.

    A target is "kind/name", a kind, a plugin or its distribution; without any, all that is installed. "ema" is the
    averaging of weights. Raises UsageError DK710 for a target that names nothing.
    """
    rows: list[Row] = []
    for one in chosen(targets):
        found = check_ema(deep, seed) if one is None else check_entry(one, deep=deep, seed=seed)
        for row in found:
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return Report(tuple(rows), seed, deep)


def chosen(targets: Sequence[str] = ()) -> list[Registered | None]:
    """The entries that `targets` name, each once; None stands for the averaging of weights."""
    entries = registry().entries()
    found: list[Registered | None] = []
    for target in targets or ("",):
        matches: list[Registered | None] = [one for one in entries if _matches(one, target)]
        if target in ("", EMA):
            matches.append(None)
        if not matches:
            _refuse(target, entries)
        found += [one for one in matches if one not in found]
    return found


def check_entry(one: Registered, *, deep: bool = False, seed: int = 0) -> list[Row]:
    """All rows of one registered component."""
    where = Row(f"{one.kind}/{one.name}", one.plugin.name, "", "", None, None, "n/a")
    try:
        cls = one.load()
    except DiffkitError as error:
        return [_built(where, "fail", error.render())]
    return check_class(one.kind, one.name, cls, plugin=one.plugin.name, deep=deep, seed=seed)


def check_class(
    kind: str, name: str, cls: type, *, plugin: str = "", deep: bool = False, seed: int = 0, only: Sequence[str] = ()
) -> list[Row]:
    """All rows of a class that need not be registered; `only` names the laws to apply, empty for all."""
    where = Row(f"{kind}/{name}", plugin, "", "", None, None, "n/a")
    try:
        variants = list(subjects(kind, name, cls, deep=deep, seed=seed))
    except (Unbuildable, ModuleNotFoundError) as error:
        return [_built(where, "n/a", str(error))]
    except Exception as error:  # noqa: BLE001 - whatever a constructor raises is what has to be reported
        missing = isinstance(error, DiffkitError) and error.code.startswith("DK3")
        return [_built(where, "n/a" if missing else "fail", _account(error))]
    return list(check_subjects(kind, variants, where, only))


def check_ema(deep: bool = False, seed: int = 0) -> list[Row]:
    """The rows of the averaging of weights, which no plugin registers."""
    where = Row(EMA, "diffkit", "", "", None, None, "n/a")
    return list(check_subjects(EMA, [Subject(EMA, EMA, None, deep=deep, seed=seed)], where, ()))


def check_subjects(kind: str, variants: Sequence[Subject], where: Row, only: Sequence[str]) -> Iterator[Row]:
    """One row for each law of the kind, the worst over the variants."""
    for one in laws(kind):
        if one.only and variants[0].name not in one.only:
            continue
        if only and one.name not in only:
            continue
        yield _worst([apply(one, variant, where) for variant in variants])


def apply(one: Law, subject: Subject, where: Row) -> Row:
    """One law on one variant of a component."""
    row = partial(Row, where.component, where.plugin, one.name, one.statement, source=one.source)
    unjudged = partial(row, error=None, tolerance=one.tolerance)
    if one.name in subject.exemptions:
        return unjudged(verdict="exempt", reason=f"{subject.label}: {subject.exemptions[one.name]}")
    worst = Worst(one.tolerance)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(subject.seed)
            one.check(subject, worst)
    except Inapplicable as reason:
        return unjudged(verdict="n/a", reason=str(reason))
    except Exception as error:  # noqa: BLE001 - a component may fail in any way, and that is a finding
        if isinstance(error, DiffkitError) and error.code.startswith(("DK3", "DK4")):
            return unjudged(verdict="n/a", reason=_account(error))
        told = f"{subject.label}: {_account(error)}"
        return row(error=math.inf, tolerance=one.tolerance, verdict="fail", expected="an answer", example=told)
    if not worst.checks:
        return unjudged(verdict="n/a", reason="no case applies")
    return row(
        error=worst.error,
        tolerance=one.tolerance,
        verdict="pass" if worst.error <= one.tolerance else "fail",
        expected=worst.expected,
        example=f"{subject.label}: {worst.example}" if worst.example else subject.label,
    )


def _worst(rows: Sequence[Row]) -> Row:
    rank = {"n/a": 0, "pass": 1, "exempt": 2, "fail": 3}
    return max(rows, key=lambda row: (rank[row.verdict], row.error or 0.0))


def _matches(one: Registered, target: str) -> bool:
    return target in (
        "",
        one.kind,
        f"{one.kind}/{one.name}",
        f"{one.kind}/{one.qualified}",
        one.plugin.name,
        one.plugin.distribution,
        f"{one.plugin.distribution}".replace("-", "_"),
    )


def _refuse(target: str, entries: Sequence[Registered]) -> None:
    from difflib import get_close_matches

    kind, slash, name = target.partition("/")
    if slash:
        registry().find(kind, name)
    for plugin in registry().plugins:
        if plugin.answers_to(target):
            if plugin.status == "broken":
                raise DiffkitError(
                    f'plugin "{plugin.name}" is broken, so none of its components can be checked',
                    code="DK711",
                    fix=f"diffkit plugins --why {plugin.name}",
                )
            raise UsageError(f'plugin "{plugin.name}" offers no components', code="DK710", fix="diffkit ls")
    names = sorted({one.kind for one in entries} | {one.plugin.name for one in entries} | {EMA})
    near = get_close_matches(target, names, 1)
    raise UsageError(
        f'nothing to check is called "{target}"',
        code="DK710",
        hint=f'did you mean "{near[0]}"?' if near else None,
        choices="kind/name, a kind, or a plugin: " + ", ".join(names),
        fix="diffkit ls shows all components",
    )


def _built(where: Row, verdict: Verdict, reason: str) -> Row:
    told: Mapping[str, Any] = {
        "law": "builds",
        "statement": "the component loads, and is built by its constructor with default options",
        "verdict": verdict,
    }
    if verdict == "fail":
        return Row(where.component, where.plugin, error=math.inf, tolerance=0.0, example=reason, **told)
    return Row(where.component, where.plugin, error=None, tolerance=None, reason=reason, **told)


def _account(error: Exception) -> str:
    """The kind and message of an error and the last line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" (at {frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"
