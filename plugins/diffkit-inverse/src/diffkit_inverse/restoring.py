"""Restoring a picture with a trained run: the library behind `diffkit restore`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffkit import (
    Assembly,
    Codec,
    Guidance,
    Identity,
    Run,
    SampleNoise,
    Sampler,
    StepInfo,
    UsageError,
    build,
    guide,
    sample,
)

from .methods import DPS, MEASUREMENT, Known, Method
from .operator import Decoded, Kept, Mask, Operator, build_operator
from .sampler import Blend, RePaint

METHODS = ("pgdm", "ddnm", "dps", "repaint", "blend")


@dataclass(frozen=True)
class Restored:
    """Samples of the pictures that fit a measurement, x: (count, C, H, W) in the model's range, on the CPU.

    `error` is the root mean square of A x - y over all samples, `nfe` the number of network calls for each sample,
    `seconds` the time for all of them.
    """

    x: Tensor
    measurement: Tensor
    error: float
    nfe: int
    seconds: float


def restore(
    run: Run,
    measurement: Tensor,
    forward: Operator | str,
    *,
    method: str | Guidance = "pgdm",
    mask: Tensor | None = None,
    noise: float = 0.0,
    count: int = 8,
    sampler: Sampler[Any] | str | None = None,
    steps: int | None = None,
    seed: int = 0,
    weights: str = "ema",
    conditions: Mapping[str, Any] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Restored:
    """Draw pictures from the model of a run that fit the measurement of one picture.

    Args:
        run: The run, of pictures or of latents; those of a codec are measured after decoding.
        measurement: y: (C', H', W') or (1, C', H', W') in the model's range; pixels in the hole of a mask do not count.
        forward: The operator of the measurement, or its name.
        method: "pgdm", "ddnm" or "dps", or such a guidance with its own options; "repaint" and "blend" for masks.
        mask: (H, W), (1, H, W) or (C, H, W), 1 for known pixels and 0 in the hole; required by the operator mask.
        noise: Standard deviation of the noise of the measurement, in the model's range; default 0.
        count: Number of samples.
        sampler: The sampler or its name; by default that of the recipe.
        steps: Number of steps; by default that of the recipe.
        seed: Seed of the noise.
        weights: "raw", "ema" (the first average), or the name of an average.
        conditions: Conditions of the picture by name, as `Run.sample` takes them; those that are not given are null.
        on_step: Called after each step; an exception that it raises ends the work.

    Returns:
        The samples, with known pixels equal to the measurement to the bit.

    Raises:
        UsageError: The measurement, the mask or the method does not fit the run or the operator (DK030).
        ArgumentError: A condition does not fit the run.
        CheckpointError: No checkpoint can be loaded.
    """
    began = time.monotonic()
    if noise < 0:
        raise _refused(f"the noise of a measurement is 0 or more, got {noise}", "pass a standard deviation")
    made = build_operator(forward) if isinstance(forward, str) else forward
    mask = None if mask is None else _as_mask(mask, run.assembly)
    y, operator = _checked(run.assembly, measurement, made, mask)
    chosen = build("sampler", sampler) if isinstance(sampler, str) else sampler or run.assembly.sampler
    assembly = run.trained(weights)
    codec, model = assembly.codec, assembly.model
    latent = not isinstance(codec, Identity)
    guidance, chosen = _method(method, Decoded(made, codec) if latent else made, noise, chosen)
    if latent and isinstance(guidance, DPS):
        _require_gradient(codec, torch.zeros(1, *assembly.spec.shape, device=run.device))
    given = {MEASUREMENT: y, **({} if mask is None else {"mask": mask})}
    given = {name: value.to(run.device) for name, value in given.items()}
    given |= assembly.conditions.stated(conditions or {}, 1, run.device)
    section, levels = assembly.recipe.sample, assembly.levels(steps)
    denoise = guide(guidance(replace(model, rounds_time=section.network_time == "rounded")), assembly.guidance)
    scale, size = levels[0].scale if section.start_scale == "unit" else levels[0].sigma, section.batch_size
    calls = 0

    def watch(step: StepInfo) -> None:
        nonlocal calls
        calls = step.nfe
        if on_step is not None:
            on_step(step)

    parts = []
    for first in range(0, count, size):
        rows = range(first, min(first + size, count))
        source = SampleNoise(seed, rows)
        z = source.initial(assembly.spec.shape, run.device)
        start = scale * z
        if isinstance(guidance, Known):
            start = torch.where(given["mask"] > 0.5, levels[0].add_noise(given[MEASUREMENT], z), start)
        cond = {name: value.expand(len(rows), *value.shape[1:]) for name, value in given.items()}
        z = sample(partial(denoise, **cond), chosen, levels, start, noise=source, on_step=watch)
        with torch.no_grad():
            parts.append(codec.decode(z.float()).cpu())
    x = torch.cat(parts)
    if isinstance(operator, Kept) and not noise:
        x = torch.where(operator.keep, y, x)
    error = float((operator(x) - y).square().mean().sqrt())
    return Restored(x, y, error, calls, time.monotonic() - began)


def _checked(assembly: Assembly, y: Tensor, made: Operator, mask: Tensor | None) -> tuple[Tensor, Operator]:
    """Return the measurement as (1, C', H', W') float32, and the operator with its mask, or raise UsageError."""
    spec = assembly.data.spec
    if len(spec.size) != 2:
        raise _refused(f"the run makes no pictures: its examples have the shape {spec.shape}", "use a run of pictures")
    if taken := assembly.conditions.arguments().keys() & {MEASUREMENT, "mask"}:
        fix = "rename the condition, or sample with it: diffkit sample RUN --condition"
        raise _refused(f"the network of the run takes the condition {min(taken)}, which is of the operator", fix)
    if (mask is None) != ("mask" not in made.conditions):
        fix = "pass mask=, 1 for known pixels" if mask is None else "leave it out"
        raise _refused(f"{type(made).__name__.lower()}: a mask is {'missing' if mask is None else 'given'}", fix)
    operator = made.at({} if mask is None else {"mask": mask})
    wanted = tuple(operator(torch.zeros(1, *spec.shape)).shape)
    y = y if y.ndim == 4 else y[None]
    if tuple(y.shape) != wanted:
        message = f"the measurement has the shape {tuple(y.shape[1:])}, but A x has {wanted[1:]}"
        raise _refused(message, "scale, crop or convert the picture, or choose another option of the operator")
    y = assembly.data.to_model_range(y)
    if not bool(torch.isfinite(y).all()):
        raise _refused("the measurement holds NaN or infinite values", "repair the picture")
    return (operator(y) if isinstance(operator, Kept) else y), operator


def _require_gradient(codec: Codec, z: Tensor) -> None:
    """Raise UsageError unless decode(z) has a gradient."""
    with torch.enable_grad():
        x = codec.decode(z.requires_grad_())
        if not x.requires_grad or torch.autograd.grad(x.sum(), z, allow_unused=True)[0] is None:
            raise _refused(f"the decoder of the codec {type(codec).__name__} has no gradient", "use ddnm or pgdm")


def _as_mask(mask: Tensor, assembly: Assembly) -> Tensor:
    """Return the mask as (1, 1 or C, H, W) of zeros and ones, or raise UsageError."""
    channels, size = assembly.data.spec.channels, assembly.data.spec.size
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if shape[2:] != size or shape[0] != 1 or shape[1] not in (1, channels):
        got, wanted = ("x".join(map(str, one)) for one in (shape[2:], size))
        what = f"{got} pixels" if shape[2:] != size else f"the shape {tuple(mask.shape)}"
        message = f"the mask has {what}, but the pictures of the run have {wanted} pixels and {channels} channels"
        raise _refused(message, f"make a mask of {wanted} pixels and one channel")
    kept = mask.reshape(shape).float()
    if not bool(((kept == 0) | (kept == 1)).all()):
        raise _refused("the mask has values other than 0 and 1", "round it: mask > 0.5")
    if not bool((kept == 0).any()) or not bool((kept == 1).any()):
        what = "everywhere 1, so nothing is to be restored" if bool(kept.any()) else "everywhere 0, so nothing is known"
        raise _refused(f"the mask is {what}", "mark the hole by 0 and known pixels by 1")
    return kept


def _method(
    method: str | Guidance, made: Operator, noise: float, sampler: Sampler[Any]
) -> tuple[Guidance, Sampler[Any]]:
    """Return the guidance and the sampler of a method, or raise UsageError if it does not fit the operator."""
    if isinstance(method, Method):
        return replace(method, forward=made, noise=noise), sampler
    if method not in METHODS:
        raise _refused(f"there is no method {method!r}", f"choose one of {', '.join(METHODS)}")
    if method in ("repaint", "blend") and isinstance(made, Decoded):
        fix = "use ddnm, pgdm or dps, or for masks: diffkit sample RUN --image IMAGE --mask MASK"
        raise _refused(f"{method} holds known pixels after each step, but the run samples latents", fix)
    if method in ("repaint", "blend"):
        if not isinstance(made, Mask) or noise:
            raise _refused(f"{method} holds known pixels: it takes a mask, and no noise", "use ddnm, pgdm or dps")
        return Known(), (RePaint if method == "repaint" else Blend)(sampler)
    if method == "pgdm" and not made.linear and noise:
        why = ", and decoded latents are not linear" if isinstance(made, Decoded) else ""
        raise _refused(f"pgdm takes noise only with a linear operator{why}", "use dps")
    guidance: Guidance = build("guidance", str(method), forward=made, noise=noise)
    return guidance, sampler


def _refused(message: str, fix: str) -> UsageError:
    return UsageError(message, code="DK030", fix=fix)
