"""Preprocessing: convert raw examples to inputs of the diffusion; random numbers come from named streams of the
seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import Codec, Identity
from ..conditioner import JOINT, Conditioner, Conditions, Encoded
from ..data import Augmentation, Data, FiniteAugmentation, Part, Split
from ..denoiser import Model
from ..errors import UsageError
from ..noise import RandomStreams
from ..objective import Loss, Objective
from .data_loading import LatentCache, chosen_variant, posterior_of_each, stored_posterior


@dataclass(frozen=True)
class Preprocessing:
    """Scale to the model's range, augment, drop conditions, encode; held-out examples are only scaled and encoded.

    With `latents` the raw examples are posteriors from its splits, and nothing is encoded; all numbers are the same.

    Raises:
        UsageError: `condition_dropout` names a condition that the problem does not have.
    """

    problem: Problem
    latents: LatentCache | None = None

    def __post_init__(self) -> None:
        names = self.problem.conditioning.conditioners
        wanted = self.problem.condition_dropout
        wrong = [name for name in wanted if name not in names] if isinstance(wanted, Mapping) else []
        if (wanted and not names) or (wrong and wrong != [JOINT]):
            raise UsageError(
                f"data.condition_dropout replaces conditions by their null, but this data has no {', '.join(wrong)}"
                if names
                else "data.condition_dropout replaces conditions by their null, but this data has no labels",
                code="DK053",
                choices=list(names),
                fix="remove condition_dropout, or use data with conditions",
            )

    @cached_property
    def conditions(self) -> Conditions:
        """The conditions of the problem; values of conditioners that do not train are kept."""
        own = self.problem.conditioning
        kept = {name: Kept(one) if one.cacheable else one for name, one in own.conditioners.items()}
        return Conditions(kept, own.specs)

    @cached_property
    def _aligned(self) -> tuple[str, ...]:
        return self.problem.conditioning.aligned(self.problem.data.spec)

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
        x, cond = raw if self.latents else problem.data.to_model_range(raw), dict(cond)
        for index, augmentation in enumerate(problem.augment):
            uniform = streams.uniform(f"augment-{index}", x, augmentation.draws)
            if isinstance(augmentation, FiniteAugmentation) and self.latents:
                x = chosen_variant(x, augmentation.variant(uniform), augmentation.variants)
            else:
                x, changed = augmentation(x, uniform, cond)
                cond = dict(changed)
            if augmentation.moves:
                cond |= {name: _moved(augmentation, cond[name], uniform) for name in self._aligned if name in cond}
        ready = {**self._added(cond), **self.conditions(cond)}
        for names, share in self._dropout():
            rows = streams.uniform(f"{names[0]}-dropout", x) < share
            ready = self.conditions.without(ready, names, rows)
        return self._encode(x, streams), ready

    def held_out(
        self, raw: Tensor, cond: Mapping[str, Tensor], streams: RandomStreams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prepare held-out examples as `train` does, without augmentation and dropout.

        Args:
            raw: Stored examples: (B, C, *S).
            cond: Conditions, one row per example.
            streams: Random numbers of these examples.

        Returns:
            Encoded examples, and the conditions.
        """
        ready = {**self._added(cond), **self.conditions.fixed(cond)}
        return self._encode(raw if self.latents else self.problem.data.to_model_range(raw), streams), ready

    def split(self, part: Part) -> Split:
        """Return the examples of a part: posteriors if `latents` keeps them."""
        return self.latents.split(part) if self.latents else self.problem.data.split(part)

    def _added(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the data does not describe: the parameters that augmentations pass to the network."""
        return {name: value for name, value in cond.items() if name not in self.problem.data.spec.conditions}

    def _dropout(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Yield names of conditions that are dropped together, and how often; the first names the random numbers."""
        names, wanted = tuple(self.conditions.conditioners), self.problem.condition_dropout
        if isinstance(wanted, Mapping) and JOINT in wanted:
            yield names, wanted[JOINT]
        elif wanted:
            by_name = wanted if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
            yield from (((name,), by_name[name]) for name in names if by_name.get(name))

    def _encode(self, x: Tensor, streams: RandomStreams) -> Tensor:
        codec = self.problem.codec
        if isinstance(codec, Identity):
            return x
        shape = codec.spec(self.problem.data.spec).shape
        like = torch.empty((), dtype=x.dtype, device=x.device).expand(len(x), *shape)
        noise = streams.normal("codec", like)
        if self.latents:
            return stored_posterior(x).sample(noise)
        if isinstance(codec, nn.Module) and type(codec).posterior is not Codec.posterior and not _learns(codec):
            return posterior_of_each(codec, x).sample(noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(codec)):
            return codec.encode(x, noise)


def _moved(augmentation: Augmentation, value: Tensor, uniform: Tensor) -> Tensor:
    """Change a raw condition as x is changed; uint8 values stay uint8."""
    if value.is_floating_point():
        return augmentation(value, uniform, {})[0]
    moved = augmentation(value.float() / 127.5 - 1.0, uniform, {})[0]
    return moved.add(1.0).mul(127.5).round().clamp(0, 255).to(value.dtype)


def _learns(part: object) -> bool:
    return isinstance(part, torch.nn.Module) and any(p.requires_grad for p in part.parameters())


MAX_KEPT_BYTES = 2 << 30
"""Bytes of the values that are kept for one condition; further values are computed whenever they are needed."""


class Kept(Conditioner):
    """A conditioner that does not train, whose value of each raw condition is computed once.

    Each row is computed alone, so that its value does not depend on the batch in which it is first needed, and a
    resumed run has the same numbers.
    """

    concat = False

    def __init__(self, inner: Conditioner) -> None:
        super().__init__()
        self.inner, self.concat = inner, inner.concat
        self._found: dict[bytes, tuple[Tensor, ...]] = {}
        self._free = MAX_KEPT_BYTES

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def null(self) -> Encoded:
        return self.inner.null()

    def forward(self, raw: Tensor) -> Encoded:
        rows = [self._row(row.tobytes(), raw[index : index + 1]) for index, row in enumerate(raw.cpu().numpy())]
        value, *mask = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return (value, mask[0]) if mask else value

    def _row(self, key: bytes, raw: Tensor) -> tuple[Tensor, ...]:
        if key in self._found:
            return self._found[key]
        with torch.no_grad():
            encoded = self.inner.eval()(raw)
        made = encoded if isinstance(encoded, tuple) else (encoded,)
        self._free -= sum(part.numel() * part.element_size() for part in made)
        if self._free >= 0:
            self._found[key] = made
        return made


IDENTITY = Identity()


class Problem(ABC):
    """What a trainer minimises: a model around the trained `network`, the data, and the loss of a batch.

    The model is a dataclass. The trainer replaces its field `network` by its own, and by averages.
    """

    model: Any
    data: Data
    codec: Codec
    augment: tuple[Augmentation, ...]
    condition_dropout: float | Mapping[str, float]
    seed: int

    @property
    @abstractmethod
    def conditioning(self) -> Conditions:
        """The conditions that the loss receives."""

    @property
    def undecodable(self) -> str | None:
        """The parameterization whose outputs cannot be decoded in half precision, by name; None if there is no
        problem.
        """
        return None

    @property
    def times(self) -> tuple[float, float] | None:
        """The clean and the noisy end of the times of losses; None if losses have no time."""
        return None

    @property
    def critics(self) -> Mapping[str, nn.Module]:
        """Modules that an optimizer of their own trains by `critic_loss`, after the network in each step."""
        return {}

    def fit(self) -> str:
        """Let the codec learn from the training examples; return a line about it. See `Codec.fit`."""
        return self.codec.fit(self.data)

    @abstractmethod
    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        """Return the loss of a batch.

        Args:
            model: the model to train.
            x0: prepared examples, (B, C, *S).
            streams: random numbers of these examples.
            average: the averaged model, None without averages.
            cond: conditions, one row for each example.
            step: number of steps before this one.

        Returns:
            The loss, with the losses of the examples; its `out` is passed to the critics.
        """

    def critic_loss(self, name: str, out: Any, x0: Tensor, step: int) -> Tensor:
        """Return the loss of a critic: (B,).

        Args:
            name: its name.
            out: what the loss of these examples returned as `out`.
            x0: prepared examples, (B, C, *S).
            step: number of steps before this one.

        Returns:
            The losses: (B,).
        """
        raise NotImplementedError

    def update(self, t: Tensor, each: Tensor) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the times and losses of the whole global batch, (B,) each, after each step."""

    @abstractmethod
    def parts(self) -> list[tuple[str, object]]:
        """Return the components whose modules are trained and saved besides the network, with their paths."""

    def learned(self) -> nn.ModuleDict:
        """Return every module besides the network that a component is or contains: it is trained and saved as well.

        Keys are paths with slashes, such as `objective/times`.
        """
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, part in self.parts():
            for at, module in _modules(part, path):
                if not any(module is inner for inner in self.model.network.modules()):
                    found.setdefault(id(module), (at, module))
        return nn.ModuleDict(dict(found.values()))


@dataclass(frozen=True)
class TrainingProblem(Problem):
    """A diffusion: a model, the objective that trains it, and the data.

    `condition_dropout` is the share of conditions that are replaced by their null: of each condition, by name, or under
    `joint` of all conditions of an example. All random numbers follow from `seed`. `conditions` None: every condition
    of the data, unchanged.
    """

    model: Model
    objective: Objective
    data: Data
    codec: Codec = IDENTITY
    augment: tuple[Augmentation, ...] = ()
    condition_dropout: float | Mapping[str, float] = 0.0
    seed: int = 0
    conditions: Conditions | None = None

    @property
    def conditioning(self) -> Conditions:
        """The conditions that the network receives."""
        return self.conditions or Conditions.unchanged(self.data.spec.conditions)

    @property
    def undecodable(self) -> str | None:
        parameterization = self.model.parameterization
        return type(parameterization).__name__.lower() if parameterization.full_precision else None

    @property
    def times(self) -> tuple[float, float]:
        return self.model.schedule.t_clean, self.model.schedule.t_noise

    def loss(
        self, model: Any, x0: Tensor, streams: RandomStreams, average: Any, cond: Mapping[str, Tensor], step: int
    ) -> Loss:
        return self.objective(model, x0, streams, ema=average, **cond)

    def update(self, t: Tensor, each: Tensor) -> None:
        self.objective.update(t, each)

    def parts(self) -> list[tuple[str, object]]:
        conditioners = self.conditioning.conditioners.items()
        return [
            ("objective", self.objective),
            ("parameterization", self.model.parameterization),
            ("schedule", self.model.schedule),
            ("codec", self.codec),
            *((f"augment{index}", augmentation) for index, augmentation in enumerate(self.augment)),
            *((f"conditions/{name}", one) for name, one in conditioners if one.state_dict()),
        ]


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
