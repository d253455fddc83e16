"""Real examples for comparison: a whole part of a data set, decoded, as far as memory sensibly goes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Data, Part, Resident, stack

LIMIT = 50_000
_CHUNK = 1024


def examples(data: Data, part: Part, limit: int = LIMIT) -> tuple[Tensor, Tensor | None]:
    """Up to `limit` examples of `part`, evenly spread over it: x (N, C, *S) float32 on the CPU, labels (N,) or None."""
    split = data.split(part)
    count = min(limit, len(split))
    indices = torch.arange(count) * len(split) // max(1, count)
    if isinstance(split, Resident):
        raw, cond = split.rows(indices.to(split.x.device))
        return data.decode(raw).float().cpu(), cond["label"].cpu() if "label" in cond else None
    xs: list[Tensor] = []
    labels: list[Tensor] = []
    for start in range(0, count, _CHUNK):
        raw, cond = stack(split, indices[start : start + _CHUNK].tolist())
        xs.append(data.decode(raw).float())
        labels += [cond["label"]] if "label" in cond else []
    return torch.cat(xs), torch.cat(labels) if labels else None
