"""`run`: train, sample, evaluate, report; each stage once, and the same call goes on where it stopped."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DiffkitError, ResourceError, StoppedError
from ..host import registry
from ..recipe import Assembly, Recipe, assemble, load_recipe
from ..recipe.effective import effective_yaml
from ..recipe.load import Source
from ..recipe.yaml import parse
from ..runtime.distributed import SINGLE_PROCESS, Ranks, join_ranks, leave_ranks, resolve_device
from ..runtime.environment import environment
from ..runtime.memory import enough_memory
from ..runtime.progress import DetachableStream, console_progress
from ..runtime.signals import StopSignals
from ..storage.jsonl import EventLog
from ..storage.run_directory import EFFECTIVE, OpenRun, Resume, RunDirectory, begin
from .reporting import write_report
from .sampling import draw_and_save
from .stage_status import StageStatus, stopwatch
from .trained import Run
from .training import train

RUNS = Path("runs")
HINT = "lower sample.batch_size and evaluate.batch_size, lower evaluate.count, or make the network smaller"


def run(
    recipe: Recipe | Source,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    resume: Resume = "auto",
    quiet: bool = True,
) -> Run:
    """Do what `recipe` says in the run directory `out` (by default runs/NAME) and return the finished run.

    A run that stopped continues; one that is done is returned as it is. Raises RecipeError, LockedError,
    CheckpointError, DataError, DivergedError, ResourceError; StoppedError after SIGTERM or Ctrl-C, once a checkpoint
    is saved.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen = resolve_device(device)
    assembly = assemble(loaded, chosen)
    path = Path(out) if out is not None else RUNS / loaded.name
    world = join_ranks(chosen)
    try:
        if world.is_main:
            opened = open_directory(path, loaded, chosen, resume)
            world.barrier()
            tell = None if quiet else _tell
            with opened, StopSignals() as stop, EventLog(opened.directory.path, tell) as journal:
                for change in opened.changes:
                    journal.event("environment", {"change": change})
                _guarded(opened, assembly, chosen, journal, stop, quiet, world)
            return Run(opened.directory, chosen)
        world.barrier()
        with StopSignals() as stop:
            train(RunDirectory(path), assembly, chosen, None, lambda: stop.requested, world=world)
        return Run(RunDirectory(path), chosen)
    finally:
        leave_ranks(world)


def open_directory(path: Path, recipe: Recipe, device: torch.device, resume: Resume = "auto") -> OpenRun:
    """Create or open the run directory of `recipe`, locked.

    Args:
        path: the run directory.
        recipe: the recipe of the run; an existing run must have the same effective values.
        device: the device of the run, recorded in environment.json.
        resume: as `begin` takes it. Default: "auto".

    Raises:
        DiffkitError: as `begin` raises.
    """
    plugins = {plugin.name: plugin.version for plugin in registry().plugins if plugin.status == "ok"}
    found = environment(str(device), plugins)
    text = effective_yaml(recipe)
    return begin(path, recipe.text, text, found, resume, parse=lambda text: parse(text, EFFECTIVE).plain())


def _guarded(
    opened: OpenRun,
    assembly: Assembly,
    device: torch.device,
    journal: EventLog,
    stop: StopSignals,
    quiet: bool,
    world: Ranks,
) -> None:
    """The stages, with a note in the journal of why they ended early."""
    try:
        _stages(opened, assembly, device, journal, lambda: stop.requested, quiet, world)
    except StoppedError:
        journal.event("signal", {"name": stop.received.name if stop.received else "stop"})
        raise
    except DiffkitError as error:
        journal.event("error", {"code": error.code, "message": error.message})
        raise
    except Exception as error:
        journal.event("bug", {"message": repr(error)})
        with contextlib.suppress(ResourceError):  # it is shown as well, and must not be hidden behind a full disk
            path = opened.directory.write_text("crash.txt", "".join(traceback.format_exception(error)))
            error.add_note(f"the traceback is in {path}")
        raise


def _stages(
    opened: OpenRun,
    assembly: Assembly,
    device: torch.device,
    journal: EventLog,
    stop: Callable[[], bool],
    quiet: bool,
    world: Ranks = SINGLE_PROCESS,
) -> None:
    """Every stage that is not done for the weights at the last step."""
    directory, ledger = opened.directory, StageStatus(opened.directory)
    say: Callable[[str], None] = (lambda text: None) if quiet else _say
    progress = console_progress("training", not quiet)
    step = train(directory, assembly, device, journal, stop, world=world, progress=progress, lock=opened.lock)

    def raise_if_stopped() -> None:
        if stop():
            raise StoppedError(
                "stopped after training, which is done and saved", fix="run the same command again to continue"
            )

    trained = Run(directory, device, assembly)
    fresh = False
    with enough_memory(lambda: _sampling_needs(assembly), "sampling", HINT):
        if not ledger.done("sample", step):
            raise_if_stopped()
            say(f"sampling {assembly.recipe.sample.count}")
            with stopwatch() as spent:
                drawn_from = trained.trained()
                draw_and_save(drawn_from, drawn_from.model, directory.samples, device, lambda done: raise_if_stopped())
            ledger.write("sample", step, spent[0])
            fresh = True
        if assembly.metrics and not ledger.done("evaluate", step):
            raise_if_stopped()
            trained.evaluate(progress=not quiet, raise_if_stopped=raise_if_stopped)
            fresh = True
    if fresh or not ledger.done("report", step) or not directory.report.is_file():
        with stopwatch() as spent:
            journal.event("report")
            write_report(directory, assembly, raise_if_stopped)
        ledger.write("report", step, spent[0])
    else:
        say(f"{directory.path} is done; another --out or --resume never begins anew")


def _sampling_needs(assembly: Assembly) -> str:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in assembly.network.parameters())
    batch = max(assembly.recipe.sample.batch_size, assembly.recipe.evaluate.batch_size or 0)
    return f"the weights take {weights / 1e6:.0f} MB; the rest is {batch} samples at a time, and what metrics compare"


def _tell(name: str, fields: Mapping[str, Any]) -> None:
    """Warn of what went wrong without ending the run."""
    if name == "damaged-checkpoint" or name.endswith("-failed"):
        at = f" (step {fields['step']})" if "step" in fields else ""
        _say(f"warning: {name}{at}: {fields.get('reason')}")


def _say(text: str) -> None:
    print(text, file=DetachableStream(sys.stderr), flush=True)
