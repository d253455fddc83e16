"""Validation: the loss on held-out examples with fixed random numbers, so that losses can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..callback import ValidationResult
from ..data import stack
from ..noise import RandomStreams, key
from .data_loading import divide
from .preprocessing import Preprocessing

BINS = 20
MAX_EXAMPLES = 2048
GROUP = 64
"""Number of examples whose noise is drawn together, whatever the size of a batch."""


def held_out_loss(
    model: Any,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    batch_size: int,
    average: Any = None,
    step: int = 0,
    max_examples: int = MAX_EXAMPLES,
    rounds: int = 1,
) -> ValidationResult | None:
    """Return the loss on the held-out examples.

    Each call draws the same random numbers, whatever was trained before and whatever `batch_size` is. The network is in
    evaluation mode during the call.

    Args:
        model: the model to evaluate.
        preprocessing: prepares the examples; its problem has the loss and the data.
        device: the device to compute on.
        batch_size: examples of one forward pass.
        average: the model with averaged weights, which some objectives use.
        step: number of steps done, on which some losses depend.
        max_examples: number of held-out examples that are used, the first ones.
        rounds: how often each example is used, each time with other random numbers.

    Returns:
        The mean loss and the loss by time, if losses have one; None if there are no held-out examples.
    """
    problem = preprocessing.problem
    split = preprocessing.split("held-out")
    total = min(len(split), max_examples)
    if total == 0:
        return None
    seed = key(problem.seed, "held-out")
    mode = model.network.training
    model.network.eval()
    means, each, times = [], [], []
    with torch.no_grad():
        for start in range(0, total * rounds, GROUP):
            group = range(start, min(start + GROUP, total * rounds))
            draws = RandomStreams(seed, start // GROUP, len(group))
            for rows in divide(0, len(group), -(-len(group) // batch_size)):
                raw, cond = stack(split, [group[row] % total for row in rows])
                local = draws.rows(rows.start)
                x0, ready = preprocessing.held_out(raw.to(device), _to(cond, device), local)
                loss = problem.loss(model, x0, local, average, ready, step)
                means.append(loss.mean.double() * len(rows))
                each.append(loss.each.double())
                times.append(loss.t.double())
    model.network.train(mode)
    loss_sum = torch.stack(means).sum() / (total * rounds)
    if problem.times is None:
        return ValidationResult(float(loss_sum), (), (), ())
    return _binned(float(loss_sum), torch.cat(each), torch.cat(times), *problem.times)


def _binned(loss: float, each: Tensor, t: Tensor, clean: float, noise: float) -> ValidationResult:
    at = ((t.reshape(len(each), -1).mean(1) - clean) / (noise - clean) * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    count = torch.zeros(BINS, dtype=torch.float64, device=each.device).index_add_(0, at, torch.ones_like(each))
    total = torch.zeros_like(count).index_add_(0, at, each)
    width = (noise - clean) / BINS
    return ValidationResult(
        loss,
        tuple(clean + (k + 0.5) * width for k in range(BINS)),
        tuple((total / count).tolist()),
        tuple(int(n) for n in count.tolist()),
    )


def _to(cond: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in cond.items()}
