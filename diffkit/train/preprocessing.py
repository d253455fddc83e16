"""Preprocessing: convert raw examples to inputs of the diffusion; random numbers come from named streams of the
seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

from ..codec import Codec, Identity
from ..data import Augmentation, Data
from ..denoiser import Model
from ..errors import UsageError
from ..noise import RandomStreams
from ..objective import Objective


@dataclass(frozen=True)
class Preprocessing:
    """Scale to the model's range, augment, drop labels, encode; held-out examples are only scaled and encoded.

    Raises:
        UsageError: `label_dropout` is set, but the data has no labels.
    """

    problem: TrainingProblem

    def __post_init__(self) -> None:
        if self.problem.label_dropout and self.problem.data.spec.classes is None:
            raise UsageError(
                "data.label_dropout replaces labels by the null class, but this data has no labels",
                code="DK053",
                fix="remove label_dropout, or use data with classes",
            )

    def train(
        self, raw: Tensor, cond: Mapping[str, Tensor], streams: RandomStreams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prepare training examples for the objective.

        Args:
            raw: raw x, (B, C, *S).
            cond: tensors by name, (B, ...) each.
            streams: random numbers of these rows.

        Returns:
            x0 and cond.
        """
        problem = self.problem
        x, cond = problem.data.to_model_range(raw), dict(cond)
        for index, augmentation in enumerate(problem.augment):
            uniform = streams.uniform(f"augment-{index}", x, augmentation.draws)
            x, changed = augmentation(x, uniform, cond)
            cond = dict(changed)
        if problem.label_dropout:
            dropped = streams.uniform("label-dropout", x) < problem.label_dropout
            cond["label"] = cond["label"].masked_fill(dropped, problem.data.spec.classes or 0)
        return self._encode(x, streams), cond

    def held_out(
        self, raw: Tensor, cond: Mapping[str, Tensor], streams: RandomStreams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prepare held-out examples as `train` does, without augmentation and label dropout.

        Args:
            raw: Stored examples: (B, C, *S).
            cond: Conditions, one row per example.
            streams: Random numbers of these examples.

        Returns:
            Encoded examples, and the conditions.
        """
        return self._encode(self.problem.data.to_model_range(raw), streams), dict(cond)

    def _encode(self, x: Tensor, streams: RandomStreams) -> Tensor:
        codec = self.problem.codec
        if isinstance(codec, Identity):
            return x
        shape = codec.spec(self.problem.data.spec).shape
        like = torch.empty((), dtype=x.dtype, device=x.device).expand(len(x), *shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(codec)):
            return codec.encode(x, streams.normal("codec", like))


def _learns(part: object) -> bool:
    return isinstance(part, torch.nn.Module) and any(p.requires_grad for p in part.parameters())


IDENTITY = Identity()


@dataclass(frozen=True)
class TrainingProblem:
    """A model, the objective that trains it, and the data.

    `label_dropout` is the share of labels that are replaced by the null class; all random numbers follow from `seed`.
    """

    model: Model
    objective: Objective
    data: Data
    codec: Codec = IDENTITY
    augment: tuple[Augmentation, ...] = ()
    label_dropout: float = 0.0
    seed: int = 0

    def learned(self) -> nn.ModuleDict:
        """Return every module besides the network that a component is or contains: it is trained and saved as well.

        Keys are paths with slashes, such as `objective/times`.
        """
        parts: list[tuple[str, object]] = [
            ("objective", self.objective),
            ("parameterization", self.model.parameterization),
            ("schedule", self.model.schedule),
            ("codec", self.codec),
            *((f"augment{index}", augmentation) for index, augmentation in enumerate(self.augment)),
        ]
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, part in parts:
            for at, module in _modules(part, path):
                if not any(module is inner for inner in self.model.network.modules()):
                    found.setdefault(id(module), (at, module))
        return nn.ModuleDict(dict(found.values()))


def _modules(part: object, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules in a component and in its own components, with their paths."""
    if isinstance(part, nn.Module):
        yield path, part
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _modules(getattr(part, field.name), f"{path}/{field.name}")
    elif isinstance(part, (tuple, list)):
        for index, item in enumerate(part):
            yield from _modules(item, f"{path}/{index}")
