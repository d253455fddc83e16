"""Saving and loading checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from diffkit.errors import CheckpointError, ResourceError
from diffkit.storage import atomic, checkpoint as module, tensor_files
from diffkit.storage.checkpoint import CheckpointStore, SaveFailed, read_checkpoint
from diffkit.storage.manifest import FileDigest, Manifest, candidates

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensor(dtype: torch.dtype, shape: tuple[int, ...] = (3, 5)) -> torch.Tensor:
    raw = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(7))
    return (raw * 2 - 1).to(dtype) if dtype.is_floating_point else raw.to(dtype)


def content(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "network": {"weight": torch.full((4, 3), float(step)), "bias": torch.arange(3.0) + step},
        "ema-0.999": {"weight": torch.full((4, 3), step / 2)},
    }


def filled(directory: Path, steps: list[int], **options: Any) -> CheckpointStore:
    store = CheckpointStore(directory, **options)
    for step in steps:
        store.save(step, content(step), {"images": step * 8}, {"recipe": "abc"})
    return store


def steps(directory: Path) -> list[int]:
    return [candidate.step for candidate in candidates(directory)]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_every_file_has_the_mode_that_the_umask_allows(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = CheckpointStore(tmp_path / "c").save(1, content(1), {}, {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~mask}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(3000, content(3000), {"images": 7, "best": [0.1, None]}, {"recipe": "abc"})
    assert path == tmp_path / "step-00003000"
    assert {entry.name for entry in path.iterdir()} == {
        "network.safetensors",
        "ema-0.999.safetensors",
        "state.json",
        "manifest.json",
    }
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert (loaded.step, loaded.path, loaded.meta) == (3000, path, {"recipe": "abc"})
    assert loaded.state == {"images": 7, "best": [0.1, None]}
    for group, named in content(3000).items():
        for name, value in named.items():
            assert torch.equal(loaded.tensors[group][name], value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (2, 0, 3)], ids=str)
def test_every_type_and_shape_survives(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = tensor(dtype, shape)
    CheckpointStore(tmp_path).save(1, {"network": {"x": value}}, {}, {})
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    again = loaded.tensors["network"]["x"]
    assert again.dtype == dtype
    assert again.shape == value.shape
    assert torch.equal(again, value)


def test_nan_and_infinity_keep_their_bits(tmp_path: Path) -> None:
    value = torch.tensor([float("nan"), float("inf"), -0.0])
    CheckpointStore(tmp_path).save(1, {"g": {"x": value}}, {}, {})
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert torch.equal(loaded.tensors["g"]["x"].view(torch.int32), value.view(torch.int32))


def test_views_shared_memory_gradients_and_empty_groups(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tied = {"a": base, "b": base, "transposed": base.t(), "column": base[:, 1]}
    CheckpointStore(tmp_path).save(1, {"network": tied, "objective": {}}, {}, {})
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert loaded.tensors["objective"] == {}
    for name, value in tied.items():
        assert torch.equal(loaded.tensors["network"][name], value.detach())
    loaded.tensors["network"]["a"].zero_()
    assert torch.equal(loaded.tensors["network"]["b"], base.detach())


def replace_group(path: Path, group: str, value: dict[str, torch.Tensor], **options: Any) -> None:
    """Write a group of a checkpoint with the library, and a manifest that fits."""
    manifest = Manifest.decode((path / "manifest.json").read_bytes())
    save_file(value, path / f"{group}.safetensors", **options)
    data = (path / f"{group}.safetensors").read_bytes()
    digest = FileDigest(len(data), module.hashlib.sha256(data).hexdigest())
    files = {**manifest.files, f"{group}.safetensors": digest}
    (path / "manifest.json").write_bytes(Manifest(manifest.step, files, manifest.meta).encode())


def test_the_files_are_safetensors_of_the_library(tmp_path: Path) -> None:
    """Other tools read what is written here, and what they write is read here."""
    value = {str(dtype): tensor(dtype) for dtype in DTYPES} | {"scalar": torch.tensor(3.5), "none": torch.zeros(0)}
    path = CheckpointStore(tmp_path).save(1, {"g": value}, {}, {})
    theirs = load_file(path / "g.safetensors")
    assert theirs.keys() == value.keys()
    assert all(torch.equal(theirs[name], value[name]) for name in value)
    replace_group(path, "g", value, metadata={"made": "elsewhere"})
    loaded = CheckpointStore(tmp_path).load({"g": value})
    assert loaded is not None
    ours = loaded.tensors["g"]
    assert ours.keys() == value.keys()
    assert all(torch.equal(ours[name], value[name]) for name in value)


def test_a_type_that_no_checkpoint_holds_is_refused(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(1, {"g": {"x": torch.zeros(2)}}, {}, {})
    replace_group(path, "g", {"x": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(tmp_path).load()
    assert "unsupported type C64" in caught.value.notes[0]


def test_a_header_that_could_not_be_read_is_not_saved(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    names = {"x" * 1000 + str(i): torch.zeros(0) for i in range(9000)}
    with pytest.raises(SaveFailed, match="header exceeds"):
        store.save(2, {"g": names}, {}, {})
    assert steps(tmp_path) == [1]


def test_loading_takes_one_extra_copy_of_a_group_and_saving_none(tmp_path: Path) -> None:
    """Peaks of the resident memory, each in a process of its own, with two groups of 100 MB."""
    program = (
        "import re, sys, torch; from pathlib import Path; from diffkit.storage.checkpoint import CheckpointStore;"
        "status = Path('/proc/self/status');"  # ru_maxrss would include the peak of the parent
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024;"
        "store = CheckpointStore(Path(sys.argv[1])); groups = {'a': {}, 'b': {}};"
        "CheckpointStore(Path(sys.argv[1]) / 'warm').save(0, {'a': {'w': torch.ones(9)}}, {}, {});"
        "CheckpointStore(Path(sys.argv[1]) / 'warm').load();"
        "saving = sys.argv[2] == 'save';"
        "groups = {g: {str(i): torch.ones(25 << 18) for i in range(4)} for g in 'ab'} if saving else {};"
        "Path('/proc/self/clear_refs').write_text('5');"  # the peak starts from the present memory
        "before = peak(); found = store.save(1, groups, {}, {}) if saving else store.load();"
        "print(peak() - before)"
    )

    def peak(action: str) -> float:
        command = [sys.executable, "-c", program, str(tmp_path), action]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak("save") < 20
    assert 200 <= peak("load") < 320


def test_a_type_that_the_format_lacks_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="complex64"):
        CheckpointStore(tmp_path).save(1, {"g": {"x": torch.zeros(2, dtype=torch.complex64)}}, {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["../network", "", ".hidden", "a/b", "x" * 65])
def test_a_group_is_a_plain_name(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="invalid name"):
        CheckpointStore(tmp_path / "c").save(1, {group: {}}, {}, {})
    assert list((tmp_path / "c").iterdir()) == []


def test_state_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        CheckpointStore(tmp_path).save(1, content(1), {"loss": float("nan")}, {})
    assert list(tmp_path.iterdir()) == []


def test_without_checkpoints_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "missing").load() is None
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        CheckpointStore(tmp_path).load(must=True)
    assert caught.value.exit_code == 8


def test_the_next_older_one_is_taken_and_the_fault_is_named(tmp_path: Path) -> None:
    filled(tmp_path, [10, 20, 30])
    damage(tmp_path / "step-00000030" / "network.safetensors")
    (tmp_path / "step-00000020" / "state.json").unlink()
    events: list[tuple[str, Any]] = []
    loaded = CheckpointStore(tmp_path, on_event=lambda name, fields: events.append((name, fields))).load()
    assert loaded is not None
    assert loaded.step == 10
    assert [(name, fields["step"]) for name, fields in events] == [
        ("damaged-checkpoint", 30),
        ("damaged-checkpoint", 20),
    ]
    assert "network.safetensors has changed" in events[0][1]["reason"]
    assert "state.json is missing" in events[1][1]["reason"]


@pytest.mark.parametrize("must", [False, True])
def test_never_afresh_silently(tmp_path: Path, must: bool) -> None:
    """Where checkpoints exist and none loads, the run stops and each is named."""
    filled(tmp_path, [10, 20])
    for step in (10, 20):
        damage(tmp_path / f"step-{step:08d}" / "manifest.json")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as caught:
        CheckpointStore(tmp_path).load(must=must)
    assert len(caught.value.notes) == 2
    assert caught.value.code == "DK600"


def test_expected_shapes_are_compared_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, [1])
    monkeypatch.setattr(tensor_files, "load", lambda data: pytest.fail("the data was loaded before the check"))
    for wrong, message in [
        ({"weight": (4, 3), "bias": (4,)}, r"shape \(3,\), but the recipe has \(4,\)"),
        ({"weight": (4, 3)}, "'bias', which the recipe does not have"),
        ({"weight": (4, 3), "bias": (3,), "more": (1,)}, "no tensor 'more'"),
        ({"weight": torch.zeros(4, 3, dtype=torch.float64), "bias": (3,)}, "type F32, but"),
    ]:
        with pytest.raises(CheckpointError) as caught:
            CheckpointStore(tmp_path).load({"network": wrong})
        assert module.re.search(message, caught.value.notes[0])


def test_expected_groups_are_read_and_the_others_only_verified(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    loaded = store.load({"ema-0.999": content(1)["ema-0.999"]})
    assert loaded is not None
    assert loaded.tensors.keys() == {"ema-0.999"}
    assert store.load({"network": None}) is not None
    with pytest.raises(CheckpointError) as caught:
        store.load({"ema-0.5": None})
    assert "group 'ema-0.5' is missing; groups: ema-0.999, network" in caught.value.notes[0]
    damage(tmp_path / "step-00000001" / "network.safetensors")
    with pytest.raises(CheckpointError):
        store.load({"ema-0.999": None})


def test_rotation_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    events: list[tuple[str, Any]] = []
    store = filled(tmp_path, [1, 2], keep=2, on_event=lambda name, fields: events.append((name, fields)))
    store.save(3, content(3), {}, {}, protect=[1])
    assert steps(tmp_path) == [3, 2, 1]
    store.save(4, content(4), {}, {})
    assert steps(tmp_path) == [4, 3]
    assert events[-1] == ("rotate", {"removed": [1, 2]})
    assert [fields["step"] for name, fields in events if name == "save"] == [1, 2, 3, 4]


def test_fewer_than_two_are_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)


def test_damaged_ones_do_not_displace_whole_ones(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2, 3, 4], keep=4)
    damage(tmp_path / "step-00000003" / "network.safetensors")
    damage(tmp_path / "step-00000004" / "network.safetensors")
    store = CheckpointStore(tmp_path, keep=2)
    assert store.load() is not None
    store.save(5, content(5), {}, {})
    assert steps(tmp_path) == [5, 4, 3, 2]
    store.save(6, content(6), {}, {})
    assert steps(tmp_path) == [6, 5]


def test_saving_where_a_damaged_one_lies_replaces_it(tmp_path: Path) -> None:
    """A run that resumed before a damaged checkpoint reaches its step again."""
    filled(tmp_path, [1, 2])
    damage(tmp_path / "step-00000002" / "network.safetensors")
    store = CheckpointStore(tmp_path)
    first = store.load()
    assert first is not None
    assert first.step == 1
    store.save(2, content(2), {"images": 16}, {"recipe": "abc"})
    second = CheckpointStore(tmp_path).load()
    assert second is not None
    assert second.step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_saving_the_same_again_writes_nothing_new(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    before = (tmp_path / "step-00000001").stat().st_ino
    store.save(1, content(1), {"images": 8}, {"recipe": "abc"})
    assert (tmp_path / "step-00000001").stat().st_ino == before
    store.save(1, content(2), {"images": 8}, {"recipe": "abc"})
    loaded = store.load()
    assert loaded is not None
    assert torch.equal(loaded.tensors["network"]["bias"], content(2)["network"]["bias"])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_reading_back_comes_before_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes the data and gives other data back costs no older checkpoint."""
    store = filled(tmp_path, [1, 2], keep=2)
    real = atomic.sync_directory

    def rot(path: Path) -> None:
        real(path)
        newest = tmp_path / "step-00000003" / "network.safetensors"
        if newest.exists():
            damage(newest)

    monkeypatch.setattr(atomic, "sync_directory", rot)
    with pytest.raises(SaveFailed, match="changed since it was written") as caught:
        store.save(3, content(3), {}, {})
    assert isinstance(caught.value, ResourceError)
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert loaded.step == 2
    store.save(4, content(4), {}, {})
    assert steps(tmp_path) == [4, 3, 2]


def test_a_failed_replacement_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, [1])
    real = atomic.sync_directory

    def fail(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(atomic, "sync_directory", fail)
    with pytest.raises(SaveFailed, match="Input/output error"):
        store.save(1, content(9), {}, {})
    monkeypatch.undo()
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert loaded.state == {"images": 8}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_old_one_that_cannot_be_removed_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    store = filled(tmp_path, [1, 2], keep=2, on_event=lambda name, fields: events.append(name))
    real = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied")
        real(path, ignore_errors=True)

    monkeypatch.setattr(module.shutil, "rmtree", refuse)
    store.save(3, content(3), {}, {})
    assert events[-1] == "remove-failed"
    assert steps(tmp_path) == [3, 2]
    monkeypatch.undo()
    store.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_cleaning_removes_temporaries_and_nothing_else(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2])
    key = "0" * 32
    (tmp_path / f".tmp-step-00000003-{key}").mkdir()
    (tmp_path / f".tmp-step-00000003-{key}" / "network.safetensors").write_bytes(b"half")
    (tmp_path / f".tmp-notes-{key}").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "step-00000002").rename(tmp_path / f".old-step-00000002-{key}")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / f".old-step-00000001-{key}")
    store.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".tmp-notes-{key}",
        "mine",
        "step-00000001",
        "step-00000002",
    ]
    CheckpointStore(tmp_path / "missing").clean()


def test_nothing_is_removed_by_reading(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    (tmp_path / f".tmp-step-00000003-{'0' * 32}").mkdir()
    store.load()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_disk_is_asked_for_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    one = sum(value.numel() * 4 for named in content(1).values() for value in named.values())
    usage = shutil.disk_usage(tmp_path)
    for free, existing, enough in [
        (2 * one, [], True),
        (2 * one - 1, [], False),
        (one, [1, 2], True),
        (one - 1, [1, 2], False),
    ]:
        monkeypatch.undo()
        filled(store.directory, existing)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if enough:
            store.preflight(content(1))
        else:
            with pytest.raises(ResourceError, match="MB") as caught:
                store.preflight(content(1))
            assert caught.value.exit_code == 6


def test_every_file_is_synced_before_the_name_is_given_and_the_name_before_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut only what was synced is there: a checkpoint that has its name must be whole."""
    store = filled(tmp_path, [1, 2], keep=2)
    log: list[tuple[str, str]] = []
    real_sync, real_rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        log.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        log.append(("rename", f"{self.name} {target.name}"))
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    store.save(3, content(3), {}, {})
    short = [(kind, name.split("-0")[0] if kind == "rename" else name) for kind, name in log]
    assert [kind for kind, _ in short] == ["sync"] * 5 + ["rename", "sync", "rename"]
    assert [name for _, name in short[:4]] == [
        "network.safetensors",
        "ema-0.999.safetensors",
        "state.json",
        "manifest.json",
    ]
    assert short[4][1].startswith(".tmp-step-00000003")
    assert short[5][1].startswith(".tmp-step")
    assert short[6] == ("sync", tmp_path.name)
    assert log[7][1].startswith("step-00000001 .tmp-step-00000001")


@given(
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
        max_size=6,
    ),
    state=st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8)),
)
def test_any_names_survive(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], state: dict[str, Any]
) -> None:
    directory = tmp_path_factory.mktemp("any")
    saved = {name: tensor(dtype, shape) for name, (dtype, shape) in values.items()}
    CheckpointStore(directory).save(0, {"g": saved}, state, {"meta": state})
    loaded = CheckpointStore(directory).load({"g": saved})
    assert loaded is not None
    assert loaded.state == state
    assert loaded.meta == {"meta": state}
    assert loaded.tensors["g"].keys() == saved.keys()
    assert all(torch.equal(loaded.tensors["g"][name], saved[name]) for name in saved)


def test_a_single_candidate_can_be_read(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    older = candidates(tmp_path)[1]
    assert read_checkpoint(older, {"network": None}).step == 1
    assert json.loads((older.path / "manifest.json").read_text())["meta"] == {"recipe": "abc"}
