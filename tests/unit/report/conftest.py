"""The inputs of the reports of real runs, and a reader that checks the HTML while it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html.parser import HTMLParser

import pytest

from diffkit import Run
from diffkit.report import ReportInputs
from diffkit.runs.reporting import collect

VOID = {"br", "img", "link", "meta"}


class Document(HTMLParser):
    """All tags and texts of a page. Raises AssertionError where a tag is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> out of place at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        """Every text that a reader sees."""
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))


@pytest.fixture(scope="session")
def read() -> Callable[[str], Document]:
    """HTML to `Document`."""
    return Document


@pytest.fixture(scope="session")
def real_inputs(real_runs: Mapping[str, Run]) -> dict[str, ReportInputs]:
    """What the reports of the real runs show."""
    return {kind: collect(run.directory, run.assembly) for kind, run in real_runs.items()}
