"""Markup and page: what is written is escaped, whole, and may load nothing."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given, strategies as st

from diffkit.report.markup import Html, escape, join, tag
from diffkit.report.page import Section, asset, card, cards, render_page


def test_texts_are_escaped_and_markup_is_not():
    assert tag("p", "<b>", Html("<i></i>"), 3, None) == "<p>&lt;b&gt;<i></i>3</p>"
    assert tag("a", title='"><script>', class_="x", data_copy="y", hidden=True, lang=None, async_=False) == (
        '<a title="&quot;&gt;&lt;script&gt;" class="x" data-copy="y" hidden></a>'
    )
    assert tag("img", alt="a") == '<img alt="a">'
    assert join(["a&b", None, Html("<br>")], between="|") == "a&amp;b|<br>"


def test_markup_in_an_attribute_is_escaped_too():
    assert "<" not in tag("a", title=Html("<b>"))[2:-4]


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\x7f", "\x85", "\u202e", "\u2066", "\ud800", "\uffff"])
def test_what_breaks_or_disguises_a_text_is_replaced(bad):
    assert escape(f"a{bad}b") == "a\ufffdb"
    assert tag("i", title=f"a{bad}b") == '<i title="a\ufffdb"></i>'


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_survives_as_text(content, value):
    from html.parser import HTMLParser

    seen: list[object] = []

    class Reader(HTMLParser):
        def handle_starttag(self, name, attributes):
            seen.append((name, attributes[0][0]))

        def handle_data(self, data):
            seen.append(data)

    reader = Reader()
    reader.feed(tag("p", content, title=value))
    reader.close()
    tag("p", content, title=value).encode("utf-8")
    assert seen[0] == ("p", "title")
    assert all(isinstance(one, str) for one in seen[1:])


def test_the_policy_allows_the_inline_style_and_script_and_nothing_else(read):
    page = read(render_page("t", tag("header", id="summary"), []))
    policy = page.all("meta")[1]["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src", "base-uri", "form-action"}
    for rule, element in (("style-src", "style"), ("script-src", "script")):
        (text,) = (text for name, text in page.texts if name == element)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_assets_name_no_address_and_close_no_element_early():
    for name in ("report.css", "report.js"):
        text = asset(name)
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML|eval|</", text), name
        assert text.isascii() or name == "report.css"


def test_navigation_leads_to_every_part_and_headings_are_in_order(read):
    parts = [
        Section("one", "First", cards(card(tag("p", "x"), title="Part"))),
        Section("two", "Second", tag("p"), "lead"),
    ]
    page = read(render_page("t", tag("header", tag("h1", "t"), id="summary"), parts, "the end"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.all("a") if a["href"] != "#report"} == {"#summary", "#one", "#two"}
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert [name for name, _ in page.tags if re.fullmatch(r"h\d", name)] == ["h1", "h2", "h3", "h2"]
    assert all(one["aria-labelledby"] in ids for one in page.all("section"))
    assert "the end" in page.words
