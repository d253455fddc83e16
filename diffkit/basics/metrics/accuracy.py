"""The accuracy of a classifier of noisy examples, by noise level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from diffkit import Evaluation, Metric, UsageError
from diffkit.metric import Tensors, TrainedClassifier
from diffkit.times import at_fraction

from .pixels import row_blocks


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of held-out examples whose most probable class is right, at noise levels over the whole schedule.

    `levels` times are spread evenly over the schedule. The first value is the mean over all of them, each further one
    that at the time in its name. Noise and examples are the same for each classifier of the same schedule and seed.
    Examples are read in blocks, each with noise of its own.
    """

    levels: Annotated[int, Field(ge=1, le=100)] = 10
    needs = "classifier"
    lower_is_better = False

    @property
    def definition(self) -> str:
        return f"share of examples that are classified right, mean over {self.levels} times spread over the schedule"

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        classifier, labels, x = evaluation.classifier, evaluation.held_out_labels, evaluation.held_out
        if classifier is None or labels is None:
            fix = "measure it in a run of task: classifier, or remove the metric"
            raise UsageError("accuracy measures a classifier of examples with classes", code="DK124", fix=fix)
        fractions = (torch.arange(self.levels) + 0.5) / self.levels
        times = at_fraction(fractions, classifier.classify.schedule).sort().values.tolist()
        right = torch.zeros(self.levels, len(labels), dtype=torch.float64)
        with torch.no_grad():
            for block in row_blocks(x.flatten(1)):
                for row, (found,) in zip(right, self._right(evaluation, classifier, block, times), strict=True):
                    row[block] = found.double()
        values = {"accuracy": float(right.mean()), "standard_error": float(right.mean(0).std()) / len(labels) ** 0.5}
        return values | {f"t={t:.4g}": float(row.mean()) for t, row in zip(times, right, strict=True)}

    def _right(
        self, evaluation: Evaluation, classifier: TrainedClassifier, block: slice, times: Sequence[float]
    ) -> Iterator[Tensors]:
        """Yield for each time whether the examples of a block are classified right; processes share the times."""
        schedule, device, size = classifier.classify.schedule, classifier.device, classifier.batch_size
        parts = torch.split(evaluation.held_out[block], size)
        labels = evaluation.held_out_labels
        assert labels is not None
        codes = evaluation.peers.in_order(lambda i: (classifier.codec.encode(parts[i].to(device)),), len(parts))
        z = torch.cat([code.to(device) for (code,) in codes])

        def at_time(number: int) -> Tensors:
            t = times[number]
            level, stream = schedule.level(t), f"accuracy-{t}-{block.start}" if block.start else f"accuracy-{t}"
            noise = torch.randn(z.shape, generator=evaluation.generator(stream)).to(z)
            noisy = torch.split(level.add_noise(z, noise), size)
            return (torch.cat([classifier.classify(part, level).argmax(1) for part in noisy]).cpu() == labels[block],)

        return evaluation.peers.in_order(at_time, len(times))
