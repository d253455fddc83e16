"""The accuracy of a classifier of noisy examples, by noise level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from diffkit import Evaluation, Metric, UsageError
from diffkit.times import at_fraction


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of held-out examples whose most probable class is right, at noise levels over the whole schedule.

    `levels` times are spread evenly over the schedule. The first value is the mean over all of them, each further one
    that at the time in its name. Noise and examples are the same for each classifier of the same schedule and seed.
    """

    levels: Annotated[int, Field(ge=1, le=100)] = 10
    needs = "classifier"
    lower_is_better = False

    @property
    def definition(self) -> str:
        return f"share of examples that are classified right, mean over {self.levels} times spread over the schedule"

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        classifier, labels = evaluation.classifier, evaluation.held_out_labels
        if classifier is None or labels is None:
            fix = "measure it in a run of task: classifier, or remove the metric"
            raise UsageError("accuracy measures a classifier of examples with classes", code="DK124", fix=fix)
        schedule, device, size = classifier.classify.schedule, classifier.device, classifier.batch_size
        times = at_fraction((torch.arange(self.levels) + 0.5) / self.levels, schedule).sort().values.tolist()
        right = torch.zeros(self.levels, len(labels), dtype=torch.float64)
        with torch.no_grad():
            z = torch.cat([classifier.codec.encode(part.to(device)) for part in torch.split(evaluation.held_out, size)])
            for row, t in zip(right, times, strict=True):
                noise = torch.randn(z.shape, generator=evaluation.generator(f"accuracy-{t}")).to(z)
                level = schedule.level(t)
                noisy = torch.split(level.add_noise(z, noise), size)
                found = torch.cat([classifier.classify(part, level).argmax(1) for part in noisy]).cpu()
                row.copy_(found == labels)
        values = {"accuracy": float(right.mean()), "standard_error": float(right.mean(0).std()) / len(labels) ** 0.5}
        return values | {f"t={t:.4g}": float(row.mean()) for t, row in zip(times, right, strict=True)}
