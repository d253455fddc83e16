"""SECURITY.md states what diffkit trusts; the limits that it names are those of the code."""

from __future__ import annotations

from diffkit.recipe.yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES
from diffkit.storage.run_directory import RUN_NAME

from .sources import ROOT


def test_the_limits_are_those_of_the_code() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"at most {MAX_BYTES >> 20} MiB, {MAX_NODES:,} values and {MAX_DEPTH} levels" in text
    assert f"`{RUN_NAME.pattern}`" in text
