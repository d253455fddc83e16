"""Errors of the operating system and of the environment are errors of the user, not bugs of diffkit."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

import click
import pytest

from diffkit import UsageError
from diffkit.cli.main import cli
from diffkit.runtime.distributed import join_ranks, resolve_device

from .conftest import Diffkit

CONTROL = re.compile(r"[^\n -~\xa0-\U0010ffff]|[\ud800-\udfff]")
PLACES = {
    "a name that is too long": "a" * 300,
    "below a file": "ring.yaml/x",
    "a folder that cannot be made": "/proc/nothing/x",
    "a user who does not exist": "~nosuchuser/x",
    "not UTF-8": os.fsdecode(b"caf\xe9"),
    "control characters": "a\x1b[31m\n[red]b",
    "a loop of links": "loop",
    "a device": "/dev/full",
    "a pipe": "pipe",
    "nothing": "",
}


def lines_of_commands(place: str) -> list[list[str]]:
    """Every command of diffkit, once with `place` as its first argument, and once for each option that takes a path.

    Commands and options come from click, so new ones are tested too.
    """
    lines = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        needed = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        example = {
            "recipe": "ring.yaml" if name == "run" else "digits",
            "recipes": "digits",
            "name": "foo",
            "kind": "sampler",
        }
        usual = [example.get(p.name or "", "missing") for p in needed]
        if needed:
            lines.append([name, "--", place, *usual[1:]])
        for option in command.params:
            writes_to_a_pipe = place == "pipe"  # which waits for a reader, as every program does
            if isinstance(option, click.Option) and isinstance(option.type, click.Path) and not writes_to_a_pipe:
                lines.append([name, *usual, option.opts[0], place])
    return lines


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_a_path_that_cannot_be_used(
    diffkit: Diffkit, recipe: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Each command ends with an error of the user that has a fix, and leaves no crash.txt."""
    monkeypatch.chdir(recipe.parent)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    for line in lines_of_commands(place):
        said = diffkit(*line)
        assert said.code != 1 or line[0] == "check", (line, said.err)
        assert "Traceback" not in said.err, line
        assert not CONTROL.search(said.out + said.err), line
        assert not Path("crash.txt").exists(), line
        if said.code and not said.err.startswith("Usage:"):
            assert "  fix: " in said.err or "  allowed: " in said.err, (line, said.err)


def test_a_full_disk(diffkit: Diffkit) -> None:
    said = diffkit("schema", "--out", "/dev/full")
    assert said.code == 6
    assert "error[DK403] cannot use the disk: No space left on device\n  fix: free some space" in said.err


@pytest.mark.parametrize("line", [["ls"], ["validate", "digits"], ["cp", "digits"]], ids=lambda line: line[0])
def test_a_removed_working_directory(
    diffkit: Diffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    said = diffkit(*line)
    assert said.code == 2
    assert "error[DK025] the working directory does not exist any more\n  fix: " in said.err


def test_too_many_open_files(diffkit: Diffkit, tmp_path: Path) -> None:
    assert diffkit("cp", "digits", tmp_path / "b.yaml").code == 0  # all modules are imported
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest_unused := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_unused, hard))
    try:
        said = diffkit("cp", "digits", tmp_path / "a.yaml")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said.code == 6
    assert "Too many open files\n  fix: raise the limit of open files: ulimit -n 4096" in said.err


def test_memory_that_runs_out_outside_of_training(diffkit: Diffkit) -> None:
    said = diffkit("run", "digits", "--dry-run", "--device", "cpu", "--set", "network.channels=1000000")
    assert said.code == 6, said.err
    assert "error[DK401] memory ran out during" in said.err
    assert "make the network smaller" in said.err


@pytest.mark.parametrize("name", ["mps", "meta", "xla", "hpu", "privateuseone", "nonsense", "cuda:99", ""])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert caught.value.code == "DK054"
    assert caught.value.fix == "--device cpu" or caught.value.choices
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("size", "rank"), [("abc", "0"), ("", "0"), ("-2", "0"), ("9" * 5000, "0"), ("2", None)])
def test_variables_of_a_launcher(monkeypatch: pytest.MonkeyPatch, size: str, rank: str | None) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(UsageError) as caught:
        join_ranks(resolve_device("cpu"))
    assert caught.value.code == "DK026"
    assert "unset WORLD_SIZE" in str(caught.value.fix)
