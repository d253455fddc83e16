"""The run directory: names, layout, and when an old run goes on."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from diffkit.errors import CheckpointError, LockedError, RecipeError, ResourceError, UsageError
from diffkit.storage import atomic, run_directory
from diffkit.storage.run_directory import RunDirectory, difference, runs_in

RECIPE = "name: digits  # as given\n"
EFFECTIVE = "name: digits  # digits.yaml:1\nseed: 0  # default\ntrain:\n  steps: 100\n  lr: 0.001\n"
begin = partial(run_directory.begin, parse=yaml.safe_load)
ENVIRONMENT = {"versions": {"torch": "2.13"}, "threads": {"intra_op": 1}}


def make(path: Path, effective: str = EFFECTIVE) -> RunDirectory:
    with begin(path, RECIPE, effective, ENVIRONMENT) as run:
        assert not run.resumed
        return run.directory


def test_a_new_run_has_its_files(tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "digits")
    assert run.recipe.read_text() == RECIPE
    assert run.effective.read_text() == EFFECTIVE
    assert run.read_json("environment.json") == ENVIRONMENT
    assert sorted(path.name for path in run.path.iterdir()) == [
        "LOCK",
        "effective.yaml",
        "environment.json",
        "recipe.yaml",
    ]
    assert RunDirectory.open(run.path) == run
    assert run.name == "digits"
    for path, name in [
        (run.metrics, "metrics.jsonl"),
        (run.events, "events.jsonl"),
        (run.checkpoints, "checkpoints"),
        (run.samples, "samples"),
        (run.results, "results.json"),
        (run.report, "report.html"),
    ]:
        assert path == run.path / name


@pytest.mark.parametrize("name", ["..", ".hidden", "-x", "a b", "x" * 65, "a\0b", "ä", "a\nb", "_x"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="invalid run name") as caught:
        begin(tmp_path / name, RECIPE, EFFECTIVE, ENVIRONMENT)
    assert caught.value.code == "DK611"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "digits-2.1_x", "x" * 64])
def test_names_that_are_allowed(tmp_path: Path, name: str) -> None:
    assert make(tmp_path / name).name == name


def test_links_are_not_followed(tmp_path: Path) -> None:
    run = make(tmp_path / "real")
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(UsageError, match="symbolic link") as caught:
        begin(tmp_path / "link", RECIPE, EFFECTIVE, ENVIRONMENT)
    assert caught.value.code == "DK614"
    (tmp_path / "elsewhere").mkdir()
    run.checkpoints.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="symbolic link"):
        _ = run.checkpoints
    (tmp_path / "precious").write_text("{}")
    run.results.symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="symbolic link"):
        run.write_json("results.json", {"a": 1})
    assert (tmp_path / "precious").read_text() == "{}"
    assert [run.name for run in runs_in(tmp_path)] == ["real"]


def test_the_same_recipe_goes_on_whatever_its_comments(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    other = EFFECTIVE.replace("# default", "# --set").replace("0.001", "1.0e-3")
    with begin(tmp_path / "digits", RECIPE, other, ENVIRONMENT) as run:
        assert run.resumed
        assert run.changes == ()
        assert run.renamed is None
    assert run.directory.effective.read_text() == EFFECTIVE


def test_what_keeps_the_meaning_may_change(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    changed = EFFECTIVE.replace("steps: 100", "steps: 200").replace("0.001", "0.1") + "sample:\n  count: 9\n"
    with begin(tmp_path / "digits", "new\n", changed, ENVIRONMENT) as run:
        assert run.recipe_changes == (
            "train.steps: 100 -> 200",
            "train.lr: 0.001 -> 0.1",
            'sample: (absent) -> {"count": 9}',
        )
    assert run.directory.effective.read_text() == changed
    assert run.directory.recipe.read_text() == "new\n"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [("x.npz", "/a/x.npz", True), ("/b/x.npz", "/a/x.npz", True), ("/a/x.npz", "x.npz", False), ("2", 2, False)],
)
def test_data_that_has_moved_is_the_same_data(tmp_path: Path, old: str, new: object, same: bool) -> None:
    make(tmp_path / "digits", f"data: {{name: arrays, path: {json.dumps(old)}}}\n")
    effective = f"data: {{name: arrays, path: {json.dumps(new)}}}\n"
    if same:
        begin(tmp_path / "digits", RECIPE, effective, ENVIRONMENT).lock.release()
    else:
        with pytest.raises(RecipeError):
            begin(tmp_path / "digits", RECIPE, effective, ENVIRONMENT)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_another_recipe_is_refused_with_the_difference(tmp_path: Path, resume: str) -> None:
    run = make(tmp_path / "digits")
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    changed = EFFECTIVE.replace("steps: 100", "steps: 200").replace("seed: 0  # default\n", "network: {width: 3}\n")
    with pytest.raises(RecipeError, match="holds a run of another recipe") as caught:
        begin(tmp_path / "digits", RECIPE, changed, ENVIRONMENT, resume)  # type: ignore[arg-type]
    assert caught.value.notes == (
        "seed: 0 -> (absent)",
        'network: (absent) -> {"width": 3}',
    )
    assert (caught.value.code, caught.value.exit_code) == ("DK613", 3)
    assert "--resume never" in caught.value.render()
    assert run.effective.read_text() == EFFECTIVE
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT) as again:
        assert again.resumed


def test_never_renames_the_old_run_and_deletes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    for number in (1, 2):
        (tmp_path / "digits" / "results.json").write_text(f'{{"run": {number}}}')
        with begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT, "never") as run:
            assert not run.resumed
            assert run.renamed == tmp_path / f"digits.{number}"
            assert not run.directory.results.exists()
            with pytest.raises(LockedError):
                begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT)
    assert [run.name for run in runs_in(tmp_path)] == ["digits", "digits.1", "digits.2"]
    for number in (1, 2):
        assert RunDirectory.open(tmp_path / f"digits.{number}").read_json("results.json") == {"run": number}
    with begin(tmp_path / "fresh", RECIPE, EFFECTIVE, ENVIRONMENT, "never") as run:
        assert run.renamed is None


def test_the_name_of_an_old_run_is_a_name(tmp_path: Path) -> None:
    make(tmp_path / ("x" * 64))
    with begin(tmp_path / ("x" * 64), RECIPE, EFFECTIVE, ENVIRONMENT, "never") as run:
        assert run.renamed is not None
        assert RunDirectory.open(run.renamed).name == "x" * 62 + ".1"


def test_must_needs_a_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no checkpoint") as caught:
            begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT, "must")
        assert caught.value.exit_code == 8
        if not (tmp_path / "digits").exists():
            make(tmp_path / "digits")
    (tmp_path / "digits" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT, "must") as run:
        assert run.resumed


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown resume mode"):
        begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT, "maybe")  # type: ignore[arg-type]


def test_a_running_run_is_left_alone(tmp_path: Path) -> None:
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT):
        for resume in ("auto", "never"):
            with pytest.raises(LockedError) as caught:
                begin(tmp_path / "digits", "other", EFFECTIVE + "network: 1\n", ENVIRONMENT, resume)  # type: ignore[arg-type]
            assert caught.value.exit_code == 9
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_the_lock_is_free_after_a_refusal(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    for _ in range(2):
        with pytest.raises(RecipeError):
            begin(tmp_path / "digits", RECIPE, EFFECTIVE + "network: 1\n", ENVIRONMENT)
    make_again = begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT)
    make_again.lock.release()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    for resume in ("auto", "never"):
        with pytest.raises(UsageError, match=r"cat\.png") as caught:
            begin(tmp_path / "photos", RECIPE, EFFECTIVE, ENVIRONMENT, resume)  # type: ignore[arg-type]
        assert caught.value.code == "DK612"
    with pytest.raises(UsageError, match="not a run directory"):
        RunDirectory.open(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="File exists"):
        begin(tmp_path / "file", RECIPE, EFFECTIVE, ENVIRONMENT)


def test_a_directory_that_is_renamed_while_it_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process with --resume never moves the old run away between our mkdir and our look at what is there."""
    make(tmp_path / "digits")
    real, raced = os.mkdir, False

    def mkdir(path: Path, mode: int = 0o777) -> None:
        nonlocal raced
        try:
            real(path, mode)
        except FileExistsError:
            if not raced:
                raced = True
                (tmp_path / "digits").rename(tmp_path / "digits.1")
            raise

    monkeypatch.setattr(os, "mkdir", mkdir)
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, ENVIRONMENT) as run:
        assert raced
        assert not run.resumed


@pytest.mark.parametrize("written", range(4))
def test_a_crash_while_beginning_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    real, count = atomic.replace, 0

    def crash(path: Path, data: bytes) -> None:
        nonlocal count
        if count == written:
            path.with_name(f".tmp-{path.name}-half").write_bytes(data[:3])
            raise KeyboardInterrupt
        count += 1
        real(path, data)

    monkeypatch.setattr(atomic, "replace", crash)
    if written < 3:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "digits")
    monkeypatch.undo()
    assert not RunDirectory(tmp_path / "digits").exists
    make(tmp_path / "digits")


def test_a_changed_environment_is_told(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    now = {"versions": {"torch": "2.14"}, "threads": {"intra_op": 2}}
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, now) as run:
        assert run.changes == ("threads.intra_op: 1 -> 2", 'versions.torch: "2.13" -> "2.14"')
    assert run.directory.read_json("environment.json") == now
    run.directory.environment.write_text("half")
    with begin(tmp_path / "digits", RECIPE, EFFECTIVE, now) as run:
        assert "environment of the last start is unknown" in run.changes[0]
        assert run.resumed


def test_a_full_disk_is_a_matter_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "digits")
    run.write_json("results.json", {"frechet": 1.5})

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(ResourceError, match="No space left") as caught:
        run.write_json("results.json", {"frechet": 2.5})
    assert caught.value.exit_code == 6
    assert run.read_json("results.json") == {"frechet": 1.5}


def test_a_json_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    run = make(tmp_path / "digits")
    assert run.read_json("results.json") == {}
    run.results.write_text('{"a": NaN}')
    with pytest.raises(CheckpointError, match=r"results.json is not valid JSON"):
        run.read_json("results.json")


def test_runs_are_listed_by_name(tmp_path: Path) -> None:
    assert runs_in(tmp_path / "missing") == []
    for name in ("b", "a"):
        make(tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in runs_in(tmp_path)] == ["a", "b"]


def test_a_dangling_link_above_the_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="runs is a symbolic link to a missing directory") as caught:
        begin(tmp_path / "runs" / "digits", RECIPE, EFFECTIVE, ENVIRONMENT)
    assert caught.value.code == "DK614"
    assert runs_in(tmp_path / "runs") == []
    (tmp_path / "gone").mkdir()
    make(tmp_path / "runs" / "digits")


def test_pipes_in_place_of_files_are_named(tmp_path: Path) -> None:
    """None of them is opened in a way that waits for the other end."""
    run = make(tmp_path / "digits")
    os.mkfifo(run.results)
    with pytest.raises(CheckpointError, match=r"results.json is not a regular file"):
        run.read_json("results.json")
    (run.path / "LOCK").unlink()
    os.mkfifo(run.path / "LOCK")
    with pytest.raises(CheckpointError, match="LOCK is not a regular file"):
        begin(run.path, RECIPE, EFFECTIVE, ENVIRONMENT)
    (run.path / "LOCK").unlink()
    run.effective.unlink()
    os.mkfifo(run.effective)
    assert not run.exists
    assert runs_in(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"effective.yaml is not a regular file"):
        run.effective_text()
    run.effective.unlink()
    run.effective.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"effective.yaml is not UTF-8"):
        run.effective_text()


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = make(tmp_path / "digits"), make(tmp_path / "other")
    real = os.lstat

    def lstat(path: Path) -> os.stat_result:
        if Path(path).parent == run.path:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(UsageError, match="digits cannot be read: Permission denied"):
        RunDirectory.open(run.path)
    assert runs_in(tmp_path) == [run, other]
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        RunDirectory.open(tmp_path / ("x" * 300) / "digits")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_a_difference_is_told_exactly_where_there_is_one(old: object, new: object) -> None:
    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    assert (difference(old, new) == []) == same
    assert difference(old, old) == []


def test_true_is_not_one() -> None:
    assert difference({"a": True}, {"a": 1}) == ["a: true -> 1"]
    assert difference({"a": 1}, {"a": 1.0}) == []
    assert len(difference("x" * 500, "y")[0]) < 150
