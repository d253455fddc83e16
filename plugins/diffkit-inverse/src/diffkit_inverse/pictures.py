"""Pictures of `diffkit restore`: reading with clear errors, degrading, and the files that the command writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from diffkit import DataSpec, SampleNoise, UsageError

from .operator import Operator
from .restoring import Restored

TILE, GAP, MOST_SHOWN = 112, 6, 4
"""Least side of a picture in the comparison, pixels between two, and samples beside the mean."""
MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = 1 << 26


def read_picture(path: Path, spec: DataSpec, forward: Operator, *, clean: bool) -> Tensor:
    """Read the picture to restore.

    Args:
        path: The file.
        spec: Shape of the pictures of the run.
        forward: The operator.
        clean: Whether the picture is to be degraded, and so has the shape of the run's pictures.

    Returns:
        (1, C, H, W) float32 in [-1, 1].

    Raises:
        UsageError: DK030, the file cannot be read, or has another size or number of channels.
    """
    shape = spec.shape
    if not clean and "mask" not in forward.conditions:
        shape = tuple(forward(torch.zeros(1, *spec.shape)).shape[1:])
    picture = _open(path)
    wanted = (shape[2], shape[1])
    if picture.size != wanted:
        fix = f"scale or crop it to {_size(wanted)} pixels"
        if picture.size == (spec.size[1], spec.size[0]):
            fix = f"pass --degrade if it is a clean picture that is to be measured first, or {fix}"
        raise _refused(f"{path} has {_size(picture.size)} pixels, not {_size(wanted)}", fix)
    grey = picture.mode in ("1", "L", "I;16", "I")
    if grey != (shape[0] == 1):
        fix = f"convert it to {'grey' if shape[0] == 1 else 'RGB'}"
        if clean or shape[0] == spec.channels:
            fix += ", or use a run that was trained on such pictures"
        else:
            fix = f"pass --degrade if it is a clean picture that is to be measured first, or {fix}"
        raise _refused(f"{path} is {'grey' if grey else 'in colour'}, but {shape[0]} channels are needed", fix)
    pixels = np.asarray(picture.convert(MODES[shape[0]]), dtype=np.float32).reshape(*shape[1:], shape[0])
    return torch.from_numpy(pixels / 127.5 - 1.0).movedim(-1, 0)[None]


def read_mask(path: Path, spec: DataSpec) -> Tensor:
    """Read a mask, white in the hole and black elsewhere: (1, 1, H, W), 1 for known pixels. Raises UsageError DK030."""
    picture, wanted = _open(path), (spec.size[1], spec.size[0])
    if picture.mode not in ("1", "L"):
        fix = "save it as a grey picture: white in the hole, black elsewhere"
        raise _refused(f"the mask {path} has the mode {picture.mode}, but a mask is black and white", fix)
    if picture.size != wanted:
        fix = f"make a mask of {_size(wanted)} pixels"
        raise _refused(f"the mask {path} has {_size(picture.size)} pixels, not {_size(wanted)}", fix)
    levels = np.asarray(picture.convert("L"))
    if not set(np.unique(levels)) <= {0, 255}:
        raise _refused(f"the mask {path} has grey pixels", "make each pixel black (known) or white (hole)")
    return torch.from_numpy((levels == 0).astype(np.float32))[None, None]


def degraded(clean: Tensor, forward: Operator, mask: Tensor | None, noise: float, seed: int) -> Tensor:
    """Measure a clean picture.

    Args:
        clean: (1, C, H, W) in [-1, 1].
        forward: The operator.
        mask: (1, 1, H, W), 1 for known pixels, or None.
        noise: Standard deviation of the noise to add.
        seed: Seed of this noise.

    Returns:
        y: (1, C', H', W').
    """
    y = forward.at({} if mask is None else {"mask": mask})(clean)
    return y + noise * SampleNoise(seed, range(1)).at_step(0)(y) if noise else y


def psnr(x: Tensor, reference: Tensor) -> float:
    """Compute the peak signal-to-noise ratio in decibels of pixels in [-1, 1]: 10 log10(4 / mean squared error)."""
    error = float((x.clamp(-1, 1) - reference).square().mean())
    return 10.0 * math.log10(4.0 / error) if error else math.inf


def write_results(folder: Path, done: Restored, mask: Tensor | None, reference: Tensor | None) -> Iterator[str]:
    """Write restored-N.png, mean.png and comparison.png, and yield the lines to print.

    Args:
        folder: The folder, which is made.
        done: The restored pictures.
        mask: (1, 1, H, W), 1 for known pixels, or None.
        reference: The clean picture (1, C, H, W), or None.

    Returns:
        The lines: the place, the error of the measurement, and the PSNR if there is a reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mean = done.x.mean(0, keepdim=True)
    for number, one in enumerate(done.x, 1):
        _save(folder / f"restored-{number}.png", one)
    _save(folder / "mean.png", mean[0])
    before = done.measurement if mask is None else torch.where(mask > 0.5, done.measurement, 0.0)
    row = [before, mean, *done.x[:MOST_SHOWN, None], *([] if reference is None else [reference])]
    _save(folder / "comparison.png", compared(row))
    yield f"{folder / 'comparison.png'}   {len(done.x)} samples, {done.nfe} evaluations each, {done.seconds:.1f} s"
    yield f"error of the measurement: {done.error:.3g} (root mean square of A x - y, pixels in [-1, 1])"
    if reference is not None:
        one, both = psnr(done.x[:1], reference), psnr(mean, reference)
        yield f"PSNR: {both:.2f} dB of the mean of {len(done.x)} samples, {one:.2f} dB of one sample"


def compared(pictures: list[Tensor]) -> Tensor:
    """Draw pictures (1, C, H, W) side by side, small ones enlarged without smoothing: (3, H', W'), white between."""
    side = max(TILE, *(max(one.shape[2:]) for one in pictures))
    tiles: list[Tensor] = []
    for one in pictures:
        colour = one.expand(1, 3, *one.shape[2:])
        tile = functional.interpolate(colour, (side * one.shape[2] // max(one.shape[2:]), side), mode="nearest")[0]
        tiles += [tile, torch.ones(3, tile.shape[1], GAP)]
    return torch.cat(tiles[:-1], 2)


def _save(path: Path, x: Tensor) -> None:
    """Write one picture, (1 or 3, H, W) in [-1, 1], as PNG."""
    pixels = x.clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def _open(path: Path) -> Image.Image:
    """Open a picture of a limited size and read its pixels, or raise UsageError."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise _refused(f"{path} has {_size(picture.size)} pixels", "scale it down")
            picture.load()
            return picture.copy()
    except FileNotFoundError as error:
        raise _refused(f"there is no file {path}", "check the name") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _refused(f"{path} cannot be read as a picture", "save it as PNG") from error


def _size(size: tuple[int, int]) -> str:
    """Format (width, height) as HxW."""
    return f"{size[1]}x{size[0]}"


def _refused(message: str, fix: str) -> UsageError:
    return UsageError(message, code="DK030", fix=fix)
