"""Components of a stranger that misbehave, wrap others, or are of a new kind: `check` fails, or checks them whole."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from diffkit import assemble, load_recipe
from diffkit.cli.check import check as command
from diffkit.errors import ViolationError
from diffkit.host import configure, registry
from diffkit.host.discovery import candidate
from diffkit.recipe.schema import json_schema
from diffkit.testing import Row, check, law_registry, laws

HEAD = """
from dataclasses import dataclass, replace
from pathlib import Path
import sys, torch
from torch import nn
from diffkit import *
from diffkit import Entry, Kind, Shape, build, hookimpl
from diffkit.testing import law
"""
Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Registers components of one module as a plugin: `install(source, "weighting/bad Bad", ...)`."""
    laws()
    monkeypatch.setattr(law_registry, "_LAWS", dict(law_registry._LAWS))
    monkeypatch.setattr(law_registry, "_OWNERS", dict(law_registry._OWNERS))
    made: list[str] = []

    def call(source: str, *entries: str, hooks: str = "") -> str:
        name = f"stranger_{len(made)}"
        made.append(name)
        lines = []
        for entry in entries:
            kind, component, cls = entry.replace("/", " ").split()
            lines.append(f'    yield Entry("{kind}", "{component}", "{name}:{cls}", "of a stranger")')
        text = f"{HEAD}{textwrap.dedent(source)}\n@hookimpl\ndef diffkit_components():\n" + "\n".join(lines)
        (tmp_path / f"{name}.py").write_text(f"{text}\n{hooks}", encoding="utf-8")
        registry().add(candidate(tmp_path / f"{name}.py"))
        return name.replace("_", "-")

    yield call
    configure()
    for name in made:
        sys.modules.pop(name, None)


def by_law(rows: tuple[Row, ...], verdict: str = "fail") -> dict[str, Row]:
    return {row.law: row for row in rows if row.verdict == verdict}


WEIGHTING = """
@dataclass(frozen=True)
class Fine(Weighting):
    def __call__(self, level):
        return level.snr
class Bad(Weighting):
{body}
"""
MISBEHAVING = {
    "exits when it is called": ("def __call__(self, level): raise SystemExit(0)", "SystemExit"),
    "exits when it is built": (
        "def __init__(self): sys.exit(0)\n    def __call__(self, level): return 1.0",
        "SystemExit",
    ),
    "raises a base exception": ("def __call__(self, level): raise BaseException('odd')", "BaseException: odd"),
    "raises an unprintable error": (
        "def __call__(self, level):\n        class Odd(Exception):\n            def __str__(self): raise ValueError\n"
        "        raise Odd",
        "Odd: (Odd: its text cannot be shown)",
    ),
    "raises an endless error": ("def __call__(self, level): raise ValueError('x' * 10**6)", "xxx..."),
    "exemptions are a number": ("law_exemptions = 7\n    def __call__(self, level): return level.snr", "is a int"),
    "exemptions raise": (
        "@property\n    def law_exemptions(self): raise SystemExit(0)\n    def __call__(self, level): return level.snr",
        "SystemExit",
    ),
    "exempts an unknown law": (
        "law_exemptions = {'weihgts': 'why'}\n    def __call__(self, level): return level.snr",
        "names 'weihgts'",
    ),
    "gives no reason": (
        "law_exemptions = {'weights': ' '}\n    def __call__(self, level): return level.snr",
        "no reason for 'weights'",
    ),
    "options are a number": ("law_options = 7\n    def __call__(self, level): return level.snr", "TypeError"),
    "needs an option": (
        "def __init__(self, k: int): pass\n    def __call__(self, level): return level.snr",
        "needs k",
    ),
    "an option is unprintable": (
        "def __init__(self, k: tuple[int, ...] = ()): pass\n    law_options = ({'k': type('K', (), {'__str__': "
        "lambda self: 1 / 0})()},)\n    def __call__(self, level): raise ValueError('here')",
        "here",
    ),
    "changes the default dtype": (
        "def __call__(self, level):\n        torch.set_default_dtype(torch.float64)\n        return level.snr",
        "default dtype",
    ),
    "turns gradients off when it is built": (
        "def __init__(self): torch.set_grad_enabled(False)\n    def __call__(self, level): return level.snr",
        "gradient mode",
    ),
}


@pytest.mark.parametrize("case", MISBEHAVING)
def test_a_misbehaving_component_fails_and_hides_no_other(case: str, install: Install) -> None:
    body, expected = MISBEHAVING[case]
    name = install(WEIGHTING.format(body="    " + body), "weighting/bad Bad", "weighting/fine Fine")
    result = CliRunner().invoke(command, [name])
    assert isinstance(result.exception, ViolationError)
    assert "by weighting/bad" in str(result.exception)
    assert expected in result.stdout
    rows = check([name]).rows
    assert {row.verdict for row in rows if row.component == "weighting/fine"} <= {"pass", "n/a"}
    assert any(row.verdict == "pass" for row in rows if row.component == "weighting/fine")
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_an_import_with_a_side_effect_fails(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "import torch\nfrom diffkit.ddpm.weighting import SNR\ntorch.set_default_dtype(torch.float64)\n"
    (tmp_path / "stranger_late.py").write_text(late, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = install("", hooks='    yield Entry("weighting", "late", "stranger_late:SNR", "late")')
    (row,) = check([name]).failures
    assert row.law == "process-state"
    assert "the import of stranger_late:SNR: it changed the default dtype of torch" in row.example
    del sys.modules["stranger_late"]


def test_exempting_every_law_is_a_warning(install: Install) -> None:
    names = [one.name for one in laws("weighting")]
    body = f"    law_exemptions = dict.fromkeys({names}, 'why not')\n    def __call__(self, level): return 1.0"
    name = install(WEIGHTING.format(body=body), "weighting/bad Bad")
    report = check([name])
    assert report.ok
    assert report.rows[-1].reason == "warning: every law is exempt, so nothing is tested"
    assert "every law is exempt" in CliRunner().invoke(command, [name]).stdout


def test_what_a_component_prints_does_not_reach_the_json(install: Install) -> None:
    body = "    def __call__(self, level):\n        print('noise')\n        return level.snr"
    name = install(WEIGHTING.format(body=body), "weighting/bad Bad")
    assert json.loads(CliRunner().invoke(command, [name, "--json"]).stdout)["ok"] is True


NEW_KIND = """
class Corrector:
    pass
@dataclass(frozen=True)
class Step(Corrector):
    schedule: Schedule
    size: float = {size}
    def __post_init__(self):
        if self.size < 0:
            raise ValueError("size")
"""
KIND = """
@hookimpl
def diffkit_kinds():
    yield Kind("corrector", __name__ + ":Corrector", "a step at one level")
"""
KIND_LAW = """
@law("corrector", statement="size < 1", source="test", tolerance=0.0)
def small(case, result):
    "By definition."
    result.holds(case.component.size < 1, str(case.component.size), "< 1")
"""


def test_components_of_a_new_kind_are_built_and_held_to_its_laws(install: Install) -> None:
    name = install(NEW_KIND.format(size=0.5), "corrector/step Step", hooks=KIND)
    (row,) = check(["corrector/step"]).rows
    assert (row.law, row.verdict) == ("builds", "pass")
    other = install(KIND_LAW, "corrector/long Long", hooks=f"from {name.replace('-', '_')} import Step\n"
                    "@dataclass(frozen=True)\nclass Long(Step):\n    size: float = 2.0")  # fmt: skip
    assert set(by_law(check([other]).rows)) == {"small"}


def test_a_law_of_the_owner_of_a_kind_applies_to_every_component_of_it(install: Install) -> None:
    owner = install(NEW_KIND.format(size=0.5) + KIND_LAW, "corrector/step Step", hooks=KIND)
    user = install(f"from {owner.replace('-', '_')} import Corrector, Step\nclass Long(Step): size = 2.0",
                   "corrector/long Long")  # fmt: skip
    assert check([owner]).ok
    assert check([user]).rows
    bad = install(f"from {owner.replace('-', '_')} import Step\n@dataclass(frozen=True)\nclass Bad(Step):\n"
                  "    size: float = -1.0", "corrector/bad Bad")  # fmt: skip
    (row,) = check([bad]).failures
    assert row.law == "builds"
    assert "ValueError: size" in row.example


def test_the_schema_of_a_kind_without_components(install: Install) -> None:
    install("class Corrector: pass\nclass Fine(Weighting):\n    def __call__(self, level): return level.snr",
            "weighting/fine Fine", hooks=KIND)  # fmt: skip

    def empty(value: object) -> bool:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return any((key in ("anyOf", "enum") and below == []) or empty(below) for key, below in items)

    assert not empty(json_schema())


OWN_LAW = """
@dataclass(frozen=True)
class Constant(Weighting):
    def __call__(self, level):
        return {value} + 0.0 * level.sigma
@law("weighting", statement="w = {value}", source="test", tolerance=0.0)
def formula(case, result):
    "A constant."
    result.compare(case.component(Level(0.6, 0.8)), {value}, "w")
"""


def test_a_law_in_the_module_of_a_component_belongs_to_its_plugin(install: Install) -> None:
    one = install(OWN_LAW.format(value=2.0), "weighting/two Constant")
    other = install(OWN_LAW.format(value=3.0), "weighting/three Constant")
    assert {law.plugin for law in laws("weighting") if law.name == "formula"} == {one, other}
    for plugin, statement in ((one, "w = 2.0"), (other, "w = 3.0")):
        found = [row for row in check([plugin]).rows if row.law == "formula"]
        assert [(row.statement, row.verdict) for row in found] == [(statement, "pass")]
    assert not [row for row in check(["weighting/snr"]).rows if row.law == "formula"]


def test_a_law_that_applies_to_nothing_is_a_failure(install: Install) -> None:
    name = install(OWN_LAW.format(value=2.0).replace("tolerance=0.0", 'tolerance=0.0, only=("tow",)'),
                   "weighting/two Constant")  # fmt: skip
    (row,) = check([name]).failures
    assert "the law formula of the kind weighting applies to no component" in row.example


WRAPPERS = """
@dataclass(frozen=True)
class Again(Sampler[object]):
    inner: Sampler
    law_options = ({"inner": "ancestral"}, {"inner": {"name": "ancestral", "variance": "small"}})
    @property
    def stochastic(self): return self.inner.stochastic
    @property
    def order(self): return self.inner.order
    def start(self, levels): return self.inner.start(levels)
    def step(self, denoise, x, t, s, state, noise): return self.inner.step(denoise, x, t, s, state, noise)

@dataclass(frozen=True)
class Same(Objective):
    inner: Objective
    @property
    def discrete_only(self): return getattr(self.inner, "discrete_only", False)
    def __call__(self, model, x0, noise, **cond): return self.inner(model, x0, noise, **cond)
    def update(self, t, each): self.inner.update(t, each)

class Concat(Network):
    "Analog Bits: the network sees x and a second copy of it."
    @classmethod
    def inner_shape(cls, shape): return replace(shape, in_channels=2 * shape.in_channels)
    def __init__(self, inner: Network):
        super().__init__()
        self.inner = inner
    def forward(self, x, c_noise, label=None):
        return self.inner(torch.cat([x, x.tanh()], 1), c_noise, label=label)
"""


@pytest.mark.parametrize("target", ["sampler/again Again", "objective/same Same", "network/concat Concat"])
def test_wrappers_are_checked_by_name(target: str, install: Install) -> None:
    install(WRAPPERS, target)
    rows = check([target.split()[0]]).rows
    assert sum(row.verdict == "pass" for row in rows) >= 4
    assert not by_law(rows), [(row.law, row.example) for row in by_law(rows).values()]


def test_a_recipe_builds_a_nested_network_with_another_shape(install: Install) -> None:
    install(WRAPPERS, "network/concat Concat")
    text = """
name: nested
data: {name: gaussian, count: 64, held_out: 8}
schedule: linear
parameterization: eps
network: {name: concat, inner: {name: mlp, width: 8}}
objective: simple
train: {steps: 0}
sample: {sampler: ancestral, steps: 2}
"""
    made = assemble(load_recipe(text))
    assert made.shape.in_channels == 1
    assert made.network(torch.zeros(3, 1), torch.zeros(3)).shape == (3, 1)


EXAMPLES = """
class Plain(Network):
    def __init__(self, width: int, channels: int = 2):
        super().__init__()
        self.layer = nn.Linear(channels + 1, channels)
        {attribute}
    def forward(self, x, c_noise):
        return self.layer(torch.cat([x, c_noise[:, None].to(x)], 1))
    @staticmethod
    def law_example({arguments}):
        return Plain(3, {channels})
"""


@pytest.mark.parametrize(
    ("attribute", "arguments", "channels"),
    [
        ("pass", "folder", "2"),
        ("self.shape = Shape(5, 5)", "folder", "5"),
        ("if channels != 2: raise ValueError", "folder, shape", "2 if shape == Shape(2, 2) else 9"),
    ],
)
def test_an_example_of_a_network_has_its_shape(attribute: str, arguments: str, channels: str, install: Install) -> None:
    install(EXAMPLES.format(attribute=attribute, arguments=arguments, channels=channels), "network/plain Plain")
    rows = check(["network/plain"]).rows
    assert "KeyError" not in str(rows)
    assert by_law(rows, "pass").keys() >= {"shapes", "each-alone", "gradients", "state"}
    assert math.isfinite(by_law(rows, "pass")["shapes"].error or 0.0)
