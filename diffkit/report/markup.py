"""Build HTML from plain values; every text is escaped, so that untrusted text cannot become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "img", "link", "meta"})
# Characters that break a document (controls, lone surrogates) or make it read as something else (bidi overrides).
_CONTROLS = (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF)
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_BAD = dict.fromkeys((*_CONTROLS, *_BIDI, *range(0xD800, 0xE000)), "\ufffd")


class Html(str):
    """Text that is markup already; `tag` does not escape it again."""

    __slots__ = ()


Child = str | int | float | None


def escape(value: object) -> Html:
    """Escape a value for HTML content and quoted attributes."""
    return value if isinstance(value, Html) else Html(html.escape(str(value).translate(_BAD), quote=True))


def join(parts: Iterable[Child], between: str = "") -> Html:
    """Concatenate the parts that are not None; texts that are not `Html` are escaped."""
    return Html(between.join(escape(part) for part in parts if part is not None))


def tag(name: str, *children: Child, **attributes: Child | bool) -> Html:
    """Make one element.

    Args:
        name: Name of the element.
        children: Content, escaped unless it is `Html`.
        attributes: `class_` becomes class, `data_x` data-x. None and False are left out, True has no value.

    Returns:
        The markup.
    """
    written = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{html.escape(str(value).translate(_BAD))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str) -> str:
    """Convert the Python spelling of an attribute to HTML: class_ to class, a_b to a-b; camelCase names are kept."""
    return key.rstrip("_").replace("_", "-")
