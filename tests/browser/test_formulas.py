"""Formulas of the documentation are typeset by the copy of KaTeX that comes with it, without any request elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path.relative_to(DOCS)
    for folder in ("", "theory", "how-to")
    for path in (DOCS / folder).glob("*.md")
    if "$" in CODE.sub("", path.read_text(encoding="utf-8"))
)
STATE = """(() => {
  const words = document.querySelector('article').cloneNode(true);
  words.querySelectorAll('pre, code').forEach((one) => one.remove());
  return {
    formulas: document.querySelectorAll('.arithmatex').length,
    typeset: document.querySelectorAll('.arithmatex > .katex, .arithmatex > .katex-display').length,
    errors: [...document.querySelectorAll('.katex-error')].map((one) => one.title),
    plain: words.textContent.split('$').length - 1,
    fonts: [...document.fonts].filter((one) => one.status === 'loaded').map((one) => one.family),
  };
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The written pages, built with the theme, the extensions and the scripts of mkdocs.yml."""
    folder = tmp_path_factory.mktemp("docs")
    whole: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    kept = ("site_name", "theme", "markdown_extensions", "extra_css", "extra_javascript", "exclude_docs")
    config = {key: whole[key] for key in kept} | {"docs_dir": str(DOCS), "plugins": [], "use_directory_urls": False}
    for extension in config["markdown_extensions"]:
        if isinstance(extension, dict) and "pymdownx.snippets" in extension:
            extension["pymdownx.snippets"] = {"base_path": [str(ROOT)]}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder / "site")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "site"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_formulas_are_typeset_without_the_network(page: Path, site: Path, chromium: Any) -> None:
    chromium.open((site / page.with_suffix(".html")).as_uri(), 1400)
    chromium.run("document.fonts.ready.then(() => true)")
    state = chromium.run(STATE)
    assert state["formulas"] > 0
    assert state["typeset"] == state["formulas"]
    assert state["errors"] == []
    assert state["plain"] == 0, "a formula that the extension did not find"
    assert any("KaTeX" in family for family in state["fonts"])
    requests = [e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith(("data:", site.as_uri()))] == []
    failed = [e["params"] for e in chromium.events if e["method"] == "Network.loadingFailed"]
    assert failed == []


def test_a_phone_shows_formulas_without_scrolling_the_page(site: Path, chromium: Any) -> None:
    chromium.open((site / "concepts.html").as_uri(), 375)
    assert chromium.run("document.documentElement.scrollWidth") <= 375
