"""N steps are k steps, a kill, and N - k more, bit for bit: for every recipe that is installed, scaled down."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from diffkit.host import registry

from .conftest import Server, fault, steps, trained

RECIPES = {name: path for name, path in registry().recipes().items() if ", run: " not in path.read_text("utf-8")}
"""Those that need no other run; tests of their packages train the others."""
STEP, STEPS = "train.engine:Engine.advance", 6
SMALL = {
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.accumulate": 2,
    "train.lr_schedule.warmup": 3,
    "train.ema": "[0.9, {name: slow, power: 6.94}]",
    "train.log_every": 4,
    "train.checkpoint_every": 3,
    "train.validate_every": 5,
}
NETWORKS: dict[str, Mapping[str, Any]] = {
    "unet": {"network.channels": 8, "network.multipliers": [1, 1, 1], "network.blocks": 1},
    "mlp": {"network.width": 8, "network.depth": 1},
    "diffusers": {"network.config.block_out_channels": [8, 16], "network.config.layers_per_block": 1},
}
DATA: dict[str, Mapping[str, Any]] = {
    "images": {"data.path": "pictures", "data.size": 32, "data.held_out": 4, "data.resident": "never"},
    "digits": {"data.held_out": 8},
    "mixture": {"data.count": 32, "data.held_out": 8},
    "arrays": {"data.path": "clothes.npz", "data.held_out": 4},
}
CODECS: dict[str, Mapping[str, Any]] = {"kl-vae": {"codec.width": 8}}
END = {
    "diffusion": "runs.pipeline:draw_and_save",
    "codec": "runs.pipeline:reconstruct_and_save",
    "classifier": "runs.trained:measure_held_out",
}
"""What a run of each task calls first after its training."""
# So that importance sampling has seen every time often enough to begin.
SOON = {"schedule.steps": 4, "objective.times.history": 1}


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of every published set, in the files in which they are published, and a folder of pictures."""
    root, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir()
        for stem, count in (("train", 20), ("t10k", 8)):
            pixels = draw.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
            header = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
            (root / name / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels)
            labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(i % 10 for i in range(count))
            (root / name / f"{stem}-labels-idx1-ubyte").write_bytes(labels)
    (root / "cifar10").mkdir()
    for batch in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        rows = draw.integers(0, 256, (4, 3073), np.uint8)
        rows[:, 0] %= 10
        (root / "cifar10" / f"{batch}.bin").write_bytes(rows.tobytes())
    (root / "pictures").mkdir()
    np.savez(root / "clothes.npz", images=draw.integers(0, 256, (20, 16, 16, 3), np.uint8))
    for number in range(20):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "pictures" / f"{number}.png")
    return root


def sections(path: Path) -> dict[str, Any]:
    """A recipe as it is written, with components as mappings; read here without torch or any plugin."""
    found = yaml.safe_load(path.read_text("utf-8"))
    return {
        name: {"name": value} if name in ("data", "codec", "network", "objective") and isinstance(value, str) else value
        for name, value in found.items()
    }


def scaled_down(name: str) -> list[str]:
    """`--set` options that make a recipe train for a moment."""
    recipe = sections(RECIPES[name])
    times = recipe.get("objective", {}).get("times")
    changes = SMALL | DATA.get(recipe["data"]["name"], {})
    for section, small in (("network", NETWORKS), ("codec", CODECS)):
        changes |= small.get(recipe[section]["name"], {}) if section in recipe else {}
    changes |= SOON if isinstance(times, dict) and times["name"] == "importance" else {}
    return [option for path, value in changes.items() for option in ("--set", f"{path}={value}")]


def distinct() -> list[str]:
    """One recipe of each kind of training: others differ from it in how they sample, or in what is scaled down."""
    found: dict[str, str] = {}
    scaled = ("path", *(option.split(".")[1] for small in NETWORKS.values() for option in small))
    for name, path in sorted(RECIPES.items()):
        kept = {k: v for k, v in sections(path).items() if k not in ("name", "train", "sample", "evaluate")}
        for section in {"data", "network"} & kept.keys():
            kept[section] = {k: v for k, v in kept[section].items() if k not in scaled}
        found.setdefault(json.dumps(kept, sort_keys=True), name)
    return list(found.values())


def train(diffkit: Server, sets: Path, name: str, out: Path, *faults: dict[str, Any]) -> None:
    """Train until something kills the process, at the latest when its training is done."""
    command = ("run", name, *scaled_down(name), "--out", out, "-q", "--device", "cpu")
    last = fault(END[sections(RECIPES[name]).get("task", "diffusion")], 1, "kill")
    ended = diffkit(*command, cwd=sets, env={"DIFFKIT_DATA": str(sets)}, faults=[*faults, last])
    assert ended.code == -9, ended.err


QUICK = ("digits", "digits-min-snr", "digits-vdm")
"""A plain recipe, one of another package, and one that trains its schedule: the others are resumed nightly."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in distinct()]
)
def test_every_kind_of_recipe_resumes_bit_for_bit(diffkit: Server, sets: Path, tmp_path: Path, name: str) -> None:
    """Pains 6: network, averages, optimizer, times and metrics; data from memory and from two workers.

    What a kill in some step would leave is put aside as the run passes that step, and resumed afterwards.
    """
    k = random.Random(name).randrange(1, STEPS)
    train(diffkit, sets, name, tmp_path / "whole", fault(STEP, k + 1, f"copy {tmp_path}/whole {tmp_path}/killed"))
    assert steps(tmp_path / "killed") == [3] * (k >= 3)
    train(diffkit, sets, name, tmp_path / "killed")
    assert trained(tmp_path / "whole")["step"] == STEPS
    assert trained(tmp_path / "killed") == trained(tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(diffkit: Server, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What an uninterrupted training of a recipe leaves."""
    folder = tmp_path_factory.mktemp("whole")

    def find(name: str) -> Path:
        if not (folder / name).exists():
            train(diffkit, sets, name, folder / name)
        return folder / name

    return find


@pytest.mark.slow
@pytest.mark.parametrize("k", range(STEPS))
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_resumes_from_every_step(
    diffkit: Server, sets: Path, tmp_path: Path, whole: Callable[[str], Path], name: str, k: int
) -> None:
    train(diffkit, sets, name, tmp_path / "killed", fault(STEP, k + 1, "kill"))
    train(diffkit, sets, name, tmp_path / "killed")
    assert trained(tmp_path / "killed") == trained(whole(name))
