"""The training stage: connects a trainer with the files of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from .. import __version__
from ..denoiser import Model
from ..errors import CheckpointError, ResourceError, StoppedError
from ..recipe import Assembly
from ..recipe.effective import recipe_hash
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.memory import enough_memory
from ..runtime.progress import Progress
from ..sampler import StepInfo
from ..storage.checkpoint import CheckpointStore
from ..storage.jsonl import EventLog
from ..storage.lock import RunLock
from ..storage.manifest import candidates, verify
from ..storage.run_directory import RunDirectory
from ..tracker import Tracker
from ..train.fine_tune import load_initial
from ..train.preprocessing import TrainingProblem
from ..train.trainer import Hooks, Trainer, TrainResult
from .sampling import draw_samples, guided, is_image, plan_sampling, save_npz, save_png, viewable
from .stage_status import LossByLevel, StageRecord, StageStatus, stopwatch

PREVIEW_COUNT = 16
MAX_SAVE_FAILURES, MAX_SAVE_FAILURES_VANISHED = 3, 2
"""Failed saves in a row that end training: usually, and if the run directory no longer exists."""


def training_problem(assembly: Assembly) -> TrainingProblem:
    """The model, objective and data of a recipe."""
    data = assembly.recipe.data
    return TrainingProblem(
        assembly.model,
        assembly.objective,
        assembly.data,
        assembly.codec,
        assembly.augment,
        data.label_dropout,
        assembly.recipe.seed,
    )


def train(
    directory: RunDirectory,
    assembly: Assembly,
    device: torch.device,
    events: EventLog | None,
    stop: Callable[[], bool],
    *,
    world: Ranks = SINGLE_PROCESS,
    progress: Progress | None = None,
    lock: RunLock | None = None,
) -> int:
    """Train to the last step of the recipe, from the newest whole checkpoint where there is one; returns the step.

    Before each save `lock` must still be ours. Raises StoppedError (exit 75) where it was asked to stop, after a
    checkpoint was saved; DivergedError, CheckpointError, DataError, LockedError and ResourceError as the trainer, the
    store and the lock do.
    """
    settings = assembly.recipe.train
    if _done(directory, settings.steps):
        return settings.steps
    note = events.event if events is not None else _nowhere
    store = CheckpointStore(directory.checkpoints, keep=settings.keep, on_event=note)
    with enough_memory(lambda: f"the network has {_parameters(assembly) / 1e6:.1f} M parameters"):
        trainer = Trainer(training_problem(assembly), settings, device=device, world=world)
    if events is not None:
        store.clean()
    world.barrier()
    _continue(trainer, store, events, assembly)
    if events is None:
        outcome = trainer.run(Hooks(stop=stop))
    else:
        writer = _Writer(directory, assembly, device, store, events, stop, lock)
        outcome = _write_along(writer, trainer, progress or Progress())
    if outcome.stopped:
        raise StoppedError(
            f"stopped at step {outcome.step} of {settings.steps}; a checkpoint is saved",
            fix="run the same command again to continue",
        )
    return outcome.step


def _done(directory: RunDirectory, steps: int) -> bool:
    """Whether training is: it reached the last step, and what it left is whole unless nothing needs it any more."""
    stages = StageStatus(directory)
    if not stages.done("train", steps):
        return False
    if stages.done("report", steps):
        return True
    newest = candidates(directory.checkpoints)[:1]
    try:
        return bool(newest) and verify(newest[0]).step == steps
    except CheckpointError:
        return False


def _parameters(assembly: Assembly) -> int:
    return sum(parameter.numel() for parameter in assembly.network.parameters())


def _write_along(writer: _Writer, trainer: Trainer, progress: Progress) -> TrainResult:
    """Train on the rank that writes: logs, checkpoints and previews go to the run directory."""
    if trainer.step < trainer.settings.steps:
        writer.store.preflight(trainer.tensors())
    writer.open()
    hooks = Hooks(
        log=writer.log,
        save=writer.save,
        preview=writer.preview,
        stop=writer.stop,
        event=writer.events.event,
        progress=progress,
    )
    with stopwatch() as spent:
        try:
            outcome = trainer.run(hooks)
        finally:
            writer.close()
    StageStatus(writer.directory).write("train", _record(outcome, spent[0]))
    return outcome


def _nowhere(name: str, fields: Mapping[str, Any]) -> None:
    """Events of a rank that does not write."""


def _continue(trainer: Trainer, store: CheckpointStore, events: EventLog | None, assembly: Assembly) -> None:
    """Load the newest whole checkpoint, or the weights that `train.init` names where there is none."""
    found = store.load(trainer.tensors(), trainer.device, state=trainer.state())
    if found is not None:
        differences = trainer.load(found.tensors, found.state)
        if events is not None:
            events.rewind(trainer.step)
            events.event("resume", {"step": trainer.step, **({"differences": differences} if differences else {})})
        return
    if events is not None:
        events.rewind(0)
        events.event("start", {"steps": trainer.settings.steps})
    if assembly.recipe.train.init is not None:
        taken = load_initial(trainer, assembly.recipe.train.init)
        if events is not None:
            events.event("init", {"from": assembly.recipe.train.init, "step": taken})


class _Writer:
    """Writes what the trainer reports.

    A checkpoint that cannot be saved does not stop training; three in a row do, two where the directory has vanished,
    and the last one of all.
    """

    def __init__(
        self,
        directory: RunDirectory,
        assembly: Assembly,
        device: torch.device,
        store: CheckpointStore,
        events: EventLog,
        stop: Callable[[], bool],
        lock: RunLock | None,
    ) -> None:
        self.directory, self.assembly, self.device = directory, assembly, device
        self.store, self.events, self.stop, self.lock = store, events, stop, lock
        self.trackers: tuple[Tracker, ...] = assembly.trackers
        self.failures = 0
        self.meta = {"recipe": recipe_hash(assembly.recipe), "diffkit": __version__, "torch": torch.__version__}

    def open(self) -> None:
        for tracker in self.trackers:
            tracker.open(self.directory.path)

    def log(self, record: Mapping[str, float]) -> None:
        self.events.metric(record)
        values = {name: v for name, v in record.items() if name != "step"}
        for tracker in self.trackers:
            self._try(partial(tracker.log, int(record["step"]), values))

    def save(self, trainer: Trainer) -> None:
        self.events.sync()
        try:
            if self.lock is not None:
                self.lock.require_held()
            self.store.save(trainer.step, trainer.tensors(), trainer.state(), self.meta)
            self.failures = 0
        except ResourceError as error:
            self.failures += 1
            self.events.event("save-failed", {"step": trainer.step, "reason": error.message})
            allowed = MAX_SAVE_FAILURES if self.directory.path.is_dir() else MAX_SAVE_FAILURES_VANISHED
            if self.failures >= allowed or trainer.step >= trainer.settings.steps or self.stop():
                raise

    def preview(self, step: int, model: Model) -> None:
        """A small grid of samples, from streams that training does not use; given up where it is asked to stop."""
        assembly = self.assembly
        levels = assembly.evaluation_levels()
        plan = plan_sampling(
            assembly, count=PREVIEW_COUNT, seed=assembly.recipe.seed, sampler=assembly.evaluation_sampler, levels=levels
        )
        target = self.directory.samples
        try:
            drawn = draw_samples(
                guided(assembly, model), plan, assembly.codec, self.device, on_step=self._raise_if_stopped
            )
            target.mkdir(exist_ok=True)
            save_npz(target / f"step-{step:08d}.npz", {"view": viewable(assembly.data, drawn.x)})
            if is_image(assembly.data):
                save_png(target / f"step-{step:08d}.png", assembly.data, drawn.x)
        except (OSError, ResourceError, StoppedError) as error:
            self.events.event("preview-failed", {"step": step, "reason": str(error)})

    def _raise_if_stopped(self, step: StepInfo) -> None:
        if self.stop():
            raise StoppedError("stopped while drawing a preview")

    def close(self) -> None:
        for tracker in self.trackers:
            self._try(tracker.close)

    def _try(self, action: Callable[[], None]) -> None:
        """What a tracker does; a disk that refuses it stops no training."""
        try:
            action()
        except OSError as error:
            self.events.event("tracker-failed", {"reason": str(error)})


def _record(outcome: TrainResult, seconds: float) -> StageRecord:
    """The record of the training stage; bins of the noise level that no example fell into are left out."""
    found = outcome.held_out
    if found is None:
        return StageRecord(step=outcome.step, seconds=seconds)
    rows = [(t, loss) for t, loss, count in zip(found.level, found.binned, found.count, strict=True) if count]
    level, loss = zip(*rows, strict=True)
    by_level = LossByLevel(level=level, loss=loss)
    return StageRecord(step=outcome.step, seconds=seconds, held_out_loss=found.loss, loss_by_level=by_level)
