"""Preprocessing: convert raw examples to inputs of the diffusion; random numbers come from named streams of the
seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..codec import Codec, Identity
from ..conditioner import JOINT, Conditioner, Conditions, Encoded
from ..data import Augmentation, FiniteAugmentation, Part, Split
from ..errors import UsageError
from ..noise import RandomStreams
from .latents import LatentCache, chosen_variant, posterior_of_each, stored_posterior
from .tasks import Problem


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

    concat = inpaints = False

    def __init__(self, inner: Conditioner) -> None:
        super().__init__()
        self.inner, self.concat, self.inpaints = inner, inner.concat, inner.inpaints
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
