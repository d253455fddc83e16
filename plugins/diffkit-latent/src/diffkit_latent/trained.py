"""The codec of another run, scaled to standard deviation 1."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import (
    Codec,
    CodecRecord,
    Data,
    DataSpec,
    FilePath,
    Posterior,
    UsageError,
    build,
    open_run,
    weights_hash,
)
from diffkit.config import ComponentSpec
from diffkit.data import stack
from diffkit.host import registry
from diffkit.tiles import Stage, Staged

from .tiled import decoder_stages, encoder_stages

SCALED_FROM = 2048
"""Training examples from which a scale is measured; all of a smaller data set."""
TOGETHER = 16
"""Examples that are encoded at a time."""


class Trained(nn.Module, Codec, Staged):
    """The codec of another run with its weights, frozen: z = (codes - shift) * scale, of standard deviation 1.

    run      folder of the run, of `task: codec` or of any other task whose codec has weights
    weights  weights of that run: raw, ema, the name of an average, or width:W
    scale    auto: 1 / std over all codes of training examples, and no shift, as in latent diffusion; per-channel: mean
             and std of each channel; a number greater than 0 is the scale itself
    cache    whether the posteriors of the training examples are kept on disk, so that no step encodes

    The scale is measured on 2,048 evenly spread training examples, without augmentation, when the run starts. Its
    variance is that of the codes that training draws: that of the means, and the mean of the variances. This run
    stores the weights, their hash and the scale, so it no longer needs the other run.

    Raises UsageError DK041 if the codec of the run has no weights or its codes are constant, DK611 if there is no run.
    Source: Rombach et al. 2022 (arXiv:2112.10752), app. G: z / std of the latents.
    """

    cache: bool = False
    shift: Tensor
    scale: Tensor
    law_exemptions = {"round-trip": "an autoencoder loses information"}  # noqa: RUF012 - read only

    def __init__(
        self,
        data: Data,
        run: FilePath,
        weights: str = "ema",
        scale: Literal["auto", "per-channel"] | Annotated[float, Field(gt=0)] = "auto",
        cache: bool = False,
        record: CodecRecord | None = None,
    ) -> None:
        super().__init__()
        self.cache = cache
        inner, self._record = _of_run(run, weights) if record is None else (_rebuilt(record, data), record)
        self.inner = inner.eval().requires_grad_(False)
        self.rule = scale
        columns = (self._inner.spec(data.spec).channels, *[1] * len(self._inner.spec(data.spec).size))
        number = torch.nan if isinstance(scale, str) else scale
        self.register_buffer("shift", torch.zeros(columns) if scale != "per-channel" else torch.full(columns, number))
        self.register_buffer("scale", torch.full(columns, number))
        self._known = False

    @staticmethod
    def law_example(folder: Path) -> Trained:
        """Return an instance on which the laws are tested: a small random `kl-vae` with a measured scale."""
        np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
        data = build("data", "arrays", path=str(folder / "images.npy"))
        section = {"name": "diffkit-latent/kl-vae", "factor": 2, "width": 8, "blocks": 1}
        made = Trained(data, "", record=CodecRecord("", {"codec": section, "inside": None}))
        made.fit(data)
        return made

    @property
    def _inner(self) -> Codec:
        inner = self.inner
        assert isinstance(inner, Codec)
        return inner

    def record(self) -> CodecRecord:
        return self._record

    def spec(self, data: DataSpec) -> DataSpec:
        return replace(self._inner.spec(data), bounded=False, bins=None)

    @torch.no_grad()
    def fit(self, data: Data) -> str:
        """Measure the scale on training examples; return it, the number of examples and the std of scaled codes."""
        split = data.split("train")
        rows = torch.arange(min(len(split), SCALED_FROM)) * len(split) // min(len(split), SCALED_FROM)
        count, sums = 0, list[Tensor]()
        for part in torch.split(rows, TOGETHER):
            raw, _ = stack(split, part.tolist())
            found = self._inner.posterior(data.to_model_range(raw.to(self.scale.device)))
            mean = found.mean.double().transpose(0, 1).flatten(1)
            spread = 0.0 if found.std is None else found.std.double().square().transpose(0, 1).flatten(1)
            sums.append(torch.stack([mean.sum(1), (mean.square() + spread).sum(1)]))
            count += mean.shape[1]
        first, second = (torch.stack(sums).sum(0) / count).unbind()
        if self.rule != "per-channel":
            first, second = first.mean().expand_as(first), second.mean().expand_as(second)
        std = (second - first.square()).clamp(min=0).sqrt()
        if self.rule in ("auto", "per-channel"):
            if not bool((std > 0).all()):
                raise UsageError("the codes are constant, so they have no scale", code="DK041", fix="train the codec")
            self.scale.copy_((1 / std).view_as(self.scale))
        if self.rule == "per-channel":
            self.shift.copy_(first.view_as(self.shift))
        scaled = (std * self.scale.flatten().double()).tolist()
        shown = ", ".join(f"{one:.4g}" for one in dict.fromkeys(self.scale.flatten().tolist()))
        return f"scale {shown} from {len(rows):,} training examples; std of the scaled codes {max(scaled):.4f}"

    def posterior(self, x: Tensor) -> Posterior:
        return self._scaled(self._inner.posterior(x))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(noise)

    def decode(self, z: Tensor) -> Tensor:
        self._require_scale()
        return self._inner.decode(z / self.scale + self.shift)

    def encoder_stages(self) -> list[Stage]:
        def scaled(joined: Tensor) -> Tensor:
            return self._scaled(Posterior.split(joined, len(self.scale))).joined()

        return [*encoder_stages(self._inner), Stage(scaled)]

    def decoder_stages(self) -> list[Stage]:
        return [Stage(lambda z: z / self.scale + self.shift), *decoder_stages(self._inner)]

    def _scaled(self, found: Posterior) -> Posterior:
        self._require_scale()
        return Posterior((found.mean - self.shift) * self.scale, None if found.std is None else found.std * self.scale)

    def _require_scale(self) -> None:
        """Raise UsageError DK041 if the scale is not measured or loaded. Only the first call waits for the device."""
        if not self._known and not bool(self.scale.isfinite().all()):
            raise UsageError("the scale of the codec is not measured yet", code="DK041", fix="call fit(data) first")
        self._known = True


def _of_run(path: str, weights: str) -> tuple[nn.Module, CodecRecord]:
    """Return the codec of a run, and its record. Raises UsageError DK041 if it has no weights."""
    run = open_run(path, device="cpu")
    codec = run.trained_parts(weights).codec
    if not isinstance(codec, nn.Module) or not codec.state_dict():
        raise UsageError(
            f"the codec {run.recipe.codec.name} of {path} has no weights",
            code="DK041",
            fix="name a run of task: codec, or write that codec in this recipe",
        )
    inside = codec.record()
    options = {"codec": _plain(run.recipe.codec), "weights": weights, "inside": inside and vars(inside)}
    return codec, CodecRecord(weights_hash(codec), json.loads(json.dumps(options)))


def _plain(chosen: Any) -> Any:
    """Return a component, alone or in a tuple, as a recipe writes it; any other value as it is."""
    if isinstance(chosen, tuple):
        return [_plain(one) for one in chosen]
    if not isinstance(chosen, ComponentSpec):
        return chosen
    return {"name": f"{chosen.plugin}/{chosen.name}", **{name: _plain(one) for name, one in chosen.options.items()}}


def _rebuilt(record: CodecRecord, data: Data) -> nn.Module:
    """Build the codec of a record, and the codecs inside it; its weights are loaded with those of the run."""
    section: Mapping[str, Any] = record.options["codec"]
    name, options = section["name"], {key: value for key, value in section.items() if key != "name"}
    inside = record.options["inside"]
    given = {"data": data} | ({} if inside is None else {"record": CodecRecord(**inside)})
    takes = inspect.signature(registry().find("codec", name).load()).parameters
    nests = any(isinstance(one, Mapping) and "name" in one for one in options.values())
    codec = build("codec", name, **{key: one for key, one in given.items() if nests or key in takes}, **options)
    assert isinstance(codec, nn.Module)
    return codec
