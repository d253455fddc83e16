"""Make a run: train, sample, evaluate and report by a recipe, or take weights that were trained elsewhere.

Each stage is done once, and the same call continues a stopped run. A run with weights from elsewhere can be sampled,
measured and fine-tuned.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data import MapDataset
from ..errors import DiffkitError, PeerError, ResourceError, StoppedError, UsageError, plain, system_error
from ..host import registry
from ..recipe.assembly import Assembly, CodecParts, Parts, assemble, assemble_parts
from ..recipe.construct import require_same
from ..recipe.effective import effective_yaml, recipe_hash
from ..recipe.load import Source
from ..recipe.spec import Recipe
from ..recipe.validate import load_recipe
from ..recipe.yaml import parse
from ..report.wording import large
from ..runtime.distributed import Ranks, broken_collective, ended_first, join_ranks, leave_ranks, resolve_device
from ..runtime.environment import environment
from ..runtime.launch import FAILURES, earliest_failure, forget_failures, record_failure
from ..runtime.memory import enough_memory
from ..runtime.progress import DetachableStream, console_progress
from ..runtime.signals import StopSignals
from ..storage.checkpoint import CheckpointStore
from ..storage.jsonl import EventLog
from ..storage.manifest import candidates
from ..storage.run_directory import EFFECTIVE, OpenRun, Resume, RunDirectory, as_path, begin
from ..strategy import is_sharded
from ..train.fine_tune import refuse_misfit
from ..train.precision import choose
from .held_out import BATCH, reconstruct_and_save, require_held_out
from .records import PLUGIN_FILES, DataRecord, SourceRecord, digests, keep_plugin_files, read_plugin_files
from .reporting import write_report
from .results import Stage, StageRecord, StageStatus, stage_inputs, stopwatch
from .sample_files import draw_and_save
from .trained import Run
from .training import problem_of, train

RUNS = Path("runs")
OUTPUT_STAGES: Mapping[type[Parts], tuple[Stage, ...]] = {Assembly: ("sample",), CodecParts: ("reconstruct",)}
"""The stages of a task between training and evaluation."""
MEMORY_HINT = "lower sample.batch_size and evaluate.batch_size, lower evaluate.count, or make the network smaller"


def run(
    recipe: Recipe | Source,
    out: str | Path | None = None,
    *,
    dataset: MapDataset | None = None,
    device: str = "auto",
    resume: Resume = "auto",
    quiet: bool = True,
    handle_signals: bool = False,
) -> Run:
    """Run a recipe in a run directory. A stopped run continues; a finished run is returned unchanged.

    Args:
        recipe: A recipe, or an argument of `load_recipe`: a path, a built-in name, YAML text or a mapping.
        out: The run directory; by default runs/NAME.
        dataset: The examples, for a recipe whose `data.name` is `dataset`: an object of torch, Hugging Face or your own
            with a length and an index. The call that continues a run gives the same examples.
        device: "auto", "cpu", "cuda" or "cuda:I".
        resume: "auto" continues a run of the same recipe; "never" renames it and starts again; "must" refuses to start.
        quiet: Print nothing to standard error.
        handle_signals: Save a checkpoint and stop on SIGTERM and Ctrl-C. It replaces the signal handlers of the process
            during the run, as the command line program does. Default: False, so that Ctrl-C raises KeyboardInterrupt.

    Returns:
        The finished run.

    Raises:
        RecipeError: The recipe is invalid, or the directory holds a run of another recipe.
        StoppedError: SIGTERM or Ctrl-C was received and handled; a checkpoint is saved.
        DataError, ResourceError, DivergedError: Data, memory or disk, or the training itself failed.
        CheckpointError, LockedError: The directory has no usable checkpoint, or another process writes to it.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, dataset=dataset)
    chosen, path = resolve_device(device), run_path(loaded, out)
    with joined(chosen, loaded.train.timeout, path) as world:
        with world.together():
            parts = assemble_parts(loaded, chosen)
            if parts.metrics and not isinstance(parts, Assembly):
                require_held_out(parts.data)
        if not world.is_main:
            with world.together():
                pass  # the first process opens the run directory
            world.require_shared(path)
            with StopSignals(handle_signals) as signals:
                step = train(RunDirectory(path), parts, chosen, None, lambda: signals.requested, ranks=world)
                _finish(Run(RunDirectory(path), chosen), step, None, signals, True, world)
            return Run(RunDirectory(path), chosen)
        with world.together():
            opened = open_directory(path, parts, chosen, resume)
        forget_failures(path)
        on_event = None if quiet else _print_event
        with opened, StopSignals(handle_signals) as signals, EventLog(opened.directory.path, on_event) as events:
            world.require_shared(path)
            for change in opened.changes:
                events.event("environment", {"change": change})
            if not quiet:
                _print(_opening_line(parts, chosen, path))
            for change in opened.recipe_changes:
                events.event("recipe-changed", {"change": change})
            with _failure_logged(opened.directory, events, signals):
                if not quiet:
                    _print(f"data: {parts.data.summary}")
                stop, shown = (lambda: signals.requested), console_progress("training", not quiet)
                step = train(
                    opened.directory,
                    parts,
                    chosen,
                    events,
                    stop,
                    ranks=world,
                    progress=shown,
                    lock=opened.lock,
                    quiet=quiet,
                )
                sharded = any(map(is_sharded, parts.network.parameters()))
                trained = Run(opened.directory, chosen, None if sharded else parts)  # shards cannot be copied
                _finish(trained, step, events, signals, quiet, world)
        return Run(opened.directory, chosen, None if dataset is None else parts)


def run_from_weights(
    recipe: Recipe,
    out: str | Path,
    weights: Mapping[str, Tensor],
    source: str,
    components: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Run:
    """Make a run directory in which training is done and the network has these weights.

    Args:
        recipe: The recipe, with `train: {steps: 0, ema: []}`.
        out: The run directory, which must not be a run yet.
        weights: The state dict of the network of `recipe`.
        source: A description of the origin of the weights, for events.jsonl and the manifest.
        components: The state dicts of further modules by their path, such as `codec` and `conditions/text`; all that
            the recipe has must be given.

    Returns:
        The run.

    Raises:
        UsageError: The recipe trains, or `out` is a run.
        CheckpointError: A weight or a component is missing, unknown, or of another shape.
    """
    if recipe.train.steps or recipe.train.ema:
        fix = "write train: {steps: 0, ema: []} in the recipe"
        raise UsageError("imported weights require a recipe without training steps and averages", code="DK056", fix=fix)
    assembly = assemble(recipe)
    parts = {path: {f"{path}.{name}": one for name, one in part.items()} for path, part in (components or {}).items()}
    given = {"network": weights, "components": {name: one for part in parts.values() for name, one in part.items()}}
    own = {"network": assembly.network.state_dict(), "components": problem_of(assembly).learned().state_dict()}
    fitting = {}
    for group, tensors in given.items():
        refuse_misfit(tensors, own[group], source)
        if tensors:
            fitting[group] = {name: tensor.to(own[group][name].dtype) for name, tensor in tensors.items()}
    opened = open_directory(Path(out), assembly, torch.device("cpu"))
    with opened, EventLog(opened.directory.path) as events:
        if opened.resumed and candidates(opened.directory.checkpoints):  # without any, an earlier import failed
            raise UsageError(f"{out} already contains a run", code="DK056", fix="choose another directory")
        store = CheckpointStore(opened.directory.checkpoints, on_event=events.event)
        store.preflight(fitting)
        meta = {"recipe": recipe_hash(recipe), "diffkit": __version__, "torch": torch.__version__, "source": source}
        store.save(0, fitting, {"step": 0, "averages": []}, meta)
        StageStatus(opened.directory).write("train", StageRecord(step=0))
        events.event("import", {"from": source})
    return Run(opened.directory, torch.device("cpu"))


def run_path(recipe: Recipe, out: str | Path | None) -> Path:
    """Return the run directory of a recipe: `out`, else runs/NAME."""
    return as_path(out, "argument 2 (`out`)") if out is not None else RUNS / recipe.name


@contextlib.contextmanager
def joined(device: torch.device, timeout: float, path: Path) -> Iterator[Ranks]:
    """Yield the processes of a run. The failure of each is written to the run directory, and the first is reported.

    Args:
        device: The device of this process.
        timeout: Seconds that one collective call, or the start of the other processes, may take.
        path: The run directory.

    Returns:
        A context manager with the processes.

    Raises:
        PeerError: another process failed before, so that a collective call with it broke.
    """
    began, broken, world = time.time(), False, join_ranks(device, timeout)
    if world.heartbeat is not None:
        world.heartbeat.on_lost = lambda message: _end_process(path, world.rank, message)
    try:
        yield world
        world.barrier()
    except Exception as error:
        if world.size == 1:
            raise
        if not isinstance(error, PeerError):
            world.fail(error)
        if isinstance(error, StoppedError):
            error.reported = error.reported or not world.is_main
        broken = broken_collective(error)
        record_failure(path, world.rank, error, first=not broken and not isinstance(error, PeerError))
        if isinstance(error, StoppedError) or (isinstance(error, DiffkitError) and error.reported):
            raise
        time.sleep(PATIENCE_SECONDS)  # a process that failed at the same time, or just before, writes its record
        cause = earliest_failure(path, began)
        if cause is not None and cause["rank"] != world.rank:
            raise ended_first(f"process {cause['rank']} on {cause['host']}", cause) from error
        if broken:
            fix = f"run the same command again; what is known lies in {path / FAILURES}"
            raise PeerError(f"another process ended first, so process {world.rank} ends too", fix=fix) from error
        raise
    finally:
        leave_ranks(world, broken)


PATIENCE_SECONDS = 1.0
"""How long a process that fails waits for the record of one that failed before."""


def _end_process(path: Path, rank: int, message: str) -> None:
    """End this process because another one does not answer: the threads that wait for it cannot be interrupted."""
    error = PeerError(message, fix="run the same command again: it continues from the last checkpoint")
    record_failure(path, rank, error)
    with contextlib.suppress(OSError), open(path / FAILURES / f"rank-{rank}.stacks.txt", "w") as stream:
        faulthandler.dump_traceback(stream)
    _print(error.render())
    os._exit(error.exit_code)


def open_directory(path: Path, parts: Parts, device: torch.device, resume: Resume = "auto") -> OpenRun:
    """Create or open the run directory of a recipe, locked. Record what sampling needs of the data and the codec.

    Args:
        path: The run directory.
        parts: The objects of the recipe; see `begin` for an existing run of another recipe.
        device: The device of the run, which is recorded in environment.json.
        resume: "auto", "never" or "must"; see `run`.

    Returns:
        The locked directory.

    Raises:
        DataError: The data of an existing run was of another shape, range or classes.
        CheckpointError: The codec of an existing run had other weights.
        DiffkitError: As `begin` raises.
    """
    recipe, spec = parts.recipe, parts.data.spec
    plugins = {plugin.name: plugin.version or "" for plugin in registry().plugins if plugin.status == "ok"}
    files = read_plugin_files(recipe)
    found = environment(str(device), plugins) | ({PLUGIN_FILES: digests(files)} if files else {})
    text = effective_yaml(recipe)
    opened = begin(path, recipe.text, text, found, resume, parse=lambda text: parse(text, EFFECTIVE).plain())
    try:
        keep_plugin_files(opened.directory, files)
        recorded = DataRecord.read(opened.directory).spec
        if recorded is None:
            DataRecord(spec=spec).write(opened.directory)
        else:
            require_same(recorded, spec)
        source, present = SourceRecord.read(opened.directory), parts.codec.record()
        source.require_same(present)
        if source.record is None:
            SourceRecord(record=present).write(opened.directory)
    except BaseException:
        opened.lock.release()
        raise
    return opened


@contextlib.contextmanager
def _failure_logged(directory: RunDirectory, events: EventLog, signals: StopSignals) -> Iterator[None]:
    """Write an event if the block fails, and the traceback to crash.txt if the error is a bug."""
    try:
        yield
    except StoppedError:
        events.event("signal", {"name": signals.received.name if signals.received else "stop"})
        raise
    except DiffkitError as error:
        events.event("error", {"code": error.code, "message": error.message})
        raise
    except Exception as error:
        if isinstance(error, OSError) and (known := system_error(error)) is not None:
            events.event("error", {"code": known.code, "message": known.message})
            raise known from error
        if broken_collective(error):
            events.event("error", {"code": PeerError.code, "message": "another process ended first"})
            raise
        events.event("bug", {"message": repr(error)})
        with contextlib.suppress(ResourceError):  # the error itself is raised, and a full disk must not replace it
            path = directory.write_text("crash.txt", "".join(traceback.format_exception(error)))
            error.add_note(f"the traceback is in {path}")
        raise


def _finish(run: Run, step: int, events: EventLog | None, signals: StopSignals, quiet: bool, world: Ranks) -> None:
    """Do each stage after training that is not done with the weights of `step`. All processes draw the samples; the
    first one, which has `events`, decides and writes.
    """
    directory, stages, parts = run.directory, StageStatus(run.directory), run.parts
    inputs = stage_inputs(run.recipe)

    def raise_if_stopped() -> None:
        if signals.requested:
            fix = "run the same command again to continue"
            raise StoppedError("stopped after training; the trained weights are saved", fix=fix)

    todo: list[str] = []
    with world.together():
        if world.is_main:
            wanted = (*OUTPUT_STAGES.get(type(parts), ()), *(("evaluate",) if parts.metrics else ()))
            todo = [stage for stage in wanted if not stages.done(stage, step, inputs[stage])]
    todo = world.exchange(" ".join(todo))[0].split()
    with enough_memory(lambda: _sampling_needs(parts), "sampling", MEMORY_HINT):
        if "sample" in todo:
            with world.together():
                raise_if_stopped()
                trained = run.trained()
            with stopwatch() as spent, console_progress("sampling", not quiet) as shown:
                written = draw_and_save(
                    trained,
                    trained.model,
                    directory.samples,
                    run.device,
                    step,
                    progress=shown,
                    on_step=lambda info: raise_if_stopped(),
                    ranks=world,
                )
            if world.is_main:
                if not quiet:
                    _print(f"samples: {written}")
                stages.write("sample", StageRecord(step=step, seconds=spent[0], inputs=inputs["sample"]))
        if "reconstruct" in todo:
            with world.together():
                raise_if_stopped()
                trained_parts = run.trained_parts()
            with stopwatch() as spent:
                written = reconstruct_and_save(trained_parts, directory.samples, run.device, world)
            if world.is_main:
                if not quiet:
                    _print(f"reconstructions: {written}")
                stages.write("reconstruct", StageRecord(step=step, seconds=spent[0], inputs=inputs["reconstruct"]))
        if "evaluate" in todo:
            with world.together():
                raise_if_stopped()
            run.evaluate(progress=not quiet, raise_if_stopped=raise_if_stopped, ranks=world)
    with world.together():
        if events is not None:
            _report(run, step, events, quiet, bool(todo), inputs["report"], raise_if_stopped)


def _report(
    run: Run, step: int, events: EventLog, quiet: bool, changed: bool, inputs: str, raise_if_stopped: Callable[[], None]
) -> None:
    """Write the report unless it is up to date."""
    directory, stages = run.directory, StageStatus(run.directory)
    if changed or not stages.done("report", step, inputs) or not directory.report.is_file():
        with stopwatch() as spent:
            events.event("report")
            write_report(directory, run.parts, raise_if_stopped)
        stages.write("report", StageRecord(step=step, seconds=spent[0], inputs=inputs))
    elif not quiet:
        _print(f"{directory.path} is finished. To start over pass another --out or `--resume never`.")


def _sampling_needs(parts: Parts) -> str:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parts.network.parameters())
    batch = parts.recipe.evaluate.batch_size or BATCH
    if isinstance(parts, Assembly):
        batch = max(parts.recipe.sample.batch_size, parts.recipe.evaluate.batch_size or 0)
    return f"the weights take {weights / 1e6:.0f} MB; the rest is {batch} samples at a time and examples"


def _opening_line(parts: Parts, device: torch.device, path: Path) -> str:
    """Describe the run in one line: device, precision, size of the network and of the data, and the run directory."""
    network = parts.network
    precision = choose(parts.recipe.train.precision, device, problem_of(parts).undecodable, network)
    parameters = large(sum(parameter.numel() for parameter in network.parameters()))
    examples = f"{len(parts.data.split('train')):,} training examples of shape {parts.data.spec.shape}"
    return f"{parts.recipe.name}: {device}, {precision.name}, {parameters} parameters, {examples}, in {path}"


def _print_event(name: str, fields: Mapping[str, Any]) -> None:
    """Print the events that concern the user: a resume, samples and traces of training, and failures that do not end
    the run.
    """
    for line in fields.get("differences", ()):
        _print(f"warning: {name}: {line}")
    if name == "recipe-changed":
        _print(f"the run continues with {fields['change']}")
    elif name == "resume":
        _print(f"resumed at step {fields['step']:,}")
    elif name == "codec":
        _print(f"codec: {fields['found']}")
    elif name == "preview":
        _print(f"samples after step {fields['step']:,}: {fields['file']}")
    elif name == "profile":
        _print(f"trace of the steps after step {fields['step']:,}: {fields['file']}")
    elif name == "damaged-checkpoint" or name.endswith("-failed"):
        at = f" (step {fields['step']})" if "step" in fields else ""
        _print(f"warning: {name}{at}: {fields.get('reason')}")


def _print(text: str) -> None:
    print(plain(text), file=DetachableStream(sys.stderr), flush=True)
