"""`pytest --diffkit-contract NAME`: one test for each law of each component.

NAME is a target of `diffkit check`: a plugin, its module, a kind, or kind/name; the option may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from diffkit import testing

if TYPE_CHECKING:
    from .engine import Row


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("diffkit", "laws of diffusion components")
    group.addoption(
        "--diffkit-contract",
        action="append",
        default=[],
        metavar="NAME",
        help="check the components of a plugin, of a kind, or kind/name with the laws; may be repeated",
    )
    group.addoption("--diffkit-deep", action="store_true", help="more cases for every law")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test for each law after the collected tests."""
    if config.getoption("--diffkit-contract"):
        items.extend(Contract.from_parent(session, name="diffkit", nodeid="diffkit").collect())


class Contract(pytest.Collector):
    """All laws of the named components."""

    def collect(self) -> Iterator[LawItem]:
        names = self.config.getoption("--diffkit-contract")
        deep = bool(self.config.getoption("--diffkit-deep"))
        for row in testing.check(names, deep=deep).rows:
            yield LawItem.from_parent(self, name=f"{row.component}: {row.law}", row=row)


class LawItem(pytest.Item):
    """One law on one component: passes, fails with what was expected and found, or is skipped with the reason."""

    def __init__(self, *, row: Row, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row = row

    def runtest(self) -> None:
        """Skip or fail according to the verdict of `check`."""
        if self.row.verdict in ("exempt", "n/a"):
            pytest.skip(f"{self.row.verdict}: {self.row.reason}")
        if self.row.verdict == "fail":
            raise Broken(self.row)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Return the law, the value found and the one required, in the place of a traceback."""
        row = self.row
        error, tolerance = row.error, row.tolerance
        lines = [
            f"{row.component} breaks {row.law}: {row.statement}",
            f"  expected: {row.expected}",
            f"  found:    {row.example}",
            f"  error {error:.3g}, tolerance {tolerance:.3g}" if error is not None and tolerance is not None else "",
            f"  source:   {row.source}",
        ]
        return "\n".join(line for line in lines if line)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return the location for the report of pytest."""
        return "diffkit-contract", None, self.name


class Broken(Exception):  # noqa: N818 - shown as text
    """Raised if a law is broken."""
