"""`check`: apply every law that applies to every component that is named."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import torch

from diffkit.errors import DiffkitError, UsageError
from diffkit.host import Registered, registry
from diffkit.host.process_state import SideEffectWarning, kept_state

from .case import Case, build_cases, shown
from .law_registry import Law, LawResult, NotApplicable, faults, laws

Verdict = Literal["pass", "fail", "exempt", "n/a"]
EMA = "ema"


@dataclass(frozen=True)
class Row:
    """One law on one component, the largest error over its cases.

    `example` and `expected` describe the error, `reason` explains the verdicts exempt and n/a.
    """

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
    """All rows of one call of `check`."""

    rows: tuple[Row, ...]
    seed: int = 0
    deep: bool = False

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows with the verdict fail."""
        return tuple(row for row in self.rows if row.verdict == "fail")

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    def count(self, verdict: Verdict) -> int:
        """Return the number of rows with this verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite error is the text "inf"."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["error"] is not None and not math.isfinite(row["error"]):
                row["error"] = str(row["error"])
        return {"ok": self.ok, "seed": self.seed, "deep": self.deep, "rows": rows}


def check(
    targets: Sequence[str] = (),
    *,
    deep: bool = False,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Apply the laws to components.

    Args:
        targets: each "kind/name", a kind, a plugin or its distribution, or "ema" for the averages of weights; empty
            for all that is installed.
        deep: whether to try more inputs.
        seed: the seed of random inputs.
        on_row: called with each row as soon as it is known.

    Returns:
        One row for each law and component.

    Raises:
        UsageError: DK710, nothing has the name of a target.
    """
    rows: list[Row] = []
    found = select(targets)
    plugins = {one.plugin.name for one in found if one is not None}
    for one in found:
        for row in check_ema(deep, seed) if one is None else check_entry(one, deep=deep, seed=seed):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    rows += _broken_law_modules(plugins)
    rows += _broken_plugins() if not targets else []
    return Report(tuple(rows), seed, deep)


def select(targets: Sequence[str] = ()) -> list[Registered | None]:
    """Return the entries that `targets` name, each once; None stands for the averages of weights.

    Raises:
        UsageError: DK710, nothing has the name of a target.
    """
    entries = registry().entries()
    found: list[Registered | None] = []
    for target in targets or ("",):
        matches: list[Registered | None] = [one for one in entries if _matches(one, target)]
        if target in ("", EMA):
            matches.append(None)
        if not matches:
            raise _no_target(target, entries)
        found += [one for one in matches if one not in found]
    return found


def check_entry(one: Registered, *, deep: bool = False, seed: int = 0) -> list[Row]:
    """Apply the laws to one registered component.

    Args:
        one: the component.
        deep: whether to try more inputs.
        seed: the seed of random inputs.

    Returns:
        One row for each law, or one row that states why the component cannot be built.
    """
    where = Row(f"{one.kind}/{one.name}", one.plugin.name, "", "", None, None, "n/a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SideEffectWarning)
        try:
            cls = one.load()
        except DiffkitError as error:
            return [_build_row(where, "fail", error.render())]
    side_effects = [str(each.message) for each in caught if isinstance(each.message, SideEffectWarning)]
    rows = check_class(one.kind, one.name, cls, plugin=one.plugin.name, deep=deep, seed=seed)
    return [*rows, *(_process_row(where, change) for change in side_effects)]


def check_class(
    kind: str, name: str, cls: type, *, plugin: str = "", deep: bool = False, seed: int = 0, only: Sequence[str] = ()
) -> list[Row]:
    """Apply the laws to a class, which need not be registered.

    Args:
        kind: the kind of component, such as "sampler".
        name: the name of the component.
        cls: the class of the component.
        plugin: the plugin of the component: laws of this plugin apply to it.
        deep: whether to try more inputs.
        seed: the seed of random inputs.
        only: the names of the laws to apply; empty for all.

    Returns:
        One row for each law, or one row that states why the component cannot be built.
    """
    where = Row(f"{kind}/{name}", plugin, "", "", None, None, "n/a")
    rows: list[Row] = []
    try:
        with kept_state() as changes, warnings.catch_warnings():
            warnings.simplefilter("ignore", SideEffectWarning)
            try:
                cases = list(build_cases(kind, name, cls, deep=deep, seed=seed))
            except (ModuleNotFoundError, DiffkitError) as error:
                if isinstance(error, DiffkitError) and not error.code.startswith(("DK290", "DK3")):
                    raise
                return [_build_row(where, "n/a", _describe(error))]
            rows += check_cases(kind, cases, where, only)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a component may raise anything, which is the finding
        rows.append(_build_row(where, "fail", _describe(error)))
    return [*rows, *(_process_row(where, str(change)) for change in changes)]


def check_ema(deep: bool = False, seed: int = 0) -> list[Row]:
    """Return the rows of the averages of weights, which are not a component."""
    where = Row(EMA, "diffkit", "", "", None, None, "n/a")
    return list(check_cases(EMA, [Case(EMA, EMA, None, deep=deep, seed=seed)], where, ()))


def check_cases(kind: str, cases: Sequence[Case], where: Row, only: Sequence[str] = ()) -> Iterator[Row]:
    """Apply the laws of a kind to the cases of one component.

    Args:
        kind: the kind of component.
        cases: the component with its options, at least one.
        where: a row with the component and its plugin.
        only: the names of the laws to apply; empty for all.

    Yields:
        One row for each law, with the largest error over the cases; one that states that the component is built if
        no law applies to it.
    """
    found = [one for one in laws(kind) if one.applies_to(cases[0].name, where.plugin)]
    yield from _exemption_faults(kind, cases, where, [one.name for one in laws(kind)])
    verdicts = set()
    for one in found:
        if not only or one.name in only:
            row = _largest([apply(one, case, where) for case in cases])
            verdicts.add(row.verdict)
            yield row
    if not found:
        yield _build_row(where, "pass", f"there is no law of the kind {kind}")
    if "exempt" in verdicts and verdicts <= {"exempt", "n/a"}:
        yield replace(where, law="exemptions", reason="warning: every law is exempt, so nothing is tested")


def apply(one: Law, case: Case, where: Row) -> Row:
    """Apply one law to one case of a component.

    Args:
        one: the law.
        case: the component with its options.
        where: a row with the component and its plugin.

    Returns:
        The row, with the verdict. A law that raises an error fails.
    """
    row = partial(Row, where.component, where.plugin, one.name, one.statement, source=one.source)
    skipped = partial(row, error=None, tolerance=one.tolerance)
    if one.name in case.exemptions:
        return skipped(verdict="exempt", reason=f"{case.label}: {shown(case.exemptions[one.name])}")
    result = LawResult(one.tolerance)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(case.seed)
            one.check(case, result)
    except NotApplicable as reason:
        return skipped(verdict="n/a", reason=str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a component may raise anything, which is the finding
        if isinstance(error, DiffkitError) and error.code.startswith(("DK290", "DK3", "DK4")):
            return skipped(verdict="n/a", reason=_describe(error))
        example = f"{case.label}: {result.options}{_describe(error)}"
        return row(error=math.inf, tolerance=one.tolerance, verdict="fail", expected="no error", example=example)
    if not result.checks:
        return skipped(verdict="n/a", reason="the law has no case for this component")
    return row(
        error=result.error,
        tolerance=one.tolerance,
        verdict="pass" if result.error <= one.tolerance else "fail",
        expected=result.expected,
        example=f"{case.label}: {result.example}" if result.example else case.label,
    )


def _largest(rows: Sequence[Row]) -> Row:
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


def _no_target(target: str, entries: Sequence[Registered]) -> DiffkitError:
    kind, slash, name = target.partition("/")
    if slash:
        registry().find(kind, name)
    for plugin in registry().plugins:
        if plugin.answers_to(target):
            if plugin.status == "broken":
                return DiffkitError(
                    f'plugin "{plugin.name}" is broken, so its components cannot be checked',
                    code="DK711",
                    fix=f"diffkit plugins --why {plugin.name}",
                )
            return UsageError(f'plugin "{plugin.name}" registers no components', code="DK710", fix="diffkit ls")
    if target in registry().kinds:
        return UsageError(f'no component of the kind "{target}" is installed', code="DK710", fix="diffkit ls")
    names = sorted({one.kind for one in entries} | {one.plugin.name for one in entries} | {EMA})
    near = get_close_matches(target, names, 1)
    return UsageError(
        f'unknown target "{target}"',
        code="DK710",
        hint=f'did you mean "{near[0]}"?' if near else None,
        choices="kind/name, a kind, or a plugin: " + ", ".join(names),
        fix="list all components: diffkit ls",
    )


def _build_row(where: Row, verdict: Verdict, reason: str) -> Row:
    facts: Mapping[str, Any] = {
        "law": "builds",
        "statement": "the component loads, and its constructor accepts the default options",
        "verdict": verdict,
    }
    if verdict == "fail":
        return Row(where.component, where.plugin, error=math.inf, tolerance=0.0, example=reason, **facts)
    return Row(where.component, where.plugin, error=None, tolerance=None, reason=reason, **facts)


def _process_row(where: Row, change: str) -> Row:
    """Return the failed row of a component that changed the state of the process."""
    statement = "the component leaves the state of the process as it was"
    facts: Mapping[str, Any] = {"law": "process-state", "statement": statement, "example": change}
    return replace(where, error=math.inf, tolerance=0.0, verdict="fail", expected="no change", **facts)


def _exemption_faults(kind: str, cases: Sequence[Case], where: Row, names: Sequence[str]) -> Iterator[Row]:
    """Yield one failed row for each distinct fault of the `law_exemptions` of a component."""
    faults: dict[str, str] = {}
    for case in cases:
        found: object = getattr(case.component, "law_exemptions", {})
        if not isinstance(found, Mapping):
            faults[f"law_exemptions is a {type(found).__name__}"] = "a mapping of names of laws to reasons"
            continue
        for name, reason in found.items():
            if str(name).partition(".")[0] not in names:
                near = get_close_matches(str(name), names, 1)
                faults[f"law_exemptions names {shown(name)!r}"] = near[0] if near else f"a law of the kind {kind}"
            if not isinstance(reason, str) or not reason.strip():
                faults[f"law_exemptions gives no reason for {shown(name)!r}"] = "why the law cannot hold"
    statement = "each exemption names a law of the kind, and gives a reason"
    row = replace(where, law="exemptions", statement=statement, error=math.inf, tolerance=0.0, verdict="fail")
    for fault, expected in faults.items():
        yield replace(row, example=fault, expected=expected)


def _broken_plugins() -> list[Row]:
    """Return one failed row for each broken plugin, whose components cannot be checked."""
    broken = [plugin for plugin in registry().plugins if plugin.status == "broken"]
    return [
        _build_row(
            Row(f"plugin/{plugin.name}", plugin.name, "", "", None, None, "n/a"),
            "fail",
            f"{plugin.reason}; see diffkit plugins --why {plugin.name}",
        )
        for plugin in broken
    ]


def _broken_law_modules(plugins: set[str]) -> list[Row]:
    """Return one failed row for each module of laws of these plugins that cannot be imported."""
    return [
        Row(
            component=f"plugin/{plugin}",
            plugin=plugin,
            law="laws-import",
            statement="the modules of laws can be imported, and each law applies to a component",
            error=math.inf,
            tolerance=0.0,
            verdict="fail",
            expected="no error",
            example=f"{module}: {_describe(error)}",
        )
        for (plugin, module), error in faults().items()
        if plugin in plugins
    ]


def _describe(error: BaseException) -> str:
    """Return the type and message of an error, and the function and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" (at {frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {shown(error, most=1000)}{at}"
