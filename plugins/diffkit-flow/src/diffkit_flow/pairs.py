"""Reflow: pairs of noise and the sample that a trained model makes of it, as data to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit import (
    Data,
    DataError,
    DataSpec,
    Denoiser,
    FilePath,
    InMemorySplit,
    Level,
    Part,
    SampleNoise,
    Sampler,
    Split,
    UsageError,
    sample,
)


def make_pairs(
    denoise: Denoiser,
    sampler: Sampler[Any],
    levels: Sequence[Level],
    shape: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Draw noise and compute the sample that the model makes of each draw.

    Source: Liu et al. 2023 (arXiv:2209.03003), Algorithm 1.

    Args:
        denoise: the trained denoiser.
        sampler: a deterministic sampler.
        levels: the grid, from noise to data.
        shape: (channels, *size) of one example.
        count: the number of pairs.
        seed: seed of the noise; default 0.
        labels: (count,) long for a model with classes; default None.
        batch_size: samples per batch; default 256.
        device: the device to sample on; default "cpu".

    Returns:
        "x0" and "eps": (count, *shape) float32, and "label" if labels are given; all on the CPU.

    Raises:
        UsageError: DK060, the sampler adds noise, so that a sample is not a function of eps.
    """
    if sampler.stochastic:
        raise UsageError(
            "reflow needs a deterministic sampler: a sampler that adds noise makes different samples from the same eps",
            code="DK060",
            fix="use straight, ddim with eta 0, heun or dpmpp-2m",
        )
    found: dict[str, list[Tensor]] = {"x0": [], "eps": []}
    for first in range(0, count, batch_size):
        rows = range(first, min(first + batch_size, count))
        eps = SampleNoise(seed, rows).initial(shape, device)
        cond = {} if labels is None else {"label": labels[rows.start : rows.stop].to(device)}
        x0 = sample(partial(denoise, **cond), sampler, levels, float(levels[0].sigma) * eps)
        found["x0"].append(x0.float().cpu())
        found["eps"].append(eps.cpu())
    pairs = {key: torch.cat(parts) for key, parts in found.items()}
    return pairs if labels is None else {**pairs, "label": labels[:count].cpu()}


def save_pairs(pairs: Mapping[str, Tensor], path: Path | str) -> None:
    """Write pairs to a safetensors file."""
    save_file({key: value.contiguous() for key, value in pairs.items()}, str(path))


@dataclass(frozen=True)
class Pairs(Data):
    """Samples x0 of a model with the noise eps that they were made of, for coupling `pairs`.

    `path`: a file written by `diffkit reflow`. The last pairs, the fraction `held_out`, are held out.
    Raises DataError: DK301 missing, DK302 damaged, DK308 without x0 and eps of one shape.
    """

    path: FilePath
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05

    @classmethod
    def law_example(cls, folder: Path) -> Pairs:
        """Return a small file of pairs, for `diffkit check`."""
        source = torch.Generator().manual_seed(0)
        x0, eps = (torch.randn(64, 2, generator=source) for _ in range(2))
        save_pairs({"x0": x0, "eps": eps}, folder / "pairs.safetensors")
        return cls(str(folder / "pairs.safetensors"))

    @property
    def spec(self) -> DataSpec:
        x, cond = self._pairs
        classes = int(cond["label"].max()) + 1 if "label" in cond else None
        return DataSpec(x.shape[1], tuple(x.shape[2:]), classes)

    def split(self, part: Part) -> Split:
        x, cond = self._pairs
        kept = min(max(round(len(x) * (1.0 - self.held_out)), 1), len(x) - 1)
        rows = slice(0, kept) if part == "train" else slice(kept, None)
        return InMemorySplit(x[rows], {key: value[rows] for key, value in cond.items()})

    def fingerprint(self) -> str:
        return f"Pairs:{self.held_out}:{hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:32]}"

    @cached_property
    def _pairs(self) -> tuple[Tensor, dict[str, Tensor]]:
        fix = "write it with: diffkit reflow RUN FILE"
        if not Path(self.path).is_file():
            raise DataError(f"file of pairs not found: {self.path}", code="DK301", fix=fix)
        try:
            found = load_file(self.path)
        except SafetensorError as error:
            raise DataError(f"{self.path} is damaged: {error}", code="DK302", fix=fix) from error
        x0, eps, label = (found.get(key) for key in ("x0", "eps", "label"))
        if x0 is None or eps is None or not _paired(x0, eps, label):
            raise DataError(f"{self.path} holds x0 and eps of different shapes", code="DK308", fix=fix)
        cond = {"eps": eps.float()} if label is None else {"eps": eps.float(), "label": label.long()}
        return x0.float(), cond


def _paired(x0: Tensor, eps: Tensor, label: Tensor | None) -> bool:
    same_shape = x0.shape == eps.shape and x0.ndim > 1 and len(x0) > 1
    return same_shape and (label is None or label.shape == x0.shape[:1])
