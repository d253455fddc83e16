"""GitHub and the documentation typeset the formulas of the pages; the documentation loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import markdown
import pytest
import yaml

from .sources import ROOT

DOCS = ROOT / "docs"
KATEX = DOCS / "assets" / "katex"
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$", re.DOTALL)
PAGES = sorted(path for path in DOCS.rglob("*.md") if "$" in CODE.sub("", path.read_text(encoding="utf-8")))


def configuration() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return found


def test_the_pages_with_mathematics_use_formulas() -> None:
    wanted = {"concepts.md", "theory/identities.md", "theory/glossary.md", "how-to/averages.md", "how-to/guidance.md"}
    assert wanted <= {str(path.relative_to(DOCS)) for path in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_formula_is_found(page: Path) -> None:
    """The extension of mkdocs.yml marks as many formulas as the page has, and no dollar is left over."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    assert text.count("$") % 2 == 0
    formulas = FORMULA.findall(text)
    extensions = ["pymdownx.arithmatex", "tables", "attr_list"]
    html = markdown.markdown(text, extensions=extensions, extension_configs={extensions[0]: {"generic": True}})
    assert html.count('class="arithmatex"') == len(formulas) > 0
    assert "$" not in html


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_no_formula_contains_what_github_changes(page: Path) -> None:
    r"""GitHub reads `\,` and `\\` as escapes before it typesets, and `|` ends a cell of a table."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    formulas = [displayed or inline for displayed, inline in FORMULA.findall(text)]
    assert [one for one in formulas if re.search(r"\\[^a-zA-Z]|\*", one)] == []
    cells = [line for line in text.splitlines() if line.startswith("|")]
    assert [one for line in cells for _, one in FORMULA.findall(line) if "|" in one] == []


def test_scripts_and_styles_lie_in_the_repository() -> None:
    config = configuration()
    assert {"pymdownx.arithmatex": {"generic": True}} in config["markdown_extensions"]
    assert config["theme"]["font"] is False
    for name in (*config["extra_css"], *config["extra_javascript"]):
        assert (DOCS / name).is_file(), name


def test_katex_is_whole() -> None:
    """Its licence, and exactly the fonts that its style sheet names."""
    assert (KATEX / "LICENSE").read_text(encoding="utf-8").startswith("The MIT License")
    named = re.findall(r"url\(([^)]*)\)", (KATEX / "katex.min.css").read_text(encoding="utf-8"))
    assert set(named) == {f"fonts/{path.name}" for path in (KATEX / "fonts").iterdir()}
    assert all(name.endswith(".woff2") for name in named)
