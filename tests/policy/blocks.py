"""Code blocks of Markdown files, with the files that they include."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?:\{ *\.)?(\w+)(?: +title=\"([^\"]+)\")?[ }]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its title, its text, and whether it includes a file of the repository."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    included: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The pages whose code must run: those that teach."""
    docs = ROOT / "docs"
    first = [
        ROOT / "README.md",
        *(docs / f"{name}.md" for name in ("index", "quickstart", "concepts", "coming-from", "first-plugin")),
    ]
    more = [page for folder in ("how-to", "theory") for page in sorted((docs / folder).glob("*.md"))]
    return [*first, docs / "reference" / "hooks.md", *more]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        body = SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), match[3])
        line = text[: match.start()].count("\n") + 1
        yield Block(str(page.relative_to(ROOT)), line, match[1], match[2], body, body != match[3])
