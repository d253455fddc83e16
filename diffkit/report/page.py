"""The page: sections in one HTML file that carries its style and script and may load nothing else.

The content security policy allows exactly the inline style and script written here, by their hashes, and pictures
from data: addresses; so markup from a recipe can neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from .markup import Html, join, tag

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='7' fill='%233d56c9'/%3E%3C/svg%3E"
)


@dataclass(frozen=True)
class Section:
    """One part of the page: `id` is the address in the page, `title` the heading, `lead` one paragraph under it."""

    id: str
    title: str
    body: Html
    lead: str = ""


@cache
def asset(name: str) -> str:
    """Return the text of a file in diffkit/report/assets."""
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def render_page(title: str, header: Html, sections: Sequence[Section], footer: str = "") -> str:
    """Render the whole file.

    Args:
        title: Title of the page.
        header: The head of the page.
        sections: Its parts, in order.
        footer: A line at the end; default none.

    Returns:
        The text of the file.
    """
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("title", f"{title} · diffkit report"),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", class_="skip", href="#report"),
        _navigation(title, sections),
        tag(
            "main",
            header,
            *[_section(section) for section in sections],
            tag("footer", footer) if footer else None,
            id="report",
        ),
        tag("script", Html(script)),
    )
    return "<!doctype html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def card(*children: Html, title: str = "", caption: str | Html = "") -> Html:
    """Make a figure: a picture or chart with heading and caption.

    Args:
        children: Pictures or charts.
        title: Heading; default none.
        caption: Text below; default none.

    Returns:
        The markup of a figure.
    """
    return tag(
        "figure",
        tag("h3", title) if title else None,
        *children,
        tag("figcaption", caption) if caption else None,
        class_="card",
    )


def cards(*figures: Html) -> Html:
    """Arrange figures side by side if the screen is wide enough, else one under the other."""
    return tag("div", join(figures), class_="cards")


def _section(section: Section) -> Html:
    heading = f"{section.id}-heading"
    return tag(
        "section",
        tag("h2", section.title, id=heading),
        tag("p", section.lead, class_="lead") if section.lead else None,
        section.body,
        id=section.id,
        aria_labelledby=heading,
    )


def _navigation(title: str, sections: Sequence[Section]) -> Html:
    places = [("summary", "Summary"), *((section.id, section.title) for section in sections)]
    items = [tag("li", tag("a", name, href=f"#{place}")) for place, name in places]
    brand = tag("p", tag("span", "diffkit", class_="brand"), tag("span", title, class_="run"))
    return tag("nav", brand, tag("ul", *items), aria_label="Parts of the report")


def _digest(text: str) -> str:
    """Return the source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
