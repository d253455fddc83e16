"""Image to image and inpainting: pictures, masks and start noise of a user, checked before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ..blending import Held
from ..codec import Codec
from ..data import BOUND, Data
from ..errors import ArgumentError, DiffkitError
from ..recipe.assembly import Assembly
from ..sampler import Sampler

STRENGTH = 0.8
"""Share of the steps of image to image without a mask."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes of picture files by their number of channels."""
MAX_FACTOR = 256
"""Largest multiple of sizes that is looked for."""


@dataclass(frozen=True)
class Edit:
    """The picture that samples start from, x0: (1 or N, C, *S) in the model's range.

    `unknown`, (1, 1, *S) of zeros and ones, is 1 for what is repainted; None: the whole picture. `blends`: the rest
    is put back after each step, as the network has no condition that holds it. `from_noise`: start from noise alone.
    """

    x0: Tensor
    unknown: Tensor | None = None
    blends: bool = False
    from_noise: bool = False

    def encode(self, codec: Codec, rows: slice, noise: Tensor) -> Tensor:
        """Return a draw from the posterior of the codec for some of the samples.

        Args:
            codec: The codec.
            rows: The numbers of the samples.
            noise: Standard normal noise in the shape of the codes.

        Returns:
            (B, C', *S').
        """
        x = self.x0.expand(len(noise), *self.x0.shape[1:]) if len(self.x0) == 1 else self.x0[rows]
        return codec.encode(x.to(noise.device), noise)

    def hold(self, sampler: Sampler[Any], z0: Tensor, eps: Tensor) -> Sampler[Any]:
        """Return a sampler that puts the known part back after each step, if the network does not receive it.

        Args:
            sampler: The sampler.
            z0: Codes of the picture: (B, C', *S').
            eps: Their noise.

        Returns:
            The sampler, or one around it.
        """
        if self.unknown is None or not self.blends:
            return sampler
        return Held(sampler, z0, eps, _at_codes(self.unknown.to(z0), z0.shape[2:]))

    def paste(self, x: Tensor, rows: slice) -> Tensor:
        """Return x: (B, C, *S) with the pixels of the picture outside the mask."""
        if self.unknown is None:
            return x
        original = self.x0 if len(self.x0) == 1 else self.x0[rows]
        return torch.where(self.unknown > 0.5, x, original.to(x))


def edit_of(
    assembly: Assembly,
    size: tuple[int, ...],
    count: int,
    image: Any,
    mask: Any,
    strength: float | None,
    shape: tuple[int, ...],
) -> Edit:
    """Check a picture and a mask.

    Args:
        assembly: The objects of the recipe.
        size: The size of the samples.
        count: Number of samples.
        image: A file, a picture of Pillow, or (C, *S) or (N, C, *S): uint8, or floats in the model's range.
        mask: A file, a picture, or (H, W): white (uint8 from 128, float from 0.5, True) is repainted; or None.
        strength: Share of the steps; see `strength_of`.
        shape: Shape of a sample before the codec.

    Returns:
        The edit.

    Raises:
        ArgumentError: DK019, the picture or the mask does not fit the run.
    """
    data = assembly.data
    x0 = _as_images(data, size, count, image)
    if mask is None:
        return Edit(x0)
    unknown = _as_mask(size, mask)
    if not bool(_at_codes(unknown, shape[1:]).any()):
        small = "x".join(map(str, shape[1:]))
        message = f"the white part of mask is so thin that nothing of it is left at the size of the codes, {small}"
        raise _wrong(message, f"make it at least {math.ceil(max(map(operator.truediv, size, shape[1:])))} pixels wide")
    return Edit(x0, unknown, blends=inpainting_condition(assembly) is None, from_noise=strength in (None, 1.0))


def strength_of(strength: float | None, mask: Any, steps: int) -> int:
    """Return how many of the last steps image to image makes: the whole part of steps times strength.

    Args:
        strength: Share of the steps; None: 0.8, and all steps with a mask.
        mask: The mask, or None.
        steps: Number of steps of the grid.

    Returns:
        Number of steps.

    Raises:
        ArgumentError: DK019, the strength is outside of 0 to 1, or leaves no step.
    """
    share = strength if strength is not None else STRENGTH if mask is None else 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise _wrong(f"strength must be a number from 0 to 1, got {share!r}", "pass a strength such as 0.6")
    taken = min(int(steps * share), steps)
    if taken == 0:
        least = math.ceil(100.0 / steps) / 100.0
        fix = f"pass a strength of {least:g} or more, or more steps"
        raise _wrong(f"strength {share:g} of {steps} steps leaves no step", fix)
    return taken


def inpainting_condition(assembly: Assembly) -> str | None:
    """Return the name of the condition that holds a picture and its mask; None if the network has none."""
    return next((name for name, one in assembly.conditions.conditioners.items() if one.inpaints), None)


def inpainting_values(edit: Edit, count: int) -> Tensor:
    """Return `count` raw values of the condition that holds a picture and its mask: (count, C + 1, *S) uint8."""
    assert edit.unknown is not None
    pixels = edit.x0.add(1.0).mul(127.5).round().clamp(0, 255).expand(count, *edit.x0.shape[1:])
    return torch.cat([pixels, 255 * edit.unknown.expand(count, 1, *edit.unknown.shape[2:])], 1).to(torch.uint8)


def shape_of(assembly: Assembly, size: object) -> tuple[int, ...]:
    """Return the shape (C', *S') of samples of another size before the codec.

    Args:
        assembly: The objects of the recipe.
        size: The size of the samples, such as (height, width); None: that of the data.

    Returns:
        The shape.

    Raises:
        ArgumentError: DK019, codec or network do not take the size; the message names the nearest that they take.
    """
    own = assembly.data.spec.size
    if size is None or tuple(_whole(size)) == own:
        return assembly.spec.shape
    wanted = tuple(_whole(size))
    if len(wanted) != len(own) or not own or min(wanted) < 1:
        raise _wrong(f"size must be {len(own)} whole numbers, got {size!r}", "pass a size such as 512x768")
    shape = _tried(assembly, wanted)
    if shape is not None:
        return shape
    for factor in (2**k for k in range(1, MAX_FACTOR.bit_length())):
        near = [tuple(length // factor * factor for length in wanted), tuple(-(-n // factor) * factor for n in wanted)]
        fitting = [one for one in dict.fromkeys(near) if min(one) > 0 and _tried(assembly, one) is not None]
        if fitting:
            shown = " or ".join("x".join(map(str, one)) for one in fitting)
            message = f"the network and the codec do not take the size {'x'.join(map(str, wanted))}"
            raise _wrong(message, f"use multiples of {factor}, such as {shown}")
    shown, only = ("x".join(map(str, one)) for one in (wanted, own))
    raise _wrong(f"the network does not take the size {shown}, only {only}", "leave the size out")


def _tried(assembly: Assembly, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of codes of a size; None if codec or network do not take it. Nothing is computed."""
    network, conditions = assembly.network, assembly.conditions
    try:
        shape = assembly.codec.spec(replace(assembly.data.spec, size=size)).shape
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        meta = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
        device = next(network.parameters(), torch.zeros(())).device
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        cond = {name: value.to("meta") for name, value in conditions.complete({}, 1, device).items()}
        with torch.no_grad(), torch.device("meta"):
            if "concat" in cond:
                cond["concat"] = torch.empty(1, cond["concat"].shape[1], *shape[1:])
            out = functional_call(network, meta, (torch.empty(1, *shape, dtype=dtype), torch.zeros(1)), cond)
    except (DiffkitError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return None
    return shape if tuple(out.shape[2:]) == shape[1:] else None


def _whole(size: object) -> Iterator[int]:
    for one in size if isinstance(size, list | tuple) else ():
        if isinstance(one, bool) or not isinstance(one, int):
            raise _wrong(f"size must be whole numbers, got {size!r}", "pass a size such as (512, 768)")
        yield one


def read_latents(path: Path) -> np.ndarray[Any, Any]:
    """Return the start noise in a file, (*shape) or (N, *shape): the array `latents`, or the only one.

    Raises:
        ArgumentError: DK019, the file cannot be read, or holds several arrays.
    """
    try:
        if path.suffix == ".safetensors":
            found: Mapping[str, Any] = load_file(path)
        else:
            read = np.load(path, allow_pickle=False)
            found = {"latents": read} if isinstance(read, np.ndarray) else dict(read)
    except Exception as error:
        raise _wrong(f"{path} cannot be read: {error}", "write it by numpy.save, numpy.savez or safetensors") from error
    if "latents" not in found and len(found) != 1:
        message = f"{path} holds {len(found)} arrays: {', '.join(sorted(found))[:200]}"
        raise _wrong(message, "give the array of the start noise the name `latents`")
    array: np.ndarray[Any, Any] = found["latents"] if "latents" in found else next(iter(found.values()))
    return array


def latents_of(latents: Any, shape: tuple[int, ...], count: int) -> Tensor:
    """Return start noise as (count, *shape) float32.

    Args:
        latents: A tensor or an array, (*shape), (1, *shape) or (count, *shape).
        shape: Shape of one sample before the codec.
        count: Number of samples.

    Returns:
        The noise.

    Raises:
        ArgumentError: DK019, it has another shape or is not finite.
    """
    try:
        found = torch.as_tensor(np.array(latents) if isinstance(latents, np.ndarray) else latents)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _wrong(f"latents are a {type(latents).__name__}", "pass a file, a tensor or an array") from error
    found = found[None] if found.ndim == len(shape) else found
    if tuple(found.shape[1:]) != shape or len(found) not in (1, count) or not found.is_floating_point():
        fix = f"pass floats of shape {(1, *shape)}" + (f" or {(count, *shape)}" if count > 1 else "")
        raise _wrong(f"latents are of shape {tuple(found.shape)} and type {found.dtype}", fix)
    if not bool(found.isfinite().all()):
        raise _wrong("latents hold NaN or infinite values", "draw them again, such as torch.randn")
    return found.float().expand(count, *shape)


def _at_codes(unknown: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask (B, 1, *S) at the size of codes: the nearest pixel of each."""
    return functional.interpolate(unknown, tuple(size))


def _as_images(data: Data, size: tuple[int, ...], count: int, image: Any) -> Tensor:
    channels = data.spec.channels
    if len(size) != 2:
        raise _wrong(f"examples of the shape {data.spec.shape} cannot be edited as pictures", "leave image out")
    x = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image
    if isinstance(image, str | Path | Image.Image):
        x = torch.from_numpy(_read(image, "image", MODES.get(channels))).float().div(127.5).sub(1.0)
    if not isinstance(x, Tensor):
        raise _wrong(f"image must be a file, a picture or a tensor, got {type(image).__name__}", "pass a path")
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != channels or len(x) not in (1, count):
        wanted = f"(1 or {count}, {channels}, {size[0]}, {size[1]})"
        raise _wrong(f"image has the shape {tuple(x.shape)}, not {wanted}", "convert it, or choose another picture")
    if tuple(x.shape[2:]) != size:
        got, fixed = ("x".join(map(str, one)) for one in (x.shape[2:], size))
        fix = f"scale it to {fixed}, or pass --size {got}"
        raise _wrong(f"image has {got} pixels, but the samples have {fixed}", fix)
    if not x.is_floating_point():
        return data.to_model_range(x).float()
    if not bool(x.isfinite().all()) or (data.spec.bounded and float(x.abs().max()) > BOUND):
        raise _wrong("image has values outside of the model's range", "pass uint8, or floats from -1 to 1")
    return x.float()


def _as_mask(size: tuple[int, ...], mask: Any) -> Tensor:
    found = _read(mask, "mask", None)[0] if isinstance(mask, str | Path | Image.Image) else mask
    found = torch.from_numpy(np.array(found)) if isinstance(found, np.ndarray) else found
    if not isinstance(found, Tensor):
        raise _wrong(f"mask must be a file, a picture or a tensor, got {type(mask).__name__}", "pass a path")
    fixed = "x".join(map(str, size))
    if found.numel() != math.prod(found.shape[-2:]):
        raise _wrong(f"mask has the shape {tuple(found.shape)}, not {size}", "pass one mask of one channel")
    if tuple(found.shape[-2:]) != size:
        got = "x".join(map(str, found.shape[-2:]))
        raise _wrong(f"mask has {got} pixels, but the image has {fixed}", f"scale it to {fixed}")
    unknown = (found >= (0.5 if found.is_floating_point() or found.dtype == torch.bool else 128)).reshape(1, 1, *size)
    if not bool(unknown.any()):
        raise _wrong("mask is black, so nothing is repainted", "make white what is to be painted")
    return unknown.float()


def _read(source: str | Path | Image.Image, what: str, mode: str | None) -> np.ndarray[Any, Any]:
    """Return a picture as (C, H, W) uint8, a file upright; `mode` is what it must have, None converts it to grey."""
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        picture.load()
        picture = picture if picture is source else ImageOps.exif_transpose(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _wrong(f"{what} cannot be read: {error}", "check the file") from error
    if mode is not None and picture.mode != mode:
        fix = f'convert the picture, such as Image.open(FILE).convert("{mode}")'
        raise _wrong(f"{what} has the mode {picture.mode}, but the run makes {mode}", fix)
    if mode is None and picture.mode == "F":
        raise _wrong(f"{what} has the mode F, whose range is unknown", "save it with 8 bits, such as convert('L')")
    if mode is None and picture.mode.startswith("I"):  # 16 bits, which `convert` would cut at 255
        pixels = (np.asarray(picture, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
    else:
        pixels = np.asarray(picture if mode is not None else picture.convert("L"))
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()


def _wrong(message: str, fix: str) -> ArgumentError:
    return ArgumentError(message, code="DK019", fix=fix)
