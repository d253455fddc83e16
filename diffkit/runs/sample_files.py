"""The files of samples: drawn by the sampling stage, written uncompressed, and read back without trust."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..errors import CheckpointError, DataError
from ..metric import Tensors
from ..recipe.assembly import Assembly
from ..recipe.spec import Recipe
from ..report import pictures
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.progress import Progress
from ..storage import atomic
from ..storage.run_directory import GRID, SAMPLES, TRAJECTORY
from .planning import plan_sampling
from .results import stage_inputs
from .sampling import MAX_FRAMES, OnStep, SampleBatch, SampleTrajectory, SamplingPlan, draw_samples

MAX_NPZ_BYTES = 4 << 30
"""Size of a file of samples that is read."""
Array = NDArray[Any]


@dataclass(frozen=True)
class SharedDraw:
    """Batches of samples that one or several processes draw, each a share of them, into one file in `folder`.

    The batches are those of one process, so the samples are the same bytes, and memory does not grow with their number.
    A batch is complete when its record exists. It is not drawn again then, so interrupted sampling continues.
    """

    folder: Path
    plan: SamplingPlan
    ranks: Ranks = SINGLE_PROCESS

    def wants(self, index: int) -> bool:
        """Return whether this process draws the batch. The first one is always drawn: it has the trajectory."""
        own = index % self.ranks.size == self.ranks.rank
        return own and (index == 0 or self._record(index) is None)

    def write(self, index: int, x: Tensor, nfe: int) -> None:
        """Write the samples of a batch, then its record.

        Args:
            index: Number of the batch.
            x: Its samples: (B, C, *S).
            nfe: Number of network calls for each sample.

        Raises:
            DataError: DK330, a value is not finite.
        """
        if bad := int((~x.flatten(1).isfinite()).any(1).sum()):
            raise DataError(
                f"{bad} of {len(x)} samples hold NaN or infinite values, which would be black pixels",
                code="DK330",
                fix="set sample.precision: float32, take more steps, leave adapters out, or take an earlier checkpoint",
            )
        data = x.contiguous().float().numpy().tobytes()
        handle = os.open(self.folder / SAMPLES_FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with open(handle, "wb") as stream:
            stream.seek(index * self.plan.batch_size * (len(data) // len(x)))
            stream.write(data)
            atomic.sync(stream)
        record = {"shape": list(x.shape[1:]), "nfe": nfe, "bytes": len(data), "crc32": zlib.crc32(data)}
        atomic.replace(self._path(index), atomic.dump_json(record))

    @contextlib.contextmanager
    def draw(
        self, denoise: Denoiser, *rest: Any, progress: Progress | None = None, **options: Any
    ) -> Iterator[SampleBatch]:
        """Draw the samples of the plan together.

        Every process gets all samples, in a file that is removed at the end. It is kept after an error, so that the
        samples are not drawn again.

        Args:
            denoise: The denoiser.
            rest: Further arguments of `draw_samples` after the plan.
            progress: Displays the progress; closed when the samples are drawn.
            options: Further arguments of `draw_samples`.

        Returns:
            A context manager with the samples.

        Raises:
            PeerError: Another process ended first.
            ResourceError: The files cannot be written.
        """
        with self.ranks.together(), atomic.writing(self.folder, FIX):
            self._remove_others()
            self.folder.mkdir(parents=True, exist_ok=True)
        self.ranks.require_shared(self.folder)
        with self.ranks.together(), atomic.writing(self.folder, FIX), progress or Progress() as shown:
            drawn = draw_samples(denoise, self.plan, *rest, batches=self, progress=shown, **options)
        with self.ranks.together():
            record = self._record(-(-self.plan.count // self.plan.batch_size) - 1)
            if record is None:
                raise atomic.damaged_file(f"{self.folder.name} changed while the samples were read")
            x = mapped(self.folder / SAMPLES_FILE, (self.plan.count, *record["shape"]))
        yield replace(drawn, x=x, nfe=record["nfe"], seconds=float(self.ranks.exchange(repr(drawn.seconds))[0]))
        self.ranks.barrier()
        if self.ranks.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:08d}.json"

    def _record(self, index: int) -> dict[str, Any] | None:
        """Return the record of a batch; None if there is none, or the samples are not those that it describes."""
        if not os.path.lexists(self._path(index)):
            return None
        try:
            record = json.loads(atomic.read_bounded(self._path(index), MAX_RECORD_BYTES))
            shape, size = [int(side) for side in record["shape"]], int(record["bytes"])
            with atomic.open_regular(self.folder / SAMPLES_FILE) as stream:
                stream.seek(index * self.plan.batch_size * 4 * math.prod(shape))
                whole = zlib.crc32(stream.read(size)) == record["crc32"]
            return {"shape": shape, "nfe": int(record["nfe"])} if whole else None
        except (CheckpointError, OSError, ValueError, KeyError, TypeError):  # the batch is drawn again
            return None

    def _remove_others(self) -> None:
        """Remove the files of an earlier drawing with other weights or settings."""
        prefix = self.folder.name.rpartition("-")[0]
        for path in self.folder.parent.glob(f"{prefix}-*") if self.ranks.is_main else ():
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(parent: Path, ranks: Ranks = SINGLE_PROCESS) -> Iterator[Path]:
    """Make a folder of a new name in `parent` that all processes see, and remove it at the end."""
    name = ""
    with ranks.together(), atomic.writing(parent):
        if ranks.is_main:
            parent.mkdir(exist_ok=True)
            name = tempfile.mkdtemp(prefix=f"{PARTS}-", dir=parent)
    folder = Path(ranks.exchange(name)[0])
    ranks.require_shared(folder)
    try:
        yield folder
        ranks.barrier()
    finally:
        if ranks.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor whose values lie in a file, so that the system reads and drops them as memory allows.

    Args:
        path: The file.
        shape: The shape of the tensor.
        dtype: The type of its values.

    Returns:
        The tensor.
    """
    count = math.prod(shape)
    found = torch.from_file(str(path), shared=True, size=count, dtype=dtype) if count else torch.empty(0, dtype=dtype)
    return found.reshape(*shape)


EXAMPLES_FIX = "free some space: the examples of an evaluation are kept in a file while it runs"


def join_blocks(
    blocks: Iterable[Tensors], shape: Sequence[int], path: Path | None = None, ranks: Ranks = SINGLE_PROCESS
) -> tuple[Tensor, Tensor | None]:
    """Join blocks of examples, which every process gets.

    Args:
        blocks: Blocks of x, float32 on the CPU, each with its labels if there are labels.
        shape: The shape of all x: (N, C, *S).
        path: A file for x, which the first process writes, so that they take no memory; default: they are in memory.
        ranks: The processes.

    Returns:
        x, and labels (N,) or None.

    Raises:
        ResourceError: The file cannot be written.
    """
    xs, labels = list[Tensor](), list[Tensor]()
    with contextlib.ExitStack() as files:
        stream = None
        if path is not None and ranks.is_main:
            files.enter_context(atomic.writing(path, EXAMPLES_FIX))
            stream = files.enter_context(open(path, "xb"))
        for x, *rest in blocks:
            labels += rest
            if stream is not None:
                stream.write(x.contiguous().numpy().data)
            elif path is None:
                xs.append(x)
    if path is None:
        return torch.cat([torch.empty(0, *shape[1:]), *xs]), torch.cat(labels) if labels else None
    ranks.barrier()
    return mapped(path, shape), torch.cat(labels) if labels else None


def shared_draw(
    path: Path, plan: SamplingPlan, recipe: Recipe, weights: str, ranks: Ranks = SINGLE_PROCESS
) -> SharedDraw:
    """Return the `SharedDraw` of a plan.

    Args:
        path: Beginning of the name of its folder: PATH-DIGEST. Other folders of this name are removed.
        plan: The plan of the samples.
        recipe: The recipe, whose sections of sampling the samples depend on.
        weights: The name and the training step of the weights, and what else the samples depend on.
        ranks: The processes that draw together.

    Returns:
        The `SharedDraw`. The name of its folder depends on all arguments but `ranks`.
    """
    levels = [f"{float(level.alpha).hex()} {float(level.sigma).hex()}" for level in plan.levels]
    facts = [stage_inputs(recipe)["evaluate"], weights, plan.seed, plan.count, plan.batch_size, plan.first, *levels]
    facts += [plan.start_scale, plan.network_time, plan.sampler, plan.guidance, plan.shape]
    digest = hashlib.sha256("\n".join(map(str, facts)).encode())
    edit = () if plan.edit is None else (plan.edit.x0, plan.edit.unknown, plan.edit.blends, plan.edit.from_noise)
    for part in (*(one for given in sorted(plan.given.items()) for one in given), plan.latents, *edit):
        digest.update(f"{tuple(part.shape)} {part.dtype}".encode() if isinstance(part, Tensor) else repr(part).encode())
        if isinstance(part, Tensor):
            digest.update(part.cpu().contiguous().numpy().data)
    return SharedDraw(path.with_name(f"{path.name}-{ranks.exchange(digest.hexdigest()[:16])[0]}"), plan, ranks)


PARTS, SAMPLES_FILE = ".parts", "samples.f32"
MAX_RECORD_BYTES = 1000
BLOCK_BYTES = 16 << 20
"""Samples that are converted and written at a time."""
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
    """Draw the samples of a recipe, and write samples.npz, grid.png and trajectory.npz.

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
        The file to look at: grid.png of what has pictures, else samples.npz.

    Raises:
        ResourceError: The files cannot be written.
    """
    plan = plan_sampling(assembly, count=assembly.recipe.sample.count, seed=assembly.recipe.seed)
    target = directory / (GRID if has_pictures(assembly.data) else SAMPLES)
    drawing = shared_draw(directory / PARTS, plan, assembly.recipe, f"sample {step}", ranks)
    with (
        drawing.draw(denoise, assembly.codec, device, frames=MAX_FRAMES, progress=progress, on_step=on_step) as drawn,
        ranks.together(),
        atomic.writing(directory, FIX),
    ):
        if ranks.is_main:
            _save(directory, assembly, drawn)
    return target


def _save(directory: Path, assembly: Assembly, drawn: SampleBatch) -> None:
    """Write the files of drawn samples."""
    data = assembly.data
    view = Blocks(drawn.x, lambda x: viewable(data, x))
    save_npz(directory / SAMPLES, {"x": stored(data, drawn.x), "view": view, **condition_arrays(drawn)})
    if has_pictures(data):
        save_png(directory / GRID, data, drawn.x, shown(assembly, drawn))
    if drawn.trajectory is not None:
        save_npz(directory / TRAJECTORY, _trajectory_arrays(assembly, drawn.trajectory))


def _trajectory_arrays(assembly: Assembly, taken: SampleTrajectory) -> dict[str, Array]:
    """Return x and x0 in the form of a report, (K, B, H, W, C) or (K, B, D), and the times t: (K,)."""

    def view(frames: Tensor) -> Array:
        rows = viewable(assembly.data, frames.flatten(0, 1))
        return rows.reshape(*frames.shape[:2], *rows.shape[1:])

    times = np.array([float(assembly.schedule.time(level)) for level in taken.levels], dtype=np.float32)
    return {"x": view(taken.x), "x0": view(taken.x0), "t": times}


def depicted(data: Data) -> str:
    """Return what pictures that are not images show, in words: "series of 64 values"; empty for images."""
    size = " × ".join(map(str, data.spec.size))
    return {1: f"series of {size} values", 3: f"volumes of {size} values, as slices"}.get(len(data.spec.size), "")


def has_pixels(data: Data) -> bool:
    """Return whether examples are images or volumes of 1 or 3 channels."""
    return len(data.spec.size) in (2, 3) and data.spec.channels in (1, 3)


def has_pictures(data: Data) -> bool:
    """Return whether examples can be shown as pictures: images and volumes of 1 or 3 channels, and series."""
    return has_pixels(data) or len(data.spec.size) == 1


def pixels(data: Data, x: Tensor) -> Array:
    """Convert x: (N, C, *S) to values whose differences mean something: (N, H, W, C) uint8 of images and of slices of
    volumes, else (N, D) float.
    """
    if not has_pixels(data):
        return x.float().flatten(1).numpy()
    return pictures.as_images(x if len(data.spec.size) == 2 else pictures.slices(x))


def viewable(data: Data, x: Tensor) -> Array:
    """Convert x: (N, C, *S) for the report: (N, H, W, C) uint8 of images, slices of volumes and plots of series, else
    (N, D) float.
    """
    if len(data.spec.size) == 1:
        return pictures.plots(x)
    return pixels(data, x)


def save_png(
    path: Path,
    data: Data,
    x: Tensor,
    conditions: Mapping[str, Sequence[str]] | None = None,
    columns: int | None = None,
) -> None:
    """Write a grid of examples as a PNG file.

    Args:
        path: The file, which is replaced as a whole.
        data: The data set.
        x: (N, C, *S) in the model's range.
        conditions: By name a text for each example; the file holds them as JSON in its text `conditions`.
        columns: Examples in a row; default about square.
    """
    texts = {"conditions": json.dumps(dict(conditions), ensure_ascii=True)} if conditions else {}
    atomic.replace(path, pictures.png(pictures.image_grid(viewable(data, x), columns), texts))


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


@dataclass(frozen=True)
class Blocks:
    """An array that is computed a block of rows at a time, from x: (N, C, *S) by `convert`."""

    x: Tensor
    convert: Callable[[Tensor], Array]

    def __iter__(self) -> Iterator[Array]:
        rows = max(1, BLOCK_BYTES // (4 * max(1, self.x[:1].numel())))
        for block in torch.split(self.x, rows):
            yield np.ascontiguousarray(self.convert(block))


def stored(data: Data, x: Tensor) -> Blocks:
    """Return samples x: (N, C, *S) as the values of a file."""
    return Blocks(x, lambda block: data.to_storage(block).numpy())


def save_npz(path: Path, arrays: Mapping[str, Array | Blocks]) -> None:
    """Write named arrays to one uncompressed file, which is replaced as a whole."""
    with atomic.replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if not isinstance(array, Blocks):
                    npy.write_array(member, array, allow_pickle=False)
                    continue
                for number, block in enumerate(array):
                    if number == 0:
                        shape = (len(array.x), *block.shape[1:])
                        described = {"descr": npy.dtype_to_descr(block.dtype), "fortran_order": False, "shape": shape}
                        npy.write_array_header_1_0(member, described)
                    member.write(block.data)


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
