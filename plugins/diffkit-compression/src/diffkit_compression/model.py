"""The model of an archive: its chain, the errors that define its variances, and what must be equal to decode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit import DataSpec, Denoiser, Identity, Level, Run, SampleNoise, UsageError, build, guide
from diffkit.likelihood import Chain

from .archive import hash_of, text_of

KEPT_GUIDANCE = ("clip", "threshold")
"""Guidance that stays a function of one estimate, so that it may be part of the mean of the model."""
KNOTS, PER_OCTAVE = 40, 64
"""Layers at which errors are measured, and steps of their logarithm per factor of 2."""
FIT_ROWS = 128
"""Noisy examples from which each error is computed."""
PROBE_ROWS = 8


@dataclass(frozen=True)
class Codebook:
    """A trained model as both sides of an archive see it.

    denoise    the model, with the guidance that clips
    spec       shape and values of the data
    levels     the levels of the chain, noisiest first
    device     device of the model
    identity   names and hashes of everything that decoding depends on: model, weights, device, threads, cpu
    """

    denoise: Denoiser
    spec: DataSpec
    levels: Sequence[Level]
    device: torch.device
    identity: dict[str, Any]

    @property
    def bins(self) -> int:
        """Number of values of the data."""
        assert self.spec.bins is not None
        return self.spec.bins

    def chain(self, errors: Sequence[int]) -> Chain:
        """Return the chain with variance `optimal` for the errors that an archive holds, see `measure`."""
        chain = Chain(self.levels)
        knots = _knots(chain)
        at = [float(chain.level(i).half_logsnr) for i in range(len(chain), 0, -1)]
        logs = np.interp(at, [at[len(chain) - i] for i in knots[::-1]], np.asarray(errors[::-1]) / -PER_OCTAVE)
        return chain.with_errors([float(2.0**log) for log in logs[::-1]])

    def measure(self, values: Tensor) -> list[int]:
        """Measure the squared errors of the model on the examples themselves.

        Args:
            values: Whole numbers: (N, C, *S).

        Returns:
            -64 log2(E|x0 - x0_hat|^2 / D) at some layers, in increasing order, rounded; decoding interpolates.
        """
        rows = (
            [k * len(values) // FIT_ROWS for k in range(FIT_ROWS)]
            if len(values) > FIT_ROWS
            else [k % len(values) for k in range(max(len(values), FIT_ROWS // 2))]
        )
        x0 = 2.0 * values[rows].to(self.device, torch.float32) / (self.bins - 1) - 1.0
        noise, found = SampleNoise(0, range(len(rows))), []
        chain = Chain(self.levels)
        for i in _knots(chain):
            level = chain.level(i)
            with torch.no_grad():
                estimate = self.denoise(level.add_noise(x0, noise.at_step(i)(x0)), level)
            error = float((estimate.x0 - x0).double().square().mean())
            found.append(round(-PER_OCTAVE * float(np.log2(max(error, 1e-12)))))
        return found

    def probe(self) -> str:
        """Return a hash of estimates at three levels, which any difference of the arithmetic changes."""
        digest = hashlib.sha256()
        for place in (0, len(self.levels) // 2, len(self.levels) - 2):
            level = self.levels[place]
            x = SampleNoise(place, range(PROBE_ROWS)).initial(self.spec.shape).to(self.device)
            with torch.no_grad():
                x0 = self.denoise(x * float(level.scale), level).x0
            digest.update(x0.float().cpu().numpy().astype("<f4").tobytes())
        return text_of(digest.digest())


def open_codebook(run: Run, steps: int, weights: str = "ema") -> Codebook:
    """Return the model of a run for archives.

    Args:
        run: The run.
        steps: Number of layers of the chain.
        weights: "ema", "raw" or the name of an average; default "ema".

    Returns:
        The model.

    Raises:
        UsageError: DK350, the data is not discrete, or the recipe has a codec or a guidance that mixes estimates.
    """
    assembly = run.assembly
    if assembly.data.spec.bins is None or not isinstance(assembly.codec, Identity):
        held = "latents" if not isinstance(assembly.codec, Identity) else "continuous data"
        raise UsageError(
            f"this run models {held}, and an archive holds whole numbers",
            code="DK350",
            fix="choose a run on images, or on other data with a number of values (DataSpec.bins)",
        )
    names = [one.name for one in assembly.recipe.sample.guidance]
    if wrong := [name for name in names if name not in KEPT_GUIDANCE]:
        raise UsageError(
            f"the guidance {wrong[0]} does not define a distribution, so it cannot compress",
            code="DK350",
            choices=KEPT_GUIDANCE,
            fix="choose a run without it",
        )
    trained = run.trained(weights)
    if trained.shape.conditions or trained.shape.extra_channels:
        raise UsageError(
            "this model requires a condition for each example, which an archive does not hold",
            code="DK350",
            fix="choose a run whose network needs no condition; labels may be left out",
        )
    levels = build("grid", "trailing").levels(trained.schedule, steps)
    recipe = run.recipe.model_dump(mode="json")
    parts = {name: recipe[name] for name in ("schedule", "parameterization", "network")}
    parts |= {"guidance": recipe["sample"]["guidance"], "shape": trained.spec.shape, "bins": trained.spec.bins}
    model = json.dumps([parts, [(float(a.alpha).hex(), float(a.sigma).hex()) for a in levels]], sort_keys=True)
    device = run.device
    identity = {
        "model": hash_of(model.encode()),
        "weights": text_of(_hash_of(trained.network.state_dict())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }
    return Codebook(guide(trained.model, trained.guidance), trained.data.spec, levels, device, identity)


def _knots(chain: Chain) -> list[int]:
    """Return the layers at which errors are measured, about equally spaced in the log of the signal-to-noise ratio."""
    at = np.array([float(chain.level(i).half_logsnr) for i in range(1, len(chain) + 1)])
    wanted = np.linspace(at[0], at[-1], KNOTS)
    return sorted({int(np.abs(at - one).argmin()) + 1 for one in wanted})


def _hash_of(tensors: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
