"""`check`: verdicts, examples, exemptions, and targets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from diffkit import Denoiser, Level, Sampler, Scalar, Weighting, transition
from diffkit.cli.check import check as command
from diffkit.errors import PluginError, RecipeError, UsageError, ViolationError
from diffkit.host import registry
from diffkit.sampler import Noise
from diffkit.testing import LawResult, NotApplicable, Row, check, check_class, laws
from diffkit.testing.case import Case, build_cases


@dataclass(frozen=True)
class Honest(Sampler[None]):
    """DDIM."""

    eta: float = 0.0
    law_options = ({"eta": 1.0},)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        return denoise(x, t).step_to(s, self.eta * float(transition.posterior(t, s)), noise), None


@dataclass(frozen=True)
class Azula(Honest):
    """A second-order step with sigma_t in the place of sigma_s, as once published (identities K)."""

    order = 2
    law_options = ()


class Remembering(Sampler[None]):
    """Keeps the last x0 on itself."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        before, self.last = self.last, estimate.x0
        mixed = (
            estimate
            if before is None or before.shape != x.shape
            else estimate.with_x0(0.9 * estimate.x0 + 0.1 * before)
        )
        return (mixed.step_to(s) if not s.is_clean else estimate.step_to(s)), None


@dataclass(frozen=True)
class Excused(Azula):
    """Says why."""

    law_exemptions = {"order": "it is a demonstration"}  # noqa: RUF012


class Raising(Honest):
    """A bug."""

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        raise RuntimeError("a bug in the step")


@dataclass(frozen=True)
class Needing(Honest):
    path: str = ""

    def __init__(self, path: str) -> None:
        object.__setattr__(self, "path", path)


def by_law(rows: list[Row]) -> dict[str, Row]:
    return {row.law: row for row in rows}


def test_an_honest_sampler_passes() -> None:
    rows = check_class("sampler", "honest", Honest)
    assert {row.verdict for row in rows} <= {"pass", "n/a"}
    assert len(rows) >= 14
    assert all(row.error is not None and row.tolerance is not None for row in rows if row.verdict == "pass")


def test_a_wrong_order_is_told_with_its_slope() -> None:
    row = by_law(check_class("sampler", "azula", Azula))["order"]
    assert row.verdict == "fail"
    assert row.error == pytest.approx(1.0, abs=0.05)
    assert "slope 1.0" in row.example
    assert row.expected == "2"


def test_hidden_state_is_found() -> None:
    broken = {row.law for row in check_class("sampler", "remembering", Remembering) if row.verdict == "fail"}
    assert "pure" in broken


def test_an_exemption_is_shown_with_its_reason() -> None:
    row = by_law(check_class("sampler", "excused", Excused))["order"]
    assert (row.verdict, row.reason) == ("exempt", "excused: it is a demonstration")


def test_an_exception_is_a_violation() -> None:
    row = by_law(check_class("sampler", "raising", Raising))["point-mass"]
    assert row.verdict == "fail"
    assert row.error == math.inf
    assert "RuntimeError: a bug in the step" in row.example


def test_what_cannot_be_built_says_what_it_needs() -> None:
    (row,) = check_class("sampler", "needing", Needing)
    assert row.verdict == "fail"
    assert "needs path" in row.example


def test_every_option_set_is_tried() -> None:
    assert [one.label for one in build_cases("sampler", "honest", Honest)] == ["honest", "honest(eta=1.0)"]


def test_law_example(tmp_path: Path) -> None:
    class Made(Needing):
        @staticmethod
        def law_example(folder: Path) -> Needing:
            assert list(folder.iterdir()) == []
            return Needing(str(folder))

    (one,) = build_cases("sampler", "made", Made)
    assert one.component.path


def test_the_worst_error_and_the_first_example() -> None:
    result = LawResult(0.1)
    for error, example in ((0.05, "small"), (0.2, "first beyond"), (0.9, "worst")):
        result.note(error, example, "0")
    assert (result.error, result.example) == (0.9, "first beyond")
    result.note(math.nan, "nan")
    assert result.error == math.inf
    within = LawResult(1.0)
    within.note(0.1, "a")
    within.note(0.5, "b")
    within.note(0.3, "c")
    assert (within.error, within.example) == (0.5, "b")


def test_compare() -> None:
    result = LawResult(1e-6)
    result.compare(torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf]), "equal infinities")
    assert result.error == 0.0
    result.compare(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), "second entry")
    assert result.example == "second entry: 2"
    assert result.expected == "3"
    result.compare(torch.zeros(2), torch.zeros(3), "shapes")
    assert result.error == math.inf
    unlike = LawResult(0.5)
    unlike.compare(torch.tensor([math.nan]), torch.tensor([0.0]), "nan")
    assert unlike.error == math.inf


def test_laws_are_documented() -> None:
    """Statement, derivation and source of every law: the pages are generated from them."""
    kinds = {one.kind for one in laws()}
    assert kinds >= {
        "schedule", "parameterization", "sampler", "grid", "times", "weighting", "objective", "guidance",
        "network", "codec", "augmentation", "data", "metric", "ema",
    }  # fmt: skip
    for one in laws():
        assert one.statement, one.name
        assert one.derivation, one.name
        assert one.source, one.name
        assert one.tolerance >= 0
    assert len({(one.plugin, one.kind, one.name) for one in laws()}) == len(laws())


def test_targets() -> None:
    one = check(["grid/trailing"])
    assert {row.component for row in one.rows} == {"grid/trailing"}
    assert one.ok
    both = check(["grid/trailing", "weighting"])
    assert {row.component for row in both.rows} == {"grid/trailing"} | {
        f"weighting/{e.name}" for e in registry().entries("weighting")
    }
    assert {row.component for row in check(["ema"]).rows} == {"ema"}
    seen: list[str] = []
    check(["codec/identity"], on_row=lambda row: seen.append(row.law))
    assert "round-trip" in seen


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="unknown target") as caught:
        check(["gird"])
    assert caught.value.hint == 'did you mean "grid"?'
    with pytest.raises((RecipeError, PluginError)):
        check(["sampler/nonsense"])


def test_the_same_seed_gives_the_same_report() -> None:
    first, again, other = (check(["guidance/clip"], seed=seed).rows for seed in (0, 0, 1))
    assert first == again
    assert [row.law for row in other] == [row.law for row in first]


def test_command_json() -> None:
    result = CliRunner().invoke(command, ["grid/leading", "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["ok"] is True
    laws_told = {row["law"]: row for row in told["rows"]}
    assert laws_told["length"]["verdict"] == "pass"
    assert laws_told["refines"]["verdict"] == "n/a"


def test_command_table_and_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffkit.basics import grid

    good = CliRunner().invoke(command, ["grid/trailing"])
    assert "t_j = T (1 - j / n)" in good.stdout
    assert " pass, 0 fail" in good.stdout
    monkeypatch.setattr(
        grid.Trailing, "points", lambda self, schedule, n: [schedule.t_noise / (j + 1) for j in range(n)]
    )
    bad = CliRunner().invoke(command, ["grid/trailing"])
    assert isinstance(bad.exception, ViolationError)
    assert bad.exception.exit_code == 10
    assert bad.exception.code == "DK700"
    assert "grid/trailing breaks trailing-points" in bad.stdout
    assert "expected: 7.0" in bad.stdout  # 3 steps of 10: 10 * 2 / 3, rounded


def test_a_law_that_does_not_apply_says_why() -> None:
    def check_nothing(case: Case, result: LawResult) -> None:
        raise NotApplicable("because")

    from diffkit.testing.engine import apply
    from diffkit.testing.law_registry import Law

    where = Row("sampler/x", "", "", "", None, None, "n/a")
    one = Law("sampler", "x", "s", "s", 0.0, "", check_nothing)
    row = apply(one, Case("sampler", "x", Honest()), where)
    assert (row.verdict, row.reason) == ("n/a", "because")
    silent = Law("sampler", "x", "s", "s", 0.0, "", lambda case, result: None)
    assert apply(silent, Case("sampler", "x", Honest()), where).verdict == "n/a"


@dataclass(frozen=True)
class Chunked(Weighting):
    """An option that limits memory, and one that no line reads."""

    rows: int = 64
    gamma: float = 5.0
    law_exemptions = {"options.rows": "it limits memory only"}  # noqa: RUF012 - read only

    def __call__(self, level: Level) -> Scalar:
        return level.snr


def test_one_option_can_be_exempt() -> None:
    broken = [row for row in check_class("weighting", "chunked", Chunked) if row.verdict == "fail"]
    assert [row.law for row in broken] == ["options"]
    assert "gamma" in broken[0].example
