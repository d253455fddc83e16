"""Manifests, candidates and rotation, which need no torch."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from diffkit.errors import CheckpointError
from diffkit.storage import atomic
from diffkit.storage.manifest import (
    Candidate,
    FileDigest,
    Manifest,
    candidates,
    inspect,
    read_header,
    read_manifest,
    removable_steps,
    verify,
)

TENSORS = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '


def make(directory: Path, step: int, **meta: Any) -> Candidate:
    path = directory / f"step-{step:08d}"
    path.mkdir(parents=True)
    tensors = len(TENSORS).to_bytes(8, "little") + TENSORS + bytes(8)
    contents = {"network.safetensors": tensors, "state.json": b"{}\n"}
    stamps = {}
    for name, data in contents.items():
        (path / name).write_bytes(data)
        stamps[name] = FileDigest(len(data), hashlib.sha256(data).hexdigest())
    (path / "manifest.json").write_bytes(Manifest(step, stamps, meta).encode())
    return Candidate(path, step)


def test_a_whole_checkpoint_verifies(tmp_path: Path) -> None:
    candidate = make(tmp_path, 12, recipe="abc")
    manifest = verify(candidate)
    assert manifest.step == 12
    assert manifest.groups == {"network": ("network.safetensors",)}
    assert manifest.meta == {"recipe": "abc"}
    assert manifest.size == sum(path.stat().st_size for path in candidate.path.iterdir()) - len(manifest.encode())
    assert read_manifest(candidate) == manifest


def test_candidates_are_the_directories_with_the_exact_name_newest_first(tmp_path: Path) -> None:
    for name in ["step-00000002", "step-100000000", "step-00000010", "step-3", "step-000000004", ".tmp-step-1", "x"]:
        (tmp_path / name).mkdir()
    assert [candidate.step for candidate in candidates(tmp_path)] == [100000000, 10, 2]
    assert candidates(tmp_path / "missing") == []


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_no_bit_of_a_manifest_may_change(tmp_path: Path, position: int) -> None:
    candidate = make(tmp_path, 1, recipe="abc")
    path = candidate.path / "manifest.json"
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << (position % 8)
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_manifest(candidate)


def test_inspection_says_what_is_wrong_and_goes_on(tmp_path: Path) -> None:
    make(tmp_path, 1)
    make(tmp_path, 2)
    broken = make(tmp_path, 3).path
    (broken / "network.safetensors").unlink()
    silent = tmp_path / "step-00000002" / "network.safetensors"
    silent.write_bytes(silent.read_bytes()[:-1] + b"\1")
    quick = inspect(tmp_path)
    assert [(status.step, status.damage is None, status.verified) for status in quick] == [
        (3, False, False),
        (2, True, False),
        (1, True, False),
    ]
    full = inspect(tmp_path, contents=True)
    assert [status.damage is None for status in full] == [False, False, True]
    assert full[0].damage == "network.safetensors is missing"
    assert "sha256" in str(full[1].damage)
    assert full[2].bytes > 0


def test_hidden_files_of_other_programs_do_no_harm(tmp_path: Path) -> None:
    candidate = make(tmp_path, 1)
    (candidate.path / ".DS_Store").write_bytes(b"x")
    verify(candidate)


def test_verifying_needs_no_torch(tmp_path: Path) -> None:
    """pains 23: what lists and verifies does not wait for torch."""
    make(tmp_path / "run" / "checkpoints", 5)
    code = (
        "import sys; from pathlib import Path; from diffkit.storage.manifest import inspect;"
        "from diffkit.storage.run_directory import RunDirectory;"
        f"found = inspect(RunDirectory(Path({str(tmp_path / 'run')!r})).checkpoints, contents=True);"
        "assert [s.step for s in found if s.damage is None and s.verified] == [5], found;"
        "assert 'torch' not in sys.modules, 'too much was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    steps=st.sets(st.integers(0, 1000), max_size=12),
    whole=st.sets(st.integers(0, 1000)),
    keep=st.integers(2, 5),
    protect=st.sets(st.integers(0, 1000), max_size=3),
)
def test_rotation_never_goes_below_two_whole_ones(
    steps: set[int], whole: set[int], keep: int, protect: set[int]
) -> None:
    whole = {step for step in steps if step in whole or step % 3}
    gone = removable_steps(steps, whole.__contains__, keep, protect)
    left = steps - set(gone)
    assert len(left & whole) >= min(keep, len(whole))
    assert sorted(whole)[-keep:] == [step for step in sorted(whole)[-keep:] if step in left]
    assert protect & steps <= left
    assert set(gone) <= steps
    if whole and gone:
        assert max(gone) < max(whole)
    assert len(left & whole - protect) <= keep + len(protect & whole)


def test_wholeness_is_asked_only_as_often_as_needed() -> None:
    asked: list[int] = []

    def whole(step: int) -> bool:
        asked.append(step)
        return True

    assert removable_steps(range(10), whole, 3) == [6, 5, 4, 3, 2, 1, 0]
    assert asked == [9, 8, 7]
    with pytest.raises(ValueError, match="at least 2"):
        removable_steps([1], whole, 1)


def test_replacing_a_file_leaves_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    atomic.replace(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


@given(st.binary(max_size=200))
def test_no_bytes_make_the_header_reader_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with atomic.open_regular(path) as stream, contextlib.suppress(CheckpointError):
        _, found = read_header(stream, path)
        assert all(0 in info.shape for info in found.values())
