"""Typical mistakes: an edit of a good recipe, the first suggestion that a good message makes, and golden files of the
messages. DIFFKIT_GOLDEN=write writes them again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffkit import load_recipe
from diffkit.errors import RecipeError

GOOD = """\
name: digits
seed: 0
data: {name: digits, labels: false}
schedule:
  name: linear
  steps: 100
  beta_start: 1.0e-3
  beta_end: 0.2
parameterization: eps
network: {name: unet, channels: 32, multipliers: [1, 2], attention: [4]}
objective: simple
train:
  steps: 300
  batch_size: 64
  optimizer: {name: adam, lr: 2.0e-4}
  lr_schedule: {name: constant, warmup: 50}
  ema: 0.99
sample:
  sampler: {name: ancestral, variance: small}
  grid: trailing
  count: 64
evaluate: [frechet]
"""


@dataclass(frozen=True)
class Mistake:
    """`old` in GOOD became `new`, or `sets` were given; `guess` must stand in the first suggestion."""

    name: str
    old: str = ""
    new: str = ""
    guess: str | None = None
    sets: tuple[str, ...] = ()
    found: int = 1

    @property
    def text(self) -> str:
        assert GOOD.count(self.old) >= 1, self.name
        return GOOD.replace(self.old, self.new, 1) if self.old else GOOD


def edit(name: str, old: str, new: str, guess: str | None = None, found: int = 1) -> Mistake:
    return Mistake(name, old, new, guess, (), found)


def flag(name: str, override: str, guess: str | None = None, found: int = 1) -> Mistake:
    return Mistake(name, "", "", guess, (override,), found)


MISTAKES = (
    # keys
    edit("key-typo-top", "schedule:\n", "shedule:\n", '"schedule"'),
    edit("key-typo-nested", "  batch_size", "  batchsize", '"batch_size"'),
    edit("key-typo-component", "  beta_end", "  beta_stop", '"beta_start"'),
    edit("key-typo-case", "beta_end", "Beta_End", '"beta_end"'),
    edit("key-hyphen", "batch_size", "batch-size", '"batch_size"'),
    edit("key-synonym-model", "network:", "model:", '"network"'),
    edit("key-synonym-dataset", "data:", "dataset:", '"data"'),
    edit("key-synonym-loss", "objective:", "loss:", '"objective"'),
    edit("key-synonym-lr", "lr:", "learning_rate:", '"lr"'),
    edit("key-synonym-epochs", "  steps: 300", "  epochs: 300", '"steps"'),
    edit("key-synonym-timesteps", "  steps: 100", "  timesteps: 100", '"steps"'),
    edit("key-synonym-prediction", "parameterization:", "prediction_type:", '"parameterization"'),
    edit("key-synonym-seed", "seed: 0", "random_seed: 0", '"seed"'),
    edit("key-synonym-multipliers", "multipliers", "channel_mult", '"multipliers"'),
    edit("key-synonym-samples", "  count: 64", "  num_samples: 64", '"count"'),
    edit("key-synonym-type", "  name: linear", "  type: linear", '"name"'),
    edit("key-elsewhere-lr", "  ema: 0.99", "  ema: 0.99\n  lr: 1.0e-3", '"train.optimizer.lr"'),
    edit("key-elsewhere-sampler", "evaluate:", "sampler: ancestral\nevaluate:", '"sample.sampler"'),
    edit("key-elsewhere-ema", "evaluate:", "ema: 0.99\nevaluate:", '"train.ema"'),
    edit("key-elsewhere-batch", "evaluate:", "batch_size: 8\nevaluate:", '"train.batch_size"'),
    edit("key-elsewhere-guidance", "evaluate:", "guidance: [clip]\nevaluate:", '"sample.guidance"'),
    edit("key-of-the-recipe", "  ema: 0.99", "  ema: 0.99\n  seed: 3", "at its left edge"),
    edit("key-elsewhere-metrics", "evaluate: [frechet]", "metrics: [frechet]", '"evaluate"'),
    edit("key-british", "optimizer:", "optimiser:", '"optimizer"'),
    edit("key-nonsense", "seed: 0", "seed: 0\nfrobnicate: 1"),
    # names of components
    edit("name-schedule", "name: linear", "name: liner", '"linear"'),
    edit("name-network", "name: unet", "name: u-net", '"unet"'),
    edit("name-network-case", "name: unet", "name: UNet", '"unet"'),
    edit("name-sampler", "name: ancestral", "name: ancestrall", '"ancestral"'),
    edit("name-parameterization", "parameterization: eps", "parameterization: ep", '"eps"'),
    edit("name-parameterization-word", "parameterization: eps", "parameterization: epsilon", '"eps"'),
    edit("name-metric", "[frechet]", "[frechet, sliced_wasserstein]", '"sliced-wasserstein"'),
    edit("name-grid", "grid: trailing", "grid: trailng", '"trailing"'),
    edit("name-data", "name: digits, labels", "name: digit, labels", '"digits"'),
    edit("name-objective", "objective: simple", "objective: simpel", '"simple"'),
    edit("name-other-kind", "name: ancestral, variance: small", "name: linear"),
    edit("name-import-path", "name: unet", "name: torch.nn:Linear"),
    edit("name-missing", "schedule:\n  name: linear\n", "schedule:\n"),
    edit("name-optimizer", "name: adam", "name: adma", '"adam"'),
    # values
    edit("value-quoted-number", "lr: 2.0e-4", 'lr: "2e-4"', "2e-4, without quotes"),
    edit("value-underscore", "steps: 300", "steps: 3_000", "3000"),
    edit("value-k", "steps: 300", "steps: 3k", "3000"),
    edit("value-float-for-int", "batch_size: 64", "batch_size: 64.0", "64"),
    edit("value-exponent-for-int", "steps: 300", "steps: 1e3", "1000"),
    edit("value-yes", "ema: 0.99", "ema: 0.99\n  compile: yes", "true"),
    edit("value-literal", "variance: small", "variance: smal", '"small"'),
    edit("value-precision", "ema: 0.99", "ema: 0.99\n  precision: float16", '"fp16"'),
    edit("value-scalar-for-list", "multipliers: [1, 2]", "multipliers: 2", "[2]"),
    edit("value-range", "lr: 2.0e-4", "lr: -2.0e-4"),
    edit("value-range-open", "beta_end: 0.2", "beta_end: 1.0"),
    edit("value-null", "batch_size: 64", "batch_size:"),
    edit("value-text", "seed: 0", "seed: zero"),
    edit("value-mapping", "steps: 300", "steps: {max: 300}"),
    edit("value-item", "multipliers: [1, 2]", "multipliers: [1, two]"),
    edit("value-name", "name: digits\n", "name: my digits\n"),
    edit("value-odd-channels", "channels: 32", "channels: 33"),
    edit("value-attention", "attention: [4]", "attention: [5]"),
    # structure
    edit("missing-name", "name: digits\n", ""),
    edit("missing-schedule", "schedule:\n  name: linear\n  steps: 100\n  beta_start: 1.0e-3\n  beta_end: 0.2\n", ""),
    edit("missing-steps", "  steps: 300\n", ""),
    edit("yaml-colon", "seed: 0", "seed 0"),
    edit("yaml-tab", "  steps: 300", "\tsteps: 300"),
    edit("yaml-bracket", "[1, 2]", "[1, 2"),
    edit("yaml-duplicate", "seed: 0", "seed: 0\nseed: 1"),
    edit("yaml-tag", "seed: 0", "seed: !!int 0"),
    edit("yaml-alias", "seed: 0", "seed: &s 0", None),
    # contradictions
    edit("cross-warmup", "warmup: 50", "warmup: 500"),
    edit("cross-steps", "  count: 64", "  count: 64\n  steps: 200"),
    edit("cross-labels", "  count: 64", "  count: 64\n  labels: [1, 2]"),
    edit("cross-dropout", "labels: false", "labels: false, condition_dropout: 0.1"),
    edit("cross-learned", "variance: small", "variance: learned"),
    edit("cross-leading", "grid: trailing", "grid: leading\n  steps: 51"),
    edit("cross-accumulate", "ema: 0.99", "ema: 0.99\n  accumulate: 3"),
    edit("cross-ema", "ema: 0.99", "ema: {decay: 0.99, half_life: 1000}"),
    # overrides
    flag("set-key", "trian.steps=3", '"train"'),
    flag("set-nested", "train.optimizer.LR=1", '"lr"'),
    flag("set-value", "train.steps=many"),
    flag("set-equals", "train.steps:3"),
    flag("set-scalar", "seed.x=3"),
    flag("set-comment", "name=a #1"),
)

GOLDEN = Path(__file__).parent / "golden"


def faults(mistake: Mistake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeError:
    monkeypatch.chdir(folder)
    Path("recipe.yaml").write_text(mistake.text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml", mistake.sets)
    return caught.value


def test_the_recipe_without_mistakes_is_valid() -> None:
    assert load_recipe(GOOD).name == "digits"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_message(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = faults(mistake, tmp_path, monkeypatch)
    text = error.render() + "\n"
    golden = GOLDEN / f"{mistake.name}.txt"
    if os.environ.get("DIFFKIT_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()
    assert len(error.errors) == mistake.found
    for fault in error.errors:
        assert fault.code.startswith("DK1")
        assert fault.where is not None
        assert fault.where.line >= 1
        assert fault.where.column >= 1


def test_first_suggestions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the mistakes that have a right suggestion, it is the first one in more than nine of ten."""
    asked = [mistake for mistake in MISTAKES if mistake.guess is not None]
    wrong = [m.name for m in asked if not _right(m, faults(m, tmp_path, monkeypatch))]
    assert len(wrong) <= len(asked) // 12, wrong


def _right(mistake: Mistake, error: RecipeError) -> bool:
    hints = [fault.hint for fault in error.errors if fault.hint]
    return bool(hints) and mistake.guess is not None and mistake.guess in hints[0]


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {mistake.name for mistake in MISTAKES}
