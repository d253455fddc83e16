"""Commands about runs that only read files: `checkpoints` and `compare`. Torch is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import CheckpointError
from .console import as_json, say, say_error, say_json, table


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every byte and compare hashes.")
@click.option("--consolidate", is_flag=True, help="Write the shards of the newest checkpoint as one file a group.")
@as_json
def checkpoints(run: Path, verify: bool, consolidate: bool, as_json: bool) -> None:
    """List the checkpoints of RUN, newest first. Exits with 8 if one is damaged."""
    from ..storage.manifest import inspect
    from ..storage.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    if consolidate:
        from ..storage.checkpoint import CheckpointStore
        from ..storage.lock import RunLock

        lock = RunLock(directory.path)
        try:
            CheckpointStore(directory.checkpoints).consolidate()
        finally:
            lock.release()
    found = inspect(directory.checkpoints, contents=verify)
    rows: list[dict[str, Any]] = [
        {"step": s.step, "bytes": s.bytes, "state": "damaged" if s.damage else "whole" if verify else "complete"}
        | ({"damage": s.damage} if s.damage else {})
        for s in found
    ]
    if as_json:
        say_json(rows)
    elif rows:
        table(
            [[str(r["step"]), f"{r['bytes'] / 1e6:.1f} MB", str(r["state"]), str(r.get("damage", ""))] for r in rows],
            ["step", "size", "state", "damage"],
        )
    else:
        say("no checkpoint")
    damaged = [s for s in found if s.damage]
    if damaged:
        fix = "nothing to do: a run continues from the newest intact checkpoint"
        raise CheckpointError(f"{len(damaged)} of {len(found)} checkpoints are damaged", code="DK601", fix=fix)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with loss curves and pictures as well.")
@as_json
def compare(runs: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Show where the recipes of runs differ, their losses and results, and the pictures of their samples.

    A result that is marked with * was measured in different ways, so its values cannot be compared. The values of a
    metric that was measured by other rules, such as in features of another network, are left out.
    """
    from ..runs.listing import compare_runs

    found = compare_runs(runs)
    for sentence in found.damaged:
        say_error(f"warning: left out: {sentence}")
    names = [run.name for run in runs]
    if html is not None:
        from ..runs.reporting import write_comparison

        write_comparison(found, names, html)
    if as_json:
        facts = {"recipes": found.recipes, "results": found.results, "unlike": found.unlike, "damaged": found.damaged}
        facts |= {"errors": found.errors}
        say_json(facts | {"pictures": [path and str(path) for path in found.pictures]})
        return
    table([[path, *map(str, values)] for path, values in found.recipes.items()], ["recipe", *names])
    say()
    table(
        [[f"{name}{' *' if found.is_unlike(name) else ''}", *found.shown(name)] for name in found.results],
        ["result", *names],
    )
    for sentence in found.not_comparable():
        say(f"* not comparable: {sentence}")
    for path in [*filter(None, found.pictures), *([html] if html else [])]:
        say(str(path))
