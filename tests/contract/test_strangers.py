"""Laws pass the components of strangers, and find each of their mistakes."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import strangers
from strangers import KINDS, MISTAKES

from diffkit.testing import check_class

SOURCE = Path(strangers.__file__).read_text(encoding="utf-8").partition("\nKINDS: ")[0]
KIND = {cls.__name__: kind for kind, classes in KINDS.items() for cls in classes}
QUICK = MISTAKES[:: max(1, len(MISTAKES) // 12)]
"""One mistake of every few; all of them are tried at night."""
_NUMBER = itertools.count()


def broken(module: ModuleType, name: str) -> list[str]:
    rows = check_class(KIND[name], name.lower(), getattr(module, name))
    return [f"{row.law}: {row.example}; expected {row.expected}" for row in rows if row.verdict == "fail"]


def changed(folder: Path, name: str, old: str, new: str) -> ModuleType:
    """The module with one line of one class, or of the class that it builds, in another form."""
    before, text, after = re.split(rf"(?ms)(^class _?{name}\(.*?)(?=^@dataclass|^class (?!{name})|\Z)", SOURCE, maxsplit=1)
    assert old in text, f"{name} has no line with {old}"
    title = f"strangers_{next(_NUMBER)}"
    path = folder / f"{title}.py"
    path.write_text(before + text.replace(old, new, 1) + after, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", KIND)
def test_no_false_alarm(name: str) -> None:
    assert broken(strangers, name) == []


@pytest.mark.parametrize(("cls", "old", "new"), QUICK)
def test_a_mistake_is_found(tmp_path: Path, cls: type, old: str, new: str) -> None:
    assert broken(changed(tmp_path, cls.__name__, old, new), cls.__name__)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "old", "new"), MISTAKES)
def test_every_mistake_is_found(tmp_path: Path, cls: type, old: str, new: str) -> None:
    assert broken(changed(tmp_path, cls.__name__, old, new), cls.__name__)
