"""Every hook is documented with its signature, and each example in that page is a plugin that loads."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from diffkit.host import entry, registry

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
HOOKS = {name: value for name, value in vars(entry).items() if name.startswith("diffkit_")}
SECTIONS = {
    part.split("`")[1].partition("(")[0]: part
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    if part.startswith("`")
}


def test_the_page_has_every_hook_and_no_other() -> None:
    assert list(SECTIONS) == list(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_the_signature_is_that_of_the_code(name: str) -> None:
    signature = str(inspect.signature(HOOKS[name])).replace("'", "")
    assert SECTIONS[name].startswith(f"`{name}{signature}`\n")
    assert (HOOKS[name].__doc__ or "").splitlines()[0] in SECTIONS[name]


@pytest.mark.parametrize("name", HOOKS)
def test_the_example_is_a_plugin_that_loads(name: str, site) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert f"def {name}" in example
    package = site.install("doc", example, head="")
    site.write(f"{package}/recipes/small.yaml", "name: small\n")
    plugin = registry().plugins[-1]
    assert plugin.status == "ok", plugin.error
