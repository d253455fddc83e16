"""The training stage: connects a trainer with the files of a run directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from .. import __version__
from ..callback import Callback, TrainingStepInfo, TrainResult
from ..codec import Reconstruction, weights_hash
from ..data import Data
from ..errors import CheckpointError, ResourceError, StoppedError
from ..recipe.assembly import Assembly, ClassifierParts, CodecParts, Parts
from ..recipe.effective import effective, recipe_hash
from ..runtime.distributed import SINGLE_PROCESS, Ranks
from ..runtime.memory import enough_memory
from ..runtime.progress import Progress, console_progress
from ..sampler import StepInfo
from ..storage.checkpoint import CheckpointStore
from ..storage.jsonl import EventLog
from ..storage.lock import RunLock
from ..storage.manifest import candidates, verify
from ..storage.run_directory import RunDirectory
from ..train.config import ProfileConfig
from ..train.fine_tune import load_initial
from ..train.latents import LatentCache, content_hash
from ..train.state import TrainerState
from ..train.tasks import ClassifierProblem, CodecModel, CodecProblem, Problem, TrainingProblem
from ..train.trainer import Trainer
from .held_out import shown_examples
from .planning import evaluation_plan
from .results import LossByLevel, StageRecord, StageStatus, stopwatch
from .sample_files import has_pictures, save_npz, save_png, viewable
from .sampling import draw_samples

PREVIEW_COUNT = 16
MAX_SAVE_FAILURES, MAX_SAVE_FAILURES_VANISHED = 3, 2
"""Failed saves in a row that end training: usually, and if the run directory no longer exists."""


def problem_of(parts: Parts) -> Problem:
    """Return the training problem of a recipe: model, data and loss."""
    data, augment, seed = parts.data, parts.augment, parts.recipe.seed
    if isinstance(parts, CodecParts):
        return CodecProblem(CodecModel(parts.network), parts.named_losses, data, augment, seed)
    if isinstance(parts, ClassifierParts):
        model, times, condition = parts.classifier, parts.times, parts.condition
        return ClassifierProblem(model, times, condition, data, parts.codec, augment, seed)
    assert isinstance(parts, Assembly)
    dropout = parts.recipe.data.condition_dropout
    return TrainingProblem(parts.model, parts.objective, data, parts.codec, augment, dropout, seed, parts.conditions)


def make_trainer(parts: Parts, device: torch.device, ranks: Ranks = SINGLE_PROCESS) -> Trainer:
    """Return a trainer of a recipe, at step 0.

    Args:
        parts: the components of the recipe.
        device: the device to train on.
        ranks: the processes of the run.

    Returns:
        The trainer.
    """
    problem, config = problem_of(parts), parts.recipe.train
    components = parts.optimizer, parts.lr_schedule, parts.strategy
    return Trainer(problem, config, *components, device=device, ranks=ranks)


def train(
    directory: RunDirectory,
    parts: Parts,
    device: torch.device,
    events: EventLog | None,
    stop: Callable[[], bool],
    *,
    ranks: Ranks = SINGLE_PROCESS,
    progress: Progress | None = None,
    lock: RunLock | None = None,
    quiet: bool = True,
) -> int:
    """Train to the last step of the recipe, from the newest whole checkpoint if there is one.

    Args:
        directory: the run directory.
        parts: the components of the recipe.
        device: the device to train on.
        events: the log of the run; None on the ranks that do not write.
        stop: called between steps; True ends the training after a checkpoint.
        ranks: the processes of the run.
        progress: displays the progress.
        lock: must be held at each save.
        quiet: display no progress of encoding.

    Returns:
        The last step.

    Raises:
        StoppedError: `stop` returned True; a checkpoint is saved (exit code 75).
        DivergedError, CheckpointError, DataError, LockedError, ResourceError: from the trainer, the store, the lock.
    """
    config = parts.recipe.train
    with ranks.together():
        done = _steps_done(directory, config.steps) if ranks.is_main else None
    done = json.loads(ranks.exchange(json.dumps(done))[0])
    if done is not None:
        return int(done)
    store = CheckpointStore(directory.checkpoints, keep=config.keep, on_event=events.event if events else None)
    with enough_memory(lambda: f"the network has {_parameters(parts) / 1e6:.1f} M parameters"):
        trainer = make_trainer(parts, device, ranks)
    with ranks.together():
        if events is not None:
            store.clean()
    _continue(trainer, store, events, ranks)
    if parts.codec.cache and trainer.step < config.steps:
        _keep_latents(trainer, parts, events, ranks, stop, quiet=quiet)
    save = _Saver(directory, trainer, store, events, stop, lock, _meta(parts))
    preview = _Preview(directory, parts, trainer, events, stop)
    with ranks.together():
        if events is not None and trainer.step < config.steps:
            store.preflight(trainer.largest_tensors())
    if events is None:
        result = trainer.run(stop=stop, save=save, preview=preview)
    else:
        writer = _Writer(parts, trainer, events)
        profiled = () if config.profile is None else (_Profiled(config.profile, trainer, events),)
        with stopwatch() as spent:
            result = trainer.run(
                (writer, *profiled), directory=directory.path, stop=stop, save=save, preview=preview, progress=progress
            )
        StageStatus(directory).write("train", _record(result, spent[0]))
    if result.stopped:
        message = f"stopped at step {result.step} of {config.steps}; a checkpoint is saved"
        raise StoppedError(message, fix="run the same command again to continue")
    return result.step


def _steps_done(directory: RunDirectory, steps: int) -> int | None:
    """Return the last step if training is done, else None.

    It is done if it reached `steps`, or a later step under an earlier recipe, and its checkpoint is whole unless all
    stages are done.
    """
    stages = StageStatus(directory)
    done = stages.read().get("train")
    if done is None or done.step < steps:
        return None
    if stages.done("report", done.step):
        return done.step
    newest = candidates(directory.checkpoints)[:1]
    try:
        return done.step if newest and verify(newest[0]).step == done.step else None
    except CheckpointError:
        return None


def _parameters(parts: Parts) -> int:
    return sum(parameter.numel() for parameter in parts.network.parameters())


def _continue(trainer: Trainer, store: CheckpointStore, events: EventLog | None, ranks: Ranks) -> None:
    """Load the newest undamaged checkpoint; if there is none, the weights that `train.init` names.

    The first process chooses the checkpoint, and every process loads that one or all of them end.
    """
    found = None
    with ranks.together():
        if ranks.is_main:
            expected, state = trainer.expected_tensors(), trainer.expected_state()
            found = store.load(expected, trainer.device, state=state, rows=trainer.engine.held_rows)
    choice = ranks.exchange("" if found is None else f"{found.step} {found.digest}")[0]
    with ranks.together():
        if choice and not ranks.is_main:
            step, digest = choice.split()
            expected, rows = trainer.expected_tensors(), trainer.engine.held_rows
            found = store.load_chosen(int(step), digest, expected, trainer.device, rows)
        if found is not None:
            differences = trainer.load(found.tensors, TrainerState.from_json(found.state))
    if found is not None:
        trainer.require_equal_weights()
        if events is not None:
            events.rewind(trainer.step)
            events.event("resume", {"step": trainer.step, **({"differences": differences} if differences else {})})
        return
    if events is not None:
        events.rewind(0)
        events.event("start", {"steps": trainer.config.steps})
    found_by_codec = trainer.engine.fit()
    if events is not None and found_by_codec:
        events.event("codec", {"found": found_by_codec})
    source = trainer.config.init
    if source is not None:
        with ranks.together():
            taken = load_initial(trainer, source, strict=trainer.config.strict_init)
        if events is not None:
            events.event("init", {"from": source, "step": taken.step, "differences": list(taken.differences)})
    trainer.require_equal_weights()


def latents_folder() -> Path:
    """Return the folder of kept latents: $XDG_CACHE_HOME/diffkit/latents, else ~/.cache/diffkit/latents."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffkit" / "latents"


def _keep_latents(
    trainer: Trainer, parts: Parts, events: EventLog | None, ranks: Ranks, stop: Callable[[], bool], *, quiet: bool
) -> None:
    """Let the trainer read the posteriors of its examples from the disk; the first process encodes them if need be."""
    codec, recipe, source = parts.codec, effective(parts.recipe), parts.codec.record()
    counted = type(parts.data).fingerprint is Data.fingerprint  # so other examples may have the same fingerprint
    content = content_hash(parts.data, console_progress("reading", not quiet)) if counted else None
    meaning = {
        **({"content": content} if counted else {}),
        "data": parts.data.fingerprint(),
        "codec": recipe["codec"],
        "weights": weights_hash(codec) if isinstance(codec, nn.Module) else "",
        "source": dict(source.options) if source else {},
        "augment": recipe["data"].get("augment", []),
        "device": trainer.device.type,
    }
    text = json.dumps(meaning, sort_keys=True)
    latents = LatentCache(latents_folder() / hashlib.sha256(text.encode()).hexdigest()[:32], json.loads(text))
    with ranks.together():
        fault = latents.fault() if ranks.is_main else None
        if fault is not None:
            if events is not None and latents.folder.exists():
                events.event("latents-failed", {"reason": f"{latents.folder}: {fault}; encoding again"})
            shown = console_progress("encoding", not quiet)
            latents.write(parts.data, codec, parts.augment, trainer.device, shown, stop)
    trainer.engine.use_latents(latents)
    if events is not None:
        events.event("latents", {"folder": str(latents.folder), "encoded": fault is not None})


def _meta(parts: Parts) -> dict[str, str]:
    """Return what the manifest of a checkpoint states: hashes of recipe and source of the codec, versions."""
    source = parts.codec.record()
    codec = {} if source is None else {"codec": source.sha256}
    return {"recipe": recipe_hash(parts.recipe), "diffkit": __version__, "torch": torch.__version__, **codec}


class _Saver:
    """Saves checkpoints: the first process alone, or all of them if they hold shards.

    A checkpoint that cannot be saved does not stop training; three in a row do, two if the directory has vanished, and
    the last one of all.
    """

    def __init__(
        self,
        directory: RunDirectory,
        trainer: Trainer,
        store: CheckpointStore,
        events: EventLog | None,
        stop: Callable[[], bool],
        lock: RunLock | None,
        meta: Mapping[str, str],
    ) -> None:
        self.directory, self.trainer, self.store, self.events = directory, trainer, store, events
        self.stop, self.lock, self.failures = stop, lock, 0
        self.meta = meta

    def __call__(self, step: int) -> bool:
        """Save the checkpoint of `step`; returns whether it is saved, which counts on the first process only."""
        ranks, trainer = self.trainer.ranks, self.trainer
        sharded = ranks.size > 1 and trainer.engine.sharded
        failure: ResourceError | None = None
        with ranks.together():
            if self.events is not None:
                self.events.sync()
            try:
                if self.lock is not None:
                    self.lock.require_held()
            except ResourceError as error:  # the directory has vanished, and may come back
                failure = error
        try:
            if not ranks.any(failure is not None) and (sharded or ranks.is_main):
                peers = ranks if sharded else None
                self.store.save(step, trainer.tensors(), trainer.state().to_json(), self.meta, peers=peers)
        except ResourceError as error:
            failure = error
        with ranks.together():
            if self.events is not None and failure is not None:
                self._failed(step, failure)
        self.failures = self.failures + 1 if failure is not None else 0
        return failure is None

    def _failed(self, step: int, failure: ResourceError) -> None:
        """Log a failed save; raise it if it ends the training."""
        assert self.events is not None
        self.events.event("save-failed", {"step": step, "reason": failure.message})
        allowed = MAX_SAVE_FAILURES if self.directory.path.is_dir() else MAX_SAVE_FAILURES_VANISHED
        if self.failures + 1 >= allowed or step >= self.trainer.config.steps or self.stop():
            raise failure


class _Preview:
    """Draws a few samples in training, or reconstructions of held-out examples.

    Processes that hold shards of the weights draw the same ones together.
    """

    def __init__(
        self,
        directory: RunDirectory,
        parts: Parts,
        trainer: Trainer,
        events: EventLog | None,
        stop: Callable[[], bool],
    ) -> None:
        self.directory, self.parts, self.trainer, self.events, self.stop = directory, parts, trainer, events, stop

    def __call__(self, step: int, model: Any) -> None:
        """Draw a small grid of samples, from streams that training does not use; no sample is drawn if a stop is
        requested.
        """
        target, data, x = self.directory.samples, self.parts.data, None
        try:
            x = self._drawn(model)
            if self.events is None or x is None:
                return
            target.mkdir(exist_ok=True)
            save_npz(target / f"step-{step:08d}.npz", {"view": viewable(data, x)})
            if has_pictures(data):
                save_png(target / f"step-{step:08d}.png", data, x)
            suffix = "png" if has_pictures(data) else "npz"
            self.events.event("preview", {"step": step, "file": f"{target.name}/step-{step:08d}.{suffix}"})
        except (OSError, ResourceError, StoppedError) as error:
            if x is None and self.trainer.engine.sharded and not isinstance(error, StoppedError):
                raise  # the other processes wait for this one
            if self.events is not None:
                self.events.event("preview-failed", {"step": step, "reason": str(error)})

    def _drawn(self, model: Any) -> Tensor | None:
        parts = self.parts
        if isinstance(parts, CodecParts):
            out: Reconstruction = model(shown_examples(parts, PREVIEW_COUNT).to(self.trainer.device))
            return out.x.cpu()
        if not isinstance(parts, Assembly):
            return None
        levels = parts.evaluation_levels()
        plan = evaluation_plan(parts, count=PREVIEW_COUNT, seed=parts.recipe.seed, levels=levels)
        return draw_samples(model, plan, parts.codec, self.trainer.device, on_step=self._raise_if_stopped).x

    def _raise_if_stopped(self, step: StepInfo) -> None:
        stopped = self.stop()
        if self.trainer.ranks.any(stopped) if self.trainer.engine.sharded else stopped:
            raise StoppedError("stopped while drawing a preview")


class _Writer(Callback):
    """Writes a training to its run directory: numbers and previews; then calls the callbacks of the recipe."""

    def __init__(
        self,
        parts: Parts,
        trainer: Trainer,
        events: EventLog,
    ) -> None:
        self.trainer, self.events = trainer, events
        self.callbacks: tuple[Callback, ...] = (*parts.callbacks, *parts.trackers)

    @property
    def draws(self) -> bool:
        return any(callback.draws for callback in self.callbacks)

    def on_start(self, directory: Path) -> None:
        examples, batch_size = self.trainer.engine.examples, self.trainer.config.batch_size
        if examples < batch_size:
            self.events.event("small-data", {"examples": examples, "batch_size": batch_size})
        self._call(lambda callback: callback.on_start(directory))

    def on_step(self, info: TrainingStepInfo) -> None:
        if info.record is not None:
            self.events.metric({"step": info.step, **info.record})
        if self.callbacks:
            self._call(lambda callback: callback.on_step(info))

    def on_save(self, step: int) -> None:
        self._call(lambda callback: callback.on_save(step))

    def on_preview(self, step: int, model: Any) -> None:
        self._call(lambda callback: callback.on_preview(step, model))

    def on_end(self, result: TrainResult | None) -> None:
        self._call(lambda callback: callback.on_end(result))

    def _call(self, method: Callable[[Callback], None]) -> None:
        """Call each callback of the recipe; an error of the disk does not stop the training."""
        for callback in self.callbacks:
            try:
                method(callback)
            except OSError as error:
                name = type(callback).__name__
                self.events.event("callback-failed", {"callback": name, "reason": str(error)})


class _Profiled(Callback):
    """Records a window of steps with torch.profiler, as a Chrome trace in the run directory.

    A window that a stop cuts is written as far as it came; a resume after its first step writes none.
    """

    def __init__(self, window: ProfileConfig, trainer: Trainer, events: EventLog) -> None:
        self.window, self.trainer, self.events = window, trainer, events
        self.directory = Path()
        self.profiler: profile | None = None

    def on_start(self, directory: Path) -> None:
        self.directory = directory
        self._begin(self.trainer.step)

    def on_step(self, info: TrainingStepInfo) -> None:
        if info.step == self.window.start + self.window.steps:
            self._end()
        self._begin(info.step)

    def on_end(self, result: TrainResult | None) -> None:
        self._end()

    def _begin(self, step: int) -> None:
        if step == self.window.start and step < self.trainer.config.steps:
            cuda = [ProfilerActivity.CUDA] * (self.trainer.device.type == "cuda")
            self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self.profiler.start()

    def _end(self) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        file = f"profile-{self.window.start:08d}.json"
        try:
            self.profiler.export_chrome_trace(str(self.directory / file))
            self.events.event("profile", {"step": self.window.start, "file": file})
        except (OSError, RuntimeError) as error:
            self.events.event("profile-failed", {"step": self.window.start, "reason": str(error)})
        self.profiler = None


def _record(result: TrainResult, seconds: float) -> StageRecord:
    """Return the record of the training stage; bins of the noise level that no example fell into are left out."""
    found = result.held_out
    if found is None:
        return StageRecord(step=result.step, seconds=seconds)
    rows = [(t, loss) for t, loss, count in zip(found.level, found.binned, found.count, strict=True) if count]
    by_level = LossByLevel(level=tuple(t for t, _ in rows), loss=tuple(loss for _, loss in rows)) if rows else None
    return StageRecord(step=result.step, seconds=seconds, held_out_loss=found.loss, loss_by_level=by_level)
