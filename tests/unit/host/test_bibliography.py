"""References: BibTeX beside the plugin module, and the lines and addresses made from it."""

from __future__ import annotations

import re

import pytest

from diffkit.errors import PluginError
from diffkit.host import bibtex, registry
from diffkit.host.bibliography import address, cited, parse, readable

TEXT = """% a comment with @word
@article{one2020,
  title = {Braces {inside} and an @ sign},
  year = {2020}
}
@misc{two2021, title = {x}}
@article{open2022, title = {never closed}
"""
SOURCE = """
@hookimpl
def diffkit_components():
    yield Entry("schedule", "a", "x:A", "x", "one2020")
    yield Entry("schedule", "b", "x:B", "x")
    yield Entry("schedule", "c", "x:C", "x", "absent")
"""


def test_entries_are_cut_out_as_they_are_written() -> None:
    entries = parse(TEXT)
    assert list(entries) == ["one2020", "two2021"]
    assert entries["two2021"] == "@misc{two2021, title = {x}}"
    assert entries["one2020"] in TEXT


def test_lookup(site) -> None:
    package = site.install("aa", SOURCE)
    found = registry()
    a, b, c = (found.find("schedule", name) for name in "abc")
    with pytest.raises(PluginError, match=r"no readable references\.bib") as missing:
        cited([a])
    assert missing.value.code == "DK206"
    site.write(f"{package}/references.bib", TEXT)
    (paper,) = cited([a, b])
    assert (paper.key, paper.used_for) == ("one2020", "schedule/a")
    assert paper.bibtex.startswith("@article{one2020")
    with pytest.raises(PluginError, match='has no entry "absent"') as absent:
        bibtex("absent", c.plugin)
    assert absent.value.choices == ["one2020", "two2021"]


def test_the_defaults_have_every_reference_and_no_other() -> None:
    found = registry()
    for plugin in found.plugins:
        used = {entry.reference for entry in plugin.entries} - {None}
        assert plugin.folder is not None
        entries = parse((plugin.folder / "references.bib").read_text(encoding="utf-8"))
        assert used == entries.keys()
        for text in entries.values():
            assert len(re.findall(r"^  (title|author|year) += \{.*", text, re.MULTILINE)) == 3


def test_works_have_authors_and_an_address() -> None:
    bonneel = """@article{a, title = {Sliced {R}adon}, author = {Peyr{\\'e}, Gabriel and
        Sch{\\"o}lkopf, Bernhard}, year = 2015, doi = {10.1/x}, year = {2015}}"""
    assert readable(bonneel) == "Gabriel Peyré, Bernhard Schölkopf. Sliced Radon. 2015"
    assert address(bonneel) == "https://doi.org/10.1/x"
    assert address("@misc{a, eprint = {2006.11239}, archiveprefix = {arXiv}}") == "https://arxiv.org/abs/2006.11239"
