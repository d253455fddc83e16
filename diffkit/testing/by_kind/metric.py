"""Laws of metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.classifier import Classifier
from diffkit.codec import Identity
from diffkit.data import DataSpec
from diffkit.denoiser import Denoiser
from diffkit.metric import Evaluation, Metric, ModelSetting, Store, TrainedClassifier, TrainedModel
from diffkit.oracles import GaussianOracle
from diffkit.recipe.assembly import build

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, reference_of

COUNT = 200


def evaluation_of(case: Case) -> Evaluation:
    """Return an evaluation of two separate classes of vectors; all three sets have one distribution."""
    labels = torch.arange(COUNT) % 2
    centre = torch.stack([labels * 3.0 - 1.5, -labels.float()], 1)
    train, held_out, samples = (
        (centre + 0.5 * case.normal(COUNT, 2, stream=name)).float() for name in ("train", "held-out", "samples")
    )
    spec = DataSpec(2, classes=2)
    return Evaluation(spec, samples, train, held_out, labels, labels, labels, seed=case.seed)


def of_samples(case: Case) -> Metric:
    """Return the metric under test. Raises NotApplicable if it measures anything but samples."""
    metric: Metric = case.component
    if metric.needs != "samples":
        raise NotApplicable(f"the metric measures {metric.needs}, not samples")
    return metric


def of_model(case: Case, denoise: Denoiser | None = None) -> Evaluation:
    """Return an evaluation of a model on standard normal vectors; by default of the exact denoiser."""
    train, held_out = (case.normal(COUNT, 2, stream=name).float() for name in ("train", "held-out"))
    spec = DataSpec(2)
    setting = ModelSetting(spec, build("schedule", "cosine", steps=20), build("grid", "trailing"))
    model = TrainedModel(setting, denoise or GaussianOracle(0.0, 1.0), Identity())
    return Evaluation(spec, held_out[:0], train, held_out, seed=case.seed, model=model)


def of_pairs(case: Case, error: float = 0.1) -> Evaluation:
    """Return an evaluation of images and their reconstructions, whose errors have this standard deviation."""
    x, noise = (case.normal(COUNT // 4, 1, 16, 16, stream=name).float() for name in ("pairs", "errors"))
    x = x.tanh()
    spec = DataSpec(1, (16, 16), bounded=True)
    return Evaluation(spec, (x + error * noise).clamp(-1, 1), x, x, seed=case.seed, references=x)


class _Signs(nn.Module):
    """A network whose logits of two classes are x and -x, or the other way round."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.sign * torch.cat([-x, x], 1)


def of_classifier(case: Case, sign: float = 1.0) -> Evaluation:
    """Return an evaluation of a classifier with two classes: always right if `sign` is 1, always wrong if it is -1."""
    labels = torch.arange(COUNT) % 2
    x = (2.0 * labels - 1.0)[:, None] + 0.1 * case.normal(COUNT, 1, stream="classes").float()
    classify = Classifier(_Signs(sign), build("schedule", "cosine", steps=20))
    trained = TrainedClassifier(classify, Identity(), batch_size=64)
    spec = DataSpec(1, classes=2)
    return Evaluation(spec, x[:0], x, x, None, labels, labels, seed=case.seed, classifier=trained)


def setting_of(case: Case) -> Evaluation:
    """Return an evaluation of what the metric under test measures."""
    made = {"samples": evaluation_of, "model": of_model, "pairs": of_pairs, "classifier": of_classifier}
    return made[case.component.needs](case)


def first_value(values: Mapping[str, float]) -> float:
    """Return the first value of a metric, its headline."""
    return float(next(iter(values.values())))


@law(
    "metric",
    statement="every value is a finite number, the same in each call, and torch's generator is not used",
    source="the definition of Metric",
    tolerance=0.0,
)
def repeatable(case: Case, result: LawResult) -> None:
    """Evaluation does not change training, and results can be reproduced."""
    metric: Metric = case.component
    evaluation = setting_of(case)
    before = torch.random.get_rng_state()
    first = metric(evaluation)
    result.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    result.holds(len(first) > 0 and bool(metric.definition), "no value, or no definition", "both")
    for name, value in first.items():
        result.holds(isinstance(value, float) and math.isfinite(value), f"{name} = {value!r}", "a finite float")
    again = metric(evaluation)
    result.holds(dict(first) == dict(again), f"{dict(again)}", f"{dict(first)}")


@law("metric", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-4)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of samples, train, held_out: (N, D) float64, their labels, or evaluation: the headline, or values by
    name; or a table of known cases, each (samples, train, value) with points as lists of numbers.
    """
    metric = of_samples(case)
    stated = reference_of(case)
    if not callable(stated):
        for samples, train, want in stated:
            ours, theirs = (torch.tensor(points, dtype=torch.float32) for points in (samples, train))
            found = metric(Evaluation(DataSpec(ours.shape[1]), ours, theirs, theirs, seed=case.seed))
            _compare_values(result, found, want, f"samples {samples}, train {train}")
        return
    for title, evaluation in evaluations(case).items():
        values = {
            "samples": evaluation.samples.double(),
            "train": evaluation.train.double(),
            "held_out": evaluation.held_out.double(),
            "sample_labels": evaluation.sample_labels,
            "train_labels": evaluation.train_labels,
            "held_out_labels": evaluation.held_out_labels,
            "evaluation": evaluation,
        }
        _compare_values(result, metric(evaluation), evaluate(stated, values), title)


def _compare_values(result: LawResult, found: Mapping[str, float], want: Any, title: str) -> None:
    for name, value in (want if isinstance(want, Mapping) else {next(iter(found)): want}).items():
        result.compare(found.get(name, math.nan), float(value), f"{name} of {title}", 1e-2)


def evaluations(case: Case) -> dict[str, Evaluation]:
    """Return small evaluations that differ in what a metric may confuse: samples and data, counts, classes."""
    whole = evaluation_of(case)
    labels = whole.sample_labels
    assert labels is not None
    few = torch.arange(60)
    base = replace(whole, samples=whole.samples[few], sample_labels=labels[few])
    base = replace(base, train=whole.train[:80], train_labels=labels[:80], held_out=whole.held_out[:70])
    base = replace(base, held_out_labels=labels[:70])
    one_class = torch.nonzero(labels == 0).flatten()[:50]
    return {
        "equal distributions": base,
        "samples of one class": replace(base, samples=whole.samples[one_class], sample_labels=labels[one_class]),
        "wide samples": replace(base, samples=3.0 * base.samples + 0.5),
        "narrow samples": replace(base, samples=0.2 * base.samples - 0.5),
    }


@law(
    "metric",
    statement="samples of the true distribution score better than shifted ones, and than wide or narrow ones",
    source="the definition of Metric",
    tolerance=0.0,
)
def ranks(case: Case, result: LawResult) -> None:
    """`lower_is_better` states the direction. A distance is worse for samples that are wider than the data. Precision
    measures quality alone and is worse for wide samples; recall measures diversity alone and is worse for narrow ones.
    """
    metric = of_samples(case)
    if metric.lower_is_better is None:
        raise NotApplicable("lower_is_better is None")
    evaluation = evaluation_of(case)
    good = first_value(metric(evaluation))
    centre = evaluation.samples.mean(0)
    bad = {
        "shifted by 4": evaluation.samples + torch.tensor([-4.0, 4.0]),
        "five times as wide": 5.0 * evaluation.samples,
        "a tenth as wide": centre + 0.1 * (evaluation.samples - centre),
    }
    worse = {}
    for name, samples in bad.items():
        score = first_value(metric(replace(evaluation, samples=samples)))
        worse[name] = score > good if metric.lower_is_better else score < good
        if name.startswith("shifted") or (metric.lower_is_better and name.startswith("five")):
            result.holds(worse[name], f"{name}: {score:.5g}, true law: {good:.5g}", "a worse value")
    noticed = any(worse[name] for name in bad if not name.startswith("shifted"))
    result.holds(noticed, "wide and narrow samples score as well as those of the true law", "one of them worse")


@law(
    "metric",
    statement="no samples score better than the training examples themselves, to 2 percent",
    source="the definition of a distance",
    tolerance=0.0,
)
def identity(case: Case, result: LawResult) -> None:
    """A distance is least, and a measure of quality largest, for equal sets."""
    metric = of_samples(case)
    if metric.lower_is_better is None:
        raise NotApplicable("lower_is_better is None")
    evaluation = evaluation_of(case)
    same = replace(evaluation, samples=evaluation.train, sample_labels=evaluation.train_labels)
    best, other = first_value(metric(same)), first_value(metric(evaluation))
    room = 0.02 * max(abs(best), abs(other))
    fine = best <= other + room if metric.lower_is_better else best >= other - room
    result.holds(fine, f"training examples: {best:.5g}, other samples of their law: {other:.5g}", "not better")


FAMILIES = {"precision": "quality", "density": "quality", "recall": "diversity", "coverage": "diversity"}
"""What values with these words in their names measure."""


@law(
    "metric",
    statement="precision and density fall for samples far from the data, recall and coverage for a class left out",
    source="Kynkaanniemi et al. 2019 (arXiv:1904.06991), fig. 1; Naeem et al. 2020 (arXiv:2002.09797), sec. 3",
    tolerance=0.0,
)
def quality_diversity(case: Case, result: LawResult) -> None:
    """The values are recognised by their names. Each of the two kinds changes little in the other case."""
    metric = of_samples(case)
    evaluation = evaluation_of(case)
    labels = evaluation.sample_labels
    assert labels is not None
    far = evaluation.samples.clone()
    far[::4] += 40.0
    far[1::4] += 40.0
    one = evaluation.samples.clone()
    one[labels == 1] = (torch.tensor([-1.5, 0.0]) + 0.5 * case.normal(COUNT, 2, stream="one")).float()[labels == 1]
    full = metric(evaluation)
    scores = {"far": metric(replace(evaluation, samples=far)), "one": metric(replace(evaluation, samples=one))}
    for name, value in full.items():
        kind = next((kind for word, kind in FAMILIES.items() if word in name.lower()), None)
        if kind is None:
            continue
        falls = "far" if kind == "quality" else "one"
        for changed, found in scores.items():
            share = found[name] / value if value else math.nan
            where = "half of the samples far away" if changed == "far" else "samples of one class of two"
            fine = share < 0.75 if changed == falls else share > 0.65
            result.holds(fine, f"{name}, {where}: {share:.3g} of the value before", f"as {kind} does")


@law(
    "metric",
    statement="the value does not depend on the order of the examples",
    source="the definition of Metric",
    tolerance=1e-4,
)
def order_free(case: Case, result: LawResult) -> None:
    """A metric compares sets; labels are reordered together with their examples."""
    metric = of_samples(case)
    evaluation = evaluation_of(case)
    order = torch.randperm(COUNT, generator=case.generator("order"))
    want = metric(evaluation)
    for part, labels in (
        ("samples", "sample_labels"),
        ("train", "train_labels"),
        ("held_out", "held_out_labels"),
    ):
        moved = {part: getattr(evaluation, part)[order], labels: _take(getattr(evaluation, labels), order)}
        for name, value in metric(replace(evaluation, **moved)).items():
            result.compare(value, want[name], f"{name}, {part} in another order")


@law(
    "metric",
    statement="a metric uses those sets of examples, and the labels, that its description names",
    source="the definition of Metric",
    tolerance=0.0,
)
def sets_used(case: Case, result: LawResult) -> None:
    """Samples are compared with the training examples; one that uses held-out examples or labels states it.

    The words are searched in `definition` and in the docstring of the class.
    """
    metric = of_samples(case)
    text = f"{metric.definition} {type(metric).__doc__}".lower()
    evaluation = evaluation_of(case)
    kept = [getattr(evaluation, part).clone() for part in ("samples", "train", "held_out")]
    want = dict(metric(evaluation))
    for part, value in zip(("samples", "train", "held_out"), kept, strict=True):
        result.holds(torch.equal(getattr(evaluation, part), value), f"{part} afterwards: other values", "the same")
    if not re.search(r"held.?out|unseen|test", text):
        moved = metric(replace(evaluation, held_out=evaluation.held_out + 3.0))
        result.holds(dict(moved) == want, f"other held-out examples: {dict(moved)}", f"{want}, or a word on them")
    if re.search(r"train|reference|real|data", text):
        moved = metric(replace(evaluation, train=1.3 * evaluation.train + 2.0))
        result.holds(dict(moved) != want, f"other training examples: {dict(moved)}", "another value")
    if not re.search(r"label|class", text):
        moved = metric(replace(evaluation, sample_labels=None, train_labels=None, held_out_labels=None))
        result.holds(dict(moved) == want, f"without labels: {dict(moved)}", f"{want}, or a word on labels")


@law(
    "metric",
    statement="prepare(evaluation)(rows) is the metric of these samples, also if they are fewer than the examples",
    source="the definition of Metric.prepare",
    tolerance=1e-9,
)
def prepared(case: Case, result: LawResult) -> None:
    """Confidence intervals come from `prepare`, the number itself from a call."""
    metric = of_samples(case)
    evaluation = evaluation_of(case)
    labels = evaluation.sample_labels
    assert labels is not None
    for rows in (torch.arange(COUNT), torch.arange(40, 160)):
        want = metric(evaluation.with_samples(evaluation.samples[rows], labels[rows]))
        got = metric.prepare(evaluation)(rows)
        for name, value in want.items():
            result.compare(got[name], value, f"{name} of {len(rows)} samples")


@law(
    "metric",
    statement="a metric of the model ranks the exact denoiser first, and its values do not depend on the batches",
    source="the definition of Metric.needs",
    tolerance=1e-4,
)
def model_ranks(case: Case, result: LawResult) -> None:
    """The other denoisers are exact for data that is shifted, a third as wide, or three times as wide."""
    metric: Metric = case.component
    if metric.needs != "model":
        raise NotApplicable("the metric measures samples")
    evaluation = of_model(case)
    assert evaluation.model is not None
    best = first_value(metric(evaluation))
    others = {
        "shifted": GaussianOracle(1.5, 1.0),
        "a third as wide": GaussianOracle(0.0, 0.1),
        "three times as wide": GaussianOracle(0.0, 9.0),
    }
    for name, denoise in others.items():
        value = first_value(metric(of_model(case, denoise)))
        worse = value > best if metric.lower_is_better else value < best
        result.holds(worse, f"a model of {name} data: {value:.5g}, the exact one: {best:.5g}", "a worse value")
    small = replace(evaluation, model=replace(evaluation.model, batch_size=7, store=Store()))
    result.compare(first_value(metric(small)), best, "batches of 7 examples")


@law(
    "metric",
    statement="a metric of pairs ranks by the error, is the mean over its pairs, and is best for equal ones",
    source="the definition of Metric.needs",
    tolerance=1e-9,
)
def pair_ranks(case: Case, result: LawResult) -> None:
    """Sample i is compared with reference i, also if `prepare` chooses rows: other pairs have a worse value."""
    metric: Metric = case.component
    if metric.needs != "pairs":
        raise NotApplicable("the metric does not measure pairs")
    sign = -1.0 if metric.lower_is_better else 1.0
    found = {error: sign * first_value(metric(of_pairs(case, error))) for error in (0.0, 0.1, 0.3)}
    result.holds(found[0.0] > found[0.1] > found[0.3], f"by error: {found}", "worse with the error")
    evaluation = of_pairs(case)
    half = torch.arange(0, COUNT // 4, 2)
    of_rows, whole = metric.prepare(evaluation), first_value(metric(evaluation))
    result.compare((first_value(of_rows(half)) + first_value(of_rows(half + 1))) / 2, whole, "the mean of halves")
    assert evaluation.references is not None
    mixed = replace(evaluation, references=evaluation.references.flip(0))
    result.holds(sign * first_value(metric(mixed)) < found[0.3], "pairs of other examples: as good", "worse")


@law(
    "metric",
    statement="a metric of a classifier ranks right classes over wrong ones, and does not depend on the batches",
    source="the definition of Metric.needs",
    tolerance=1e-9,
)
def classifier_ranks(case: Case, result: LawResult) -> None:
    """The classes are the signs of two numbers, which much noise hides."""
    metric: Metric = case.component
    if metric.needs != "classifier":
        raise NotApplicable("the metric does not measure a classifier")
    sign = -1.0 if metric.lower_is_better else 1.0
    evaluation = of_classifier(case)
    best, worst = first_value(metric(evaluation)), first_value(metric(of_classifier(case, -1.0)))
    result.holds(sign * best > sign * worst, f"right classes: {best:.5g}, wrong ones: {worst:.5g}", "a better value")
    assert evaluation.classifier is not None
    small = replace(evaluation, classifier=replace(evaluation.classifier, batch_size=7))
    result.compare(first_value(metric(small)), best, "batches of 7 examples")


def _take(labels: Tensor | None, order: Tensor) -> Tensor | None:
    return None if labels is None else labels[order]
