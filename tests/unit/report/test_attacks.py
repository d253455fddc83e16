"""No text of a report or a comparison becomes markup: twelve attacks in every field."""

from __future__ import annotations

import pytest

from ...hostile_texts import ATTACKS, pages
from .conftest import Document

ORDINARY = [Document(page) for page in pages("plain text")]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_every_text_stays_text(attack: str) -> None:
    for page, ordinary in zip(pages(attack), ORDINARY, strict=True):
        read = Document(page)
        assert [name for name, _ in read.tags] == [name for name, _ in ordinary.tags]
        assert [set(found) for _, found in read.tags] == [set(found) for _, found in ordinary.tags]
        assert attack in read.words
        links = [found["href"] or "" for found in read.all("a")]
        assert all(link.startswith(("#", "https://")) for link in links), links
