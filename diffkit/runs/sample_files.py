"""The files of samples: drawn by the sampling stage, written uncompressed, and read back without trust."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from ..conditioner import shown_conditions
from ..data import LABEL, Data
from ..denoiser import Denoiser
from ..recipe.assembly import Assembly
from ..recipe.spec import Recipe
from ..report import pictures
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.progress import Progress
from ..storage import atomic
from ..storage.run_directory import GRID, SAMPLES, TRAJECTORY
from .planning import SamplingPlan, plan_sampling
from .sampling import MAX_FRAMES, OnStep, SampleBatch, SampleTrajectory, draw_samples
from .stage_status import stage_inputs

MAX_NPZ_BYTES = 4 << 30
"""Size of a file of samples that is read."""
Array = NDArray[Any]


@dataclass(frozen=True)
class SharedDraw:
    """Batches of samples that one or several processes draw, each a share of them, with a file in `folder` for each.

    The batches are those of one process, so the samples are the same bytes. A batch whose file exists is not drawn
    again, so a drawing that was stopped continues.
    """

    folder: Path
    ranks: Ranks = SINGLE_PROCESS

    def path(self, index: int) -> Path:
        """Return the file of a batch."""
        return self.folder / f"{index:08d}.npz"

    def wants(self, index: int) -> bool:
        """Return whether this process draws the batch. The first one is always drawn: it has the trajectory."""
        own = index % self.ranks.size == self.ranks.rank
        return own and (index == 0 or not self.path(index).exists())

    def write(self, index: int, x: Tensor, nfe: int) -> None:
        """Write the samples of a batch.

        Args:
            index: Number of the batch.
            x: Its samples: (B, C, *S).
            nfe: Number of network calls for each sample.
        """
        save_npz(self.path(index), {"x": x.numpy(), "nfe": np.array(nfe)})

    def draw(self, denoise: Denoiser, plan: SamplingPlan, *rest: Any, **options: Any) -> SampleBatch | None:
        """Draw the samples of a plan together; the files are removed.

        Args:
            denoise: The denoiser.
            plan: The plan of the samples.
            rest: Further arguments of `draw_samples`.
            options: Further arguments of `draw_samples`.

        Returns:
            All samples on the first process, None on the others.

        Raises:
            PeerError: Another process ended first.
            ResourceError: The files cannot be written.
        """
        with self.ranks.together(), atomic.writing(self.folder, FIX):
            self._remove_others()
            self.folder.mkdir(parents=True, exist_ok=True)
            drawn = draw_samples(denoise, plan, *rest, batches=self, **options)
        with self.ranks.together():
            if not self.ranks.is_main:
                return None
            found = [load_npz(self.path(index)) for index in range(-(-plan.count // plan.batch_size))]
            shutil.rmtree(self.folder, ignore_errors=True)
            x, nfe = torch.cat([torch.from_numpy(one["x"]) for one in found]), int(found[-1]["nfe"])
        return replace(drawn, x=x, nfe=nfe)

    def _remove_others(self) -> None:
        """Remove the files of an earlier drawing with other weights or settings."""
        for path in self.folder.parent.glob(f"{PARTS}*") if self.ranks.is_main else ():
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)


def shared_draw(
    directory: Path, plan: SamplingPlan, recipe: Recipe, weights: str, ranks: Ranks = SINGLE_PROCESS
) -> SharedDraw:
    """Return the drawing of a plan, whose files lie in `directory`, the folder of samples.

    Args:
        directory: The folder of samples.
        plan: The plan of the samples.
        recipe: The recipe, whose sections of sampling the samples depend on.
        weights: The name and the training step of the weights.
        ranks: The processes that draw together.

    Returns:
        The drawing. Its folder has a name that depends on all of that.
    """
    levels = [f"{float(level.alpha).hex()} {float(level.sigma).hex()}" for level in plan.levels]
    facts = [stage_inputs(recipe)["evaluate"], weights, plan.seed, plan.count, plan.batch_size, plan.first, *levels]
    facts += [plan.start_scale, plan.network_time]
    digest = hashlib.sha256(
        "\n".join(map(str, [*facts, repr(plan.sampler), repr(plan.guidance)])).encode()
    ).hexdigest()[:16]
    return SharedDraw(directory / f"{PARTS}{ranks.exchange(digest)[0]}", ranks)


PARTS = ".parts-"
FIX = "free some space and run the same command again; training is done and saved"


def draw_and_save(
    assembly: Assembly,
    denoise: Denoiser,
    directory: Path,
    device: torch.device,
    step: int,
    *,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Path:
    """Draw the samples of a recipe, and write samples.npz, grid.png (of images) and trajectory.npz.

    Args:
        assembly: The objects of the recipe.
        denoise: The denoiser, without guidance.
        directory: The folder of the files.
        device: Device to compute on.
        step: Training step of the weights.
        progress: Displays the progress.
        on_step: Called after each step.
        ranks: The processes that draw together. The first one writes the files.

    Returns:
        The file to look at: grid.png of images, else samples.npz.

    Raises:
        ResourceError: The files cannot be written.
    """
    plan = plan_sampling(assembly, count=assembly.recipe.sample.count, seed=assembly.recipe.seed)
    target = directory / (GRID if is_image(assembly.data) else SAMPLES)
    drawn = shared_draw(directory, plan, assembly.recipe, f"sample {step}", ranks).draw(
        denoise, plan, assembly.codec, device, frames=MAX_FRAMES, progress=progress, on_step=on_step
    )
    if drawn is None:
        return target
    data = assembly.data
    arrays = {"x": data.to_storage(drawn.x).numpy(), "view": viewable(data, drawn.x), **condition_arrays(drawn)}
    with atomic.writing(directory, FIX):
        directory.mkdir(exist_ok=True)
        save_npz(directory / SAMPLES, arrays)
        if is_image(data):
            save_png(directory / GRID, data, drawn.x, shown(assembly, drawn))
        if drawn.trajectory is not None:
            save_npz(directory / TRAJECTORY, _trajectory_arrays(assembly, drawn.trajectory))
    return target


def _trajectory_arrays(assembly: Assembly, taken: SampleTrajectory) -> dict[str, Array]:
    """Return x and x0 in the form of a report, (K, B, H, W, C) or (K, B, D), and the times t: (K,)."""

    def view(frames: Tensor) -> Array:
        rows = viewable(assembly.data, frames.flatten(0, 1))
        return rows.reshape(*frames.shape[:2], *rows.shape[1:])

    times = np.array([float(assembly.schedule.time(level)) for level in taken.levels], dtype=np.float32)
    return {"x": view(taken.x), "x0": view(taken.x0), "t": times}


def is_image(data: Data) -> bool:
    """Return whether examples can be shown as pictures: two dimensions of 1 or 3 channels."""
    return len(data.spec.size) == 2 and data.spec.channels in (1, 3)


def viewable(data: Data, x: Tensor) -> Array:
    """Convert x: (N, C, *S) for the report: (N, H, W, C) uint8 of images, else (N, D) float."""
    return pictures.as_images(x) if is_image(data) else x.float().flatten(1).numpy()


def save_png(path: Path, data: Data, x: Tensor, conditions: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write a grid of images as a PNG file.

    Args:
        path: The file, which is replaced as a whole.
        data: The data set.
        x: (N, C, H, W) in the model's range.
        conditions: By name a text for each image; the file holds them as JSON in its text `conditions`.
    """
    texts = {"conditions": json.dumps(dict(conditions), ensure_ascii=True)} if conditions else {}
    atomic.replace(path, pictures.png(pictures.image_grid(viewable(data, x)), texts))


def condition_arrays(drawn: SampleBatch) -> dict[str, Array]:
    """Return the raw conditions of samples for their file: `labels`, and `condition.NAME` for others."""
    return {_member(name): raw.cpu().numpy() for name, raw in drawn.conditions.items()}


def _member(name: str) -> str:
    return "labels" if name == LABEL else f"condition.{name}"


def shown(assembly: Assembly, drawn: SampleBatch) -> dict[str, list[str]]:
    """Return a text for the conditions of each sample by their name, without those that are not texts or numbers."""
    texts = {name: shown_conditions(assembly.conditions.specs[name], raw) for name, raw in drawn.conditions.items()}
    return {name: rows for name, rows in texts.items() if any(rows)}


def stored_conditions(assembly: Assembly, stored: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return the raw conditions in a file of samples; those that do not fit the conditions of the run are left out.

    Args:
        assembly: The objects of the recipe.
        stored: The arrays of the file.

    Returns:
        (N, ...) by name.
    """
    found: dict[str, Tensor] = {}
    for name, spec in assembly.conditions.specs.items():
        raw = stored.get(_member(name))
        if raw is None or raw.shape[1:] != spec.shape or raw.ndim == 0:
            continue
        kind = {"long": "i", "float": "f"}.get(spec.dtype, "u")
        most = spec.classes if spec.classes is not None else math.inf
        if raw.dtype.kind == kind and (kind == "f" or bool(((raw >= 0) & (raw <= most)).all())):
            found[name] = torch.from_numpy(raw)
    return found


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays to one uncompressed file, which is replaced as a whole."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic.replace(path, buffer.getvalue())


def load_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of a file that `save_npz` wrote, which hold numbers. Nothing in it is unpickled or unpacked.

    Raises:
        CheckpointError: The file is damaged, compressed, too large, or no regular file.
    """
    with atomic.open_regular(path) as stream:
        if atomic.size_of(stream) > MAX_NPZ_BYTES:
            raise atomic.damaged_file(f"{path.name} is larger than {MAX_NPZ_BYTES >> 30} GiB")
        try:
            with zipfile.ZipFile(stream) as archive:
                return {one.filename.removesuffix(".npy"): _read(archive, one) for one in archive.infolist()}
        except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise atomic.damaged_file(f"{path.name} is not a file of samples ({ascii(str(error))[1:120]})") from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """Read one array whose size is that of its header. Raises ValueError for any other member."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError("a member is compressed")
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        data = stream.read()
    if dtype.kind not in "biuf" or fortran or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array does not have the size of its header")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    found: tuple[tuple[int, ...], bool, np.dtype[Any]]
    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    found = read(stream)
    return found


def load_views(path: Path) -> dict[str, Array]:
    """Return the arrays of a file of samples; `view` is (N, H, W, 1 or 3) uint8 or (N, D) finite.

    Raises CheckpointError if the file is damaged, or `view` is of another form.
    """
    stored = load_npz(path)
    view = stored.get("view")
    image = view is not None and view.dtype == np.uint8 and view.ndim == 4 and view.shape[3] in (1, 3)
    if view is None or not (image or (view.ndim == 2 and view.dtype.kind == "f")) or not view.size:
        raise atomic.damaged_file(f"{path.name} holds no samples that can be shown")
    return stored
