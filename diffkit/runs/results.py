"""The results of a run: its finished stages, the values of metrics, their uncertainty, and the verdict that they allow.

stages.json records each finished stage, so that the same command continues with the next; results.json records the
values of metrics. Torch is not imported here, so that listing commands stay fast.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, RootModel, model_validator

from ..recipe.effective import effective
from ..recipe.spec import Recipe
from ..storage.run_directory import RunDirectory

STAGES_FILE, RESULTS_FILE = "stages.json", "results.json"
Stage = Literal["train", "sample", "reconstruct", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STANDARD_ERROR = "standard_error"
"""The name of the value of a metric of the model that is the standard error of its headline."""
Z_95 = 1.96
"""Half of the width of a 95 % interval, in standard errors."""

GRADES = ("on par with real data", "close to real data", "apart from real data", "far from real data")
RATIO_LIMITS = (1.25, 2.0, 5.0)
"""The largest ratio to the value of real held-out data of each grade but the last."""
RECONSTRUCTIONS = "reconstructions of held-out examples"
"""What stands for the sampler of samples that a codec reconstructed and no model drew: they get no verdict."""
MIN_SAMPLES, SAMPLES_PER_VALUE, MAX_REQUIRED = 100, 4, 10_000
MIN_MEASURES = 2
RULE = (
    f"A verdict needs at least {SAMPLES_PER_VALUE} samples and {SAMPLES_PER_VALUE} held-out examples for each value of "
    f"an example (no fewer than {MIN_SAMPLES}, no more than {MAX_REQUIRED:,}), at least {MIN_MEASURES} measures whose "
    "grades differ by one at most, and 95 % intervals that cover two grades at most. The grade of a measure is that of "
    f"the worse end of the interval of its ratio to real held-out data: “{GRADES[0]}” up to {RATIO_LIMITS[0]:g}, "
    f"“{GRADES[1]}” up to {RATIO_LIMITS[1]:g}, “{GRADES[2]}” up to {RATIO_LIMITS[2]:g}, “{GRADES[3]}” beyond; a metric "
    "may define limits of its own value instead, as the two-sample classifier does. The verdict is the worst grade."
)


class LossByLevel(BaseModel):
    """Mean held-out loss in equal bins of time: the middles of the bins, `level`, and the means, `loss`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    level: tuple[float, ...]
    loss: tuple[float, ...]

    @model_validator(mode="after")
    def _require_pairs(self) -> LossByLevel:
        if len(self.level) != len(self.loss):
            raise ValueError("level and loss must be of equal length")
        return self


class StageRecord(BaseModel):
    """A finished stage: the training step of the weights that it used, its seconds, and the held-out losses of the
    training stage.

    `held_out_loss` is the loss on held-out examples at the last step. `inputs` is the digest of the sections of the
    recipe that the stage depends on, empty in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: NonNegativeInt
    seconds: float = 0.0
    held_out_loss: float | None = None
    loss_by_level: LossByLevel | None = None
    inputs: str = ""


class _Records(RootModel[dict[Stage, StageRecord]]):
    """The records of the finished stages."""


@dataclass(frozen=True)
class StageStatus:
    """The file stages.json of a run."""

    directory: RunDirectory

    def read(self) -> dict[Stage, StageRecord]:
        """Return the finished stages, in the order of a run. Raises CheckpointError if the file is damaged."""
        fix = "delete this file; the next run repeats the stages after training"
        records = self.directory.read_record(STAGES_FILE, _Records, fix).root
        return {stage: records[stage] for stage in STAGES if stage in records}

    def done(self, stage: Stage, step: int, inputs: str | None = None) -> bool:
        """Return whether a stage is finished.

        Args:
            stage: The stage.
            step: Training step of the weights that it must have used.
            inputs: Digest of the sections that it must have used, see `stage_inputs`; default: any.

        Returns:
            Whether its record has this step and these inputs.
        """
        record = self.read().get(stage)
        return record is not None and record.step == step and (inputs is None or record.inputs in ("", inputs))

    def write(self, stage: Stage, record: StageRecord) -> None:
        """Record a finished stage. Seconds of training are added to those of earlier calls."""
        records = self.read()
        if stage == "train" and stage in records:
            record = record.model_copy(update={"seconds": record.seconds + records[stage].seconds})
        entries = records | {stage: record}
        self.directory.write_json(
            STAGES_FILE, {name: one.model_dump(exclude_none=True) for name, one in entries.items()}
        )

    def seconds(self) -> dict[Stage, float]:
        """Return the seconds of each finished stage, in the order of a run."""
        return {stage: record.seconds for stage, record in self.read().items()}


def stage_inputs(recipe: Recipe) -> dict[Stage, str]:
    """Return a digest for each stage after training of the sections of a recipe that it depends on besides weights."""
    values = effective(recipe)
    sections = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    needed: dict[Stage, Iterable[str]] = {
        "sample": ["sample"],
        "reconstruct": ["codec"],
        "evaluate": ["sample", "evaluate"],
        "report": sections,
    }
    return {
        stage: hashlib.sha256("\n".join(sections.get(name, "") for name in names).encode()).hexdigest()[:16]
        for stage, names in needed.items()
    }


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list whose one element is the number of seconds that the block took, once it has ended."""
    spent = [0.0]
    began = time.monotonic()
    try:
        yield spent
    finally:
        spent[0] = time.monotonic() - began


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def interval(value: float, error: float) -> Interval:
    """Return the 95 % interval of a value with this standard error.

    value -/+ 1.96 error; for a positive value the lower end is value / (1 + 1.96 error / value), which is positive and
    to first order the same.
    """
    margin = Z_95 * error
    return Interval(value / (1 + margin / value) if value > 0 else value - margin, value + margin)


class MetricResult(BaseModel):
    """The values of one metric. Values that are not finite are None; the first value of a metric is its headline.

    Attributes:
        headline: Name of the first value.
        values: Values of the samples, by name.
        needs: What was measured: samples (of a codec: reconstructions), the model on held-out data, pairs of examples
            and reconstructions, or a classifier.
        held_out: The same values with real held-out examples in place of the samples: the score of a perfect model.
        train: For a metric of anything but samples, the same values on training examples in place of held-out ones.
        intervals: 95 % intervals of `values`; a name is missing if no interval is available.
        held_out_intervals: 95 % intervals of `held_out`.
        train_intervals: 95 % intervals of `train`.
        ratio: How many times worse the headline is for the samples than for equally many held-out examples; 1 is equal.
        ratio_interval: The 95 % interval of `ratio`.
        definition: What the metric computes, in one sentence.
        protocol: Further settings that the values depend on, by name, such as the network of features and the hash of
        its weights.
        samples: Number of samples that the metric used.
        reference: Number of training examples that it used.
        held_out_count: Number of held-out examples in place of the samples, or on which the model was measured.
        dimension: Number of values in an example.
        lower_is_better: None if the value of real data is best.
        limits: Largest values of the headline for the grades, for a metric that is not graded by its ratio.
        nfe: Network calls for each sample.
        sampler: How the samples were drawn, in words.
        weights: The weights that were used.
        steps: Number of sampling steps.
        drawn: Number of samples that were drawn.
        seed: Seed of the samples.
        step: Training step of the weights.
        own: Whether the samples were drawn as the recipe draws them.
        seconds: Time of the metric.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    headline: str
    values: dict[str, float | None]
    needs: Literal["samples", "model", "pairs", "classifier"] = "samples"
    held_out: dict[str, float | None] = {}
    train: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    held_out_intervals: dict[str, Interval] = {}
    train_intervals: dict[str, Interval] = {}
    ratio: float | None = None
    ratio_interval: Interval | None = None
    definition: str = ""
    protocol: dict[str, str] = {}
    samples: NonNegativeInt = 0
    reference: NonNegativeInt = 0
    held_out_count: NonNegativeInt = 0
    dimension: PositiveInt | None = None
    lower_is_better: bool | None = True
    limits: tuple[float, float, float] | None = None
    nfe: int | None = None
    sampler: str = ""
    weights: str = "ema"
    steps: int | None = None
    drawn: int | None = None
    seed: int | None = None
    step: int | None = None
    own: bool = True
    seconds: float = 0.0

    @property
    def settings(self) -> dict[str, object]:
        """How the samples were drawn: two results of one metric can be compared only if these are equal."""
        drawn = self.samples if self.drawn is None else self.drawn
        return {
            "weights": self.weights,
            "sampler": self.sampler,
            "steps": self.steps,
            "count": drawn,
            "seed": self.seed,
        }

    @property
    def value(self) -> float | None:
        """The headline value of the samples."""
        return self.values.get(self.headline)

    @property
    def standard_error(self) -> float | None:
        """The standard error of the headline of a metric of the model."""
        return self.values.get(STANDARD_ERROR)

    @property
    def required(self) -> int:
        """Number of samples and of held-out examples that a verdict needs."""
        if self.limits is not None or self.dimension is None:
            return MIN_SAMPLES
        return min(max(MIN_SAMPLES, SAMPLES_PER_VALUE * self.dimension), MAX_REQUIRED)

    @property
    def count(self) -> int:
        """The number of samples or of held-out examples, whichever is smaller."""
        return min(self.samples, self.held_out_count)

    @property
    def grades(self) -> tuple[int, int] | None:
        """The grades (indices of `GRADES`) of the ends of the interval, the better one first; None if not graded."""
        if self.limits is not None and self.value is not None:
            ends = self.intervals.get(self.headline, Interval(self.value, self.value))
            return _grade(ends.low, self.limits), _grade(ends.high, self.limits)
        if self.ratio_interval is None:
            return None
        return _grade(self.ratio_interval.low, RATIO_LIMITS), _grade(self.ratio_interval.high, RATIO_LIMITS)


def ratio_of(value: float, held_out: float, lower_is_better: bool | None) -> float | None:
    """Return how many times worse a value is than that of real data.

    Args:
        value: Value of the samples.
        held_out: Value of real held-out data.
        lower_is_better: None if the value of real data is best.

    Returns:
        The ratio, 1 if equal; None if either value is not positive.
    """
    if value <= 0 or held_out <= 0:
        return None
    ratio = value / held_out
    return max(ratio, 1 / ratio) if lower_is_better is None else ratio if lower_is_better else 1 / ratio


class EvaluationResult(BaseModel):
    """The content of results.json.

    Attributes:
        metrics: One result of each metric, in the order in which they were measured: that of the recipe's own
            evaluation if there is one, else the last one.
        others: All other results: of other weights, samplers, numbers of steps or samples, or seeds, and of earlier
            training steps.
    """

    model_config = ConfigDict(frozen=True)

    metrics: dict[str, MetricResult] = {}
    others: dict[str, tuple[MetricResult, ...]] = {}

    @classmethod
    def read(cls, directory: RunDirectory) -> EvaluationResult:
        """Return the results of a run; no metrics before the first evaluation.

        Raises:
            CheckpointError: The file is damaged.
        """
        return directory.read_record(RESULTS_FILE, cls, f"measure again with `diffkit evaluate {directory.path}`")

    def write(self, directory: RunDirectory) -> None:
        """Replace results.json. Raises ResourceError if it cannot be written."""
        directory.write_json(RESULTS_FILE, self.model_dump(mode="json"))

    def updated(self, metrics: Mapping[str, MetricResult]) -> EvaluationResult:
        """Return these results and those of `metrics`; a result with equal settings and weights is replaced."""
        headlines, others = dict(self.metrics), dict(self.others)
        for name, new in metrics.items():
            old = headlines.get(name)
            if old is None or new.own or not old.own:
                headlines[name], new = new, old or new
            kept = [one for one in others.get(name, ()) if not _is_same(one, new)]
            others[name] = tuple(one for one in (*kept, new) if not _is_same(one, headlines[name]))
        others = {name: results for name, results in others.items() if results}
        return EvaluationResult(metrics=headlines, others=others)

    def in_order(self, names: Iterable[str]) -> EvaluationResult:
        """Return the same results, those of `names` first."""
        first = [name for name in names if name in self.metrics]
        ordered = {name: self.metrics[name] for name in dict.fromkeys([*first, *self.metrics])}
        return EvaluationResult(metrics=ordered, others=self.others)

    @property
    def verdict(self) -> Verdict | None:
        """The quality of the samples, or why it is not known; None if none were drawn and measured. See `RULE`."""
        measured = {
            name: one for name, one in self.metrics.items() if one.needs == "samples" and one.sampler != RECONSTRUCTIONS
        }
        if not measured:
            return None
        drawn = next(iter(measured.values())).settings
        return _verdict({name: one for name, one in measured.items() if one.settings == drawn})


@dataclass(frozen=True)
class Verdict:
    """The verdict, a sentence on the quality of the samples. `grade` is an index of `GRADES`, None without a
    verdict.
    """

    text: str
    grade: int | None = None


def _is_same(one: MetricResult, other: MetricResult) -> bool:
    """Return whether two results of a metric measure the same samples."""
    return one.settings == other.settings and one.step == other.step


def _grade(value: float, limits: Iterable[float]) -> int:
    return sum(value > limit for limit in limits)


def _verdict(metrics: Mapping[str, MetricResult]) -> Verdict:
    name, first = next(iter(metrics.items()))
    if first.dimension is None:
        return Verdict("No verdict: these results have no intervals; measure again with `diffkit evaluate`.")
    if not first.held_out:
        return Verdict(f"No verdict: {name} was not measured on real held-out data.")
    if first.count < first.required:
        what, found = ("samples", first.samples)
        if first.samples >= first.required:
            what, found = ("held-out examples", first.held_out_count)
        size = f" for examples of {first.dimension:,} values" if first.required > MIN_SAMPLES else ""
        return Verdict(f"Too few {what} for a verdict: {found:,}, at least {first.required:,} are needed{size}.")
    graded = {key: one.grades for key, one in metrics.items() if one.count >= one.required}
    grades = {key: pair for key, pair in graded.items() if pair is not None}
    if name not in grades:
        return Verdict(f"No verdict: the uncertainty of {name} against real data is not known.")
    if len(grades) < MIN_MEASURES:
        return Verdict(f"One measure ({name}) is too few for a verdict; at least {MIN_MEASURES} are needed.")
    for key, (low, high) in grades.items():
        if high - low > 1:
            return Verdict(f"Too uncertain for a verdict: by {key} the samples are {GRADES[low]} to {GRADES[high]}.")
    ordered = sorted(grades, key=lambda key: grades[key][1])
    best, worst = ordered[0], ordered[-1]
    if grades[worst][1] - grades[best][1] > 1:
        text = f"{best}: {GRADES[grades[best][1]]}; {worst}: {GRADES[grades[worst][1]]}"
        return Verdict(f"No verdict, since the measures disagree ({text}).")
    grade = grades[worst][1]
    return Verdict(f"{GRADES[grade].capitalize()}, by {len(grades)} measures.", grade)
