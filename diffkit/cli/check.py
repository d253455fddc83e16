"""The command `diffkit check`: test components against the laws of their kinds."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import click

from ..errors import ViolationError, plain
from .console import as_json, say, say_json, table

if TYPE_CHECKING:
    from ..testing.engine import Report, Row


@click.command()
@click.argument("target", nargs=-1)
@as_json
@click.option("--deep", is_flag=True, help="More cases: every step count, longer fits.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random cases.")
@click.option("--all", "everything", is_flag=True, help="Also show the laws that do not apply.")
def check(target: tuple[str, ...], as_json: bool, deep: bool, seed: int, everything: bool) -> None:
    """Check components against the laws of diffusion.

    TARGET is kind/name, a kind, or a plugin; without TARGET, every installed component is checked. Exits with 10 if a
    law is broken.
    """
    from ..testing.engine import check as run

    shown = sys.stderr.isatty() and not as_json
    last = ""

    def progress(row: Row) -> None:
        nonlocal last
        if shown and row.component != last:
            last = row.component
            click.echo(f"\r\033[K{plain(last)}", nl=False, err=True)

    report = run(target, deep=deep, seed=seed, on_row=progress)
    if shown:
        click.echo("\r\033[K", nl=False, err=True)
    if as_json:
        say_json(report.to_dict())
    else:
        _show(report, everything)
    if not report.ok:
        broken = sorted({row.component for row in report.failures})
        fix = "mend the component, or state in its law_exemptions why a law cannot hold for it"
        count = len(report.failures)
        raise ViolationError(
            f"{count} {'law is' if count == 1 else 'laws are'} broken, by {', '.join(broken)}", fix=fix
        )


def _show(report: Report, everything: bool) -> None:
    rows = [row for row in report.rows if everything or row.verdict != "n/a" or row.law in ("builds", "exemptions")]
    cells = [[r.component, r.law, r.statement, _number(r.error), _number(r.tolerance), r.verdict] for r in rows]
    table(cells, ["component", "law", "statement", "worst error", "tolerance", "verdict"])
    for row in rows:
        if row.verdict == "fail":
            say(f"\n{row.component} breaks {row.law}: {row.statement}")
            if row.expected:
                say(f"  expected: {row.expected}")
            say(f"  found:    {row.example}")
            if row.source:
                say(f"  source:   {row.source}")
    for row in rows:
        if row.verdict in ("exempt", "n/a") and row.reason:
            say(f"{row.verdict}: {row.component} {row.law}: {row.reason}")
    unstated = _without_formula(report)
    if unstated:
        say(f"no law_reference, so the formula is not tested: {', '.join(unstated)}; see docs/how-to/laws.md")
    counts = ", ".join(f"{report.count(verdict)} {verdict}" for verdict in ("pass", "fail", "exempt", "n/a"))
    say(f"\n{len({row.component for row in report.rows})} components: {counts}")


def _without_formula(report: Report) -> list[str]:
    """Return the components that no law compares with a formula: neither their own reference nor a law of their own."""
    from ..testing.law_registry import laws
    from ..testing.reference import MISSING

    own = {(one.plugin, one.kind, one.name) for one in laws() if one.only}
    tested = {row.component for row in report.rows if (row.plugin, row.component.partition("/")[0], row.law) in own}
    return [row.component for row in report.rows if row.reason == MISSING and row.component not in tested]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "inf" if math.isinf(value) else f"{value:.2g}"
