"""Damage of any kind to a checkpoint is found, named, and answered with the next older one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from diffkit.errors import CheckpointError
from diffkit.storage.checkpoint import CheckpointStore
from diffkit.storage.manifest import candidates, verify

FILES = ("network.safetensors", "ema-0.999.safetensors", "state.json", "manifest.json")
EXPECTED: dict[str, Any] = {"network": {"w": (300, 20), "b": (20,), "mask": (7,)}, "ema-0.999": {"w": (300, 20)}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    store = CheckpointStore(directory)
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2):
        w = torch.randn(300, 20, generator=generator)
        mask = torch.arange(7) % 2 == 0
        network = {"w": w, "b": torch.randn(20, generator=generator).bfloat16(), "mask": mask}
        state = {"images": step, "lr": 0.1, "history": [1 / i for i in range(1, 50)]}
        meta = {"recipe": "0" * 64, "versions": {"torch": "2.13", "diffkit": "0.1.0"}}
        store.save(step, {"network": network, "ema-0.999": {"w": w * 0.5}}, state, meta)
    return directory


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    before = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def falls_back(directory: Path) -> str:
    """The fault that made the newest checkpoint be passed over; the test fails where it was not."""
    faults: list[str] = []
    store = CheckpointStore(directory, on_event=lambda name, fields: faults.append(str(fields["reason"])))
    loaded = store.load(EXPECTED)
    assert loaded is not None
    assert loaded.step == 1
    assert loaded.state["images"] == 1
    assert len(faults) == 1
    with pytest.raises(CheckpointError):
        verify(candidates(directory)[0])
    return faults[0]


def flip(directory: Path, draw: random.Random) -> None:
    path = directory / "step-00000002" / draw.choice(FILES)
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    with changed(path, bytes(data)):
        falls_back(directory)


def truncate(directory: Path, draw: random.Random) -> None:
    path = directory / "step-00000002" / draw.choice(FILES)
    data = path.read_bytes()
    with changed(path, data[: draw.randrange(len(data))]):
        falls_back(directory)


@pytest.mark.parametrize(("damage", "count"), [(flip, 60), (truncate, 20)], ids=["bit flips", "truncations"])
def test_sampled_damage_is_detected(
    checkpoints: Path, damage: Callable[[Path, random.Random], None], count: int
) -> None:
    for number in range(count):
        damage(checkpoints, random.Random(number))


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "count"), [(flip, 1000), (truncate, 200)], ids=["bit flips", "truncations"])
def test_much_damage_is_detected(checkpoints: Path, damage: Callable[[Path, random.Random], None], count: int) -> None:
    for number in range(count):
        damage(checkpoints, random.Random(10_000 + number))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: None,
        lambda data: b"",
        lambda data: data + b"\n",
        lambda data: data + data,
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: data[:-1] + b"X",
        lambda data: data[::-1],
    ],
    ids=["deleted", "empty", "appended", "doubled", "zeroed", "half zeroed", "last byte", "reversed"],
)
def test_every_file_is_watched(checkpoints: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    path = checkpoints / "step-00000002" / name
    with changed(path, change(path.read_bytes())):
        assert name in falls_back(checkpoints)


def test_files_of_two_checkpoints_do_not_mix(checkpoints: Path) -> None:
    for name in FILES:
        other = (checkpoints / "step-00000001" / name).read_bytes()
        with changed(checkpoints / "step-00000002" / name, other):
            falls_back(checkpoints)


def test_a_renamed_checkpoint_is_not_of_its_new_step(checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "step-00000001", checkpoints / "step-00000007")
    faults: list[str] = []
    store = CheckpointStore(checkpoints, on_event=lambda name, fields: faults.append(str(fields["reason"])))
    loaded = store.load(EXPECTED)
    shutil.rmtree(checkpoints / "step-00000007")
    assert loaded is not None
    assert loaded.step == 2
    assert faults == ["manifest.json belongs to step 1"]


def test_a_checkpoint_that_vanishes_while_it_is_read(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader meets the rotation of a run that goes on."""
    real = os.open

    def vanish(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("step-00000002/network.safetensors"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", vanish)
    assert "cannot be opened" in falls_back(checkpoints)
