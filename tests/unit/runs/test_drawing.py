"""Drawing samples into files: which request continues an interrupted one, and which samples are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffkit import Assembly, Codec, Recipe, assemble, build, load_recipe
from diffkit.errors import DataError
from diffkit.runs.planning import SampleRequest, plan_request
from diffkit.runs.sample_files import SharedDraw, shared_draw
from diffkit.runs.sampling import draw_samples

RECIPE = """
name: drawing
data: {name: digits, labels: true, condition_dropout: 0.1}
schedule: {name: linear, steps: 50}
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1, 1], attention: []}
train: {steps: 1}
sample: {sampler: ddim, steps: 3, count: 4, batch_size: 2}
"""


@pytest.fixture(scope="module")
def assembly() -> Assembly:
    return assemble(load_recipe(RECIPE))


def drawing(assembly: Assembly, folder: Path, **request: Any) -> SharedDraw:
    recipe: Recipe = assembly.recipe
    return shared_draw(folder / "a.npz", plan_request(assembly, SampleRequest(**request)), recipe, "ema 1")


@pytest.mark.parametrize("sampler", ["plms", "cfg-pp", "ddim", {"name": "ancestral", "variance": "large"}])
def test_the_same_request_continues_in_the_same_folder(assembly: Assembly, tmp_path: Path, sampler: Any) -> None:
    name = sampler if isinstance(sampler, str) else sampler["name"]
    options = {} if isinstance(sampler, str) else {"variance": "large"}
    first, second = (drawing(assembly, tmp_path, sampler=build("sampler", name, **options)) for _ in range(2))
    assert first.folder == second.folder


def test_another_request_begins_in_another_folder(assembly: Assembly, tmp_path: Path) -> None:
    noise = torch.zeros(4, 1, 8, 16)
    requests: list[dict[str, Any]] = [
        {},
        {"size": (8, 16)},
        {"size": (16, 8)},
        {"sampler": "plms"},
        {"sampler": {"name": "ddim", "eta": 0.5}},
        {"guidance": {"cfg": 3.0}},
        {"guidance": {"cfg": 4.0}},
        {"size": (8, 16), "latents": noise},
        {"size": (16, 8), "latents": noise.transpose(2, 3)},
        {"labels": [1]},
    ]
    folders = [drawing(assembly, tmp_path, **one).folder for one in requests]
    assert len(set(folders)) == len(folders)


class Diverging(nn.Module):
    """A network whose output for the last sample is not a number."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == len(x) - 1, float("nan"), 0.0 * x)


def test_samples_that_are_not_finite_are_refused_and_not_kept(assembly: Assembly, tmp_path: Path) -> None:
    model: Any = replace(assembly.model, network=Diverging())
    shared = drawing(assembly, tmp_path)
    with pytest.raises(DataError, match="1 of 2 samples hold NaN") as caught, shared.draw(model, assembly.codec, "cpu"):
        pytest.fail("they were drawn")
    assert caught.value.code == "DK330"
    assert [one.name for one in shared.folder.glob("*.json")] == []


class Elsewhere(Codec):
    """A codec that notes whether its codes lie on the device of the drawing, and whether a gradient would be kept."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        self.seen.append((z.device.type, torch.is_grad_enabled()))
        return torch.zeros(z.shape)


def test_steps_are_decoded_where_the_codec_lies(assembly: Assembly) -> None:
    from diffkit.runs.sampling import _Recorder

    codec, plan = Elsewhere(), plan_request(assembly, SampleRequest(count=1))
    recorder = _Recorder(2)
    draw_samples(assembly.model, plan, codec, "cpu", on_step=recorder)
    codec.seen.clear()
    found = recorder.trajectory(codec, "meta")
    assert found is not None
    assert found.x.device.type == "cpu"
    assert set(codec.seen) == {("meta", False)}
