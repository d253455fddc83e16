"""The terms of a likelihood, summed over batches of examples, and kept so that an interrupted evaluation continues."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import Denoiser, Estimate, Level, SampleNoise
from diffkit.likelihood import Bound, ContinuousBound
from diffkit.likelihood.bound import LOG_2
from diffkit.metric import Evaluation, Tensors, TrainedModel
from diffkit.noise import key

BATCHES = "batches"
PARTS = ("bits_per_dim", "prior", "kl", "decoder")


@dataclass(frozen=True)
class Terms:
    """The terms of B examples, in bits per dimension, float64 on the CPU.

    values          (B, K): the whole, and for a bound prior, kl and decoder, the columns of `PARTS`
    layers          (N,), the terms of the layers of a chain, decoder first, summed over the examples; else empty
    squared_error   (N,), |x0 - x0_hat|^2 / D, summed over the examples
    calls           evaluations of the model, summed over the examples: ()
    """

    values: Tensor
    layers: Tensor
    squared_error: Tensor
    calls: Tensor

    @classmethod
    def of_bound(cls, bound: Bound) -> Terms:
        """Convert the terms of a bound on a chain."""
        parts = (bound.total, bound.prior, bound.kl, bound.decoder)
        calls = float(bound.layers.numel())
        return cls._of(parts, bound.layers.sum(1) / LOG_2, bound.squared_error.sum(1), calls)

    @classmethod
    def of_continuous(cls, bound: ContinuousBound, calls: int) -> Terms:
        """Convert the terms of a continuous bound, which took `calls` evaluations of the model."""
        parts = (bound.total, bound.prior, bound.diffusion, bound.decoder)
        return cls._of(parts, calls=float(calls * len(bound.total)))

    @classmethod
    def of_total(cls, bits: Tensor, calls: int) -> Terms:
        """Convert bits per dimension (B,), which took `calls` evaluations of the model."""
        return cls._of((bits * LOG_2,), calls=float(calls * len(bits)))

    @classmethod
    def _of(
        cls, parts: tuple[Tensor, ...], layers: Tensor | None = None, error: Tensor | None = None, calls: float = 0.0
    ) -> Terms:
        sums = [torch.zeros(0) if one is None else one for one in (layers, error)]
        found = (torch.stack(parts, 1) / LOG_2, *sums, torch.tensor(calls))
        return cls(*(one.double().cpu() for one in found))

    def scaled(self, factor: float) -> Terms:
        """Return every value times `factor`, but the calls as they are."""
        return Terms(factor * self.values, factor * self.layers, factor * self.squared_error, self.calls)

    def plus(self, other: Terms) -> Terms:
        """Add the terms of another draw of the same examples."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Terms(*(one + two for one, two in pairs))

    def joined(self, other: Terms) -> Terms:
        """Join the terms of other examples."""
        whole = self.plus(Terms(torch.zeros(()), other.layers, other.squared_error, other.calls))
        return Terms(torch.cat([self.values, other.values]), whole.layers, whole.squared_error, whole.calls)

    @property
    def bits_per_dim(self) -> Tensor:
        """The whole of each example: (B,)."""
        return self.values[:, 0]


Batch = Callable[[Denoiser, Tensor, "Draw", Mapping[str, Tensor]], Terms]


class Draw:
    """The random numbers of one draw of a batch: those of an example depend on neither batch nor device count.

    Args:
        seed: Seed of the evaluation.
        number: Number of the draw.
        rows: Indices of the examples.
    """

    def __init__(self, seed: int, number: int, rows: range) -> None:
        self._source, self._step = SampleNoise(key(seed, "likelihood", number), rows), 0

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal numbers in the shape of `like`: (B, *S), new ones at each call."""
        self._step += 1
        return self._source.at_step(self._step - 1)(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniform numbers in (0, 1): (B, *S) float64."""
        found: Tensor = torch.special.ndtr(self.normal(like).double())
        return found

    def signs(self, like: Tensor) -> Tensor:
        """Draw -1 or 1 with equal probability: (B, *S)."""
        return torch.where(self.normal(like) < 0, -1.0, 1.0).to(like)


def measure(
    evaluation: Evaluation, model: TrainedModel, x: Tensor, batch: Batch, *, draws: int, calls: int | None, name: str
) -> Terms:
    """Compute the terms of examples batch by batch; finished batches are kept, and are not computed again.

    Several processes share the batches.

    Args:
        evaluation: The evaluation, whose seed and labels are used.
        model: Its model.
        x: Examples as the model diffuses them: (B, *S).
        batch: Computes the terms of a batch.
        draws: Number of draws of the noise, over which the terms of an example are averaged.
        calls: Evaluations of the model in each draw, for the progress; None if unknown.
        name: A text that changes with everything that the result depends on besides x, weights and seed.

    Returns:
        The terms.
    """
    group = digest(name, model.weights, evaluation.seed, draws, model.batch_size, x)
    peers, labels, names = evaluation.peers, evaluation.held_out_labels, Terms.__dataclass_fields__

    def stored(_: int) -> Tensors:
        arrays = model.store.read(BATCHES, group)
        return tuple(arrays[one] for one in names) if arrays.keys() == names.keys() else ()

    (known,) = peers.in_order(stored, 1)
    found = Terms(*known) if known else None
    done = 0 if found is None else len(found.values)

    def terms(number: int) -> Tensors:
        start = done + number * model.batch_size
        rows = range(start, min(start + model.batch_size, len(x)))
        x0 = x[rows.start : rows.stop].to(model.device)
        cond = conditions(model, labels, rows)
        one: Terms | None = None
        for draw in range(draws):
            expected = None if calls is None else (calls * draw, calls * draws)
            denoise = _watched(model, rows, len(x), expected)
            part = batch(denoise, x0, Draw(evaluation.seed, draw, rows), cond).scaled(1.0 / draws)
            one = part if one is None else one.plus(part)
        assert one is not None
        return tuple(vars(one).values())

    for values in peers.in_order(terms, -(-(len(x) - done) // model.batch_size)):
        found = Terms(*values) if found is None else found.joined(Terms(*values))
        model.store.write(BATCHES, group, vars(found))
    assert found is not None
    model.watch(len(x), len(x))
    return found


def conditions(model: TrainedModel, labels: Tensor | None, rows: range) -> dict[str, Tensor]:
    """Return the conditions of some examples for the network: their labels, and the null of every other condition.

    Args:
        model: The model.
        labels: Labels of all examples: (N,), or None.
        rows: Indices of the examples.

    Returns:
        By name, one row for each example; empty for a model without conditions.
    """
    own = model.setting.conditions
    if own is None:
        return {}
    given = {} if labels is None else {"label": labels[rows.start : rows.stop].to(model.device)}
    return own.complete(own.fixed(given), len(rows), model.device)


def _watched(model: TrainedModel, rows: range, total: int, expected: tuple[int, int] | None) -> Denoiser:
    """Return the denoiser; each call reports the progress. `expected`: calls before and in all draws of the batch."""
    done = 0 if expected is None else expected[0]

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal done
        share = 0.0 if expected is None else min(1.0, done / expected[1])
        model.watch(rows.start + int(share * len(rows)), total)
        done += 1
        return model.denoise(x, level, **cond)

    return denoise


def digest(*parts: object) -> str:
    """Return a hash of texts, numbers and tensors on the CPU."""
    found = hashlib.sha256()
    for part in parts:
        data = (
            part.detach().cpu().flatten().numpy().data if isinstance(part, Tensor) else memoryview(repr(part).encode())
        )
        found.update(data.nbytes.to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()[:32]
