"""Components of another run: their parts, and how often and how long that run is in memory."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffkit_diffusers.data import ShapeOnly
from diffkit_stable_diffusion import of_run
from diffkit_stable_diffusion.importing import import_model
from diffkit_stable_diffusion.inpainting import Inpainting
from diffkit_stable_diffusion.of_run import RunCodec, RunConditioner, base_of, example_run
from torch import Tensor

from diffkit import Codec, ConditionSpec, assemble, load_recipe
from diffkit.runs.editing import inpainting_condition
from diffkit.train.preprocessing import Kept

CONDITIONS = {
    "text": {"dtype": "text", "shape": [64]},
    "inpainting": {"dtype": "uint8", "shape": [4, 16, 16]},
}
TEXT = {"dtype": "text", "shape": [24]}
PICTURE = ConditionSpec((4, 16, 16), "uint8")


class Elsewhere(Codec):
    """A codec whose codes lie on another device."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).to("meta")

    def decode(self, z: Tensor) -> Tensor:
        return z


def test_a_codec_that_computes_on_another_device() -> None:
    made = Inpainting(PICTURE, ShapeOnly(3, (16, 16)), Elsewhere())
    raw = torch.zeros(2, 4, 16, 16, dtype=torch.uint8)
    assert made(raw).shape == (2, 4, 8, 8)
    assert made(raw).is_meta


def test_a_kept_conditioner_is_of_the_same_kind() -> None:
    kept = Kept(Inpainting(PICTURE, ShapeOnly(3, (16, 16))))
    assert kept.concat
    assert kept.inpaints


@pytest.mark.slow
def test_an_inpainting_model_through_of_run(make: Any, tmp_path: Path) -> None:
    make(channels=9).save_pretrained(tmp_path / "nine")
    run = str(import_model(tmp_path / "nine", tmp_path / "sd").directory.path)
    made = RunConditioner(PICTURE, run, of="inpainting")
    own = base_of(run).assembly.conditions.conditioners["inpainting"]
    raw = torch.randint(256, (1, 4, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(made(raw), own(raw))
    for wrong in (ConditionSpec((4, 8, 8), "uint8"), ConditionSpec((4, 16, 16))):
        with pytest.raises(ValueError, match="has no condition inpainting of dtype"):
            RunConditioner(wrong, run, of="inpainting")
    tree = {
        "name": "style",
        "data": {"name": "shape-only", "channels": 3, "size": [16, 16], "conditions": CONDITIONS},
        "conditions": {name: {"name": "of-run", "run": run, "of": name} for name in CONDITIONS},
        "codec": {"name": "of-run", "run": run},
        "schedule": "scaled-linear",
        "parameterization": "eps",
        "network": {"name": "lora", "run": run},
        "train": {"steps": 1, "ema": []},
    }
    assert inpainting_condition(assemble(load_recipe(tree))) == "inpainting"


@pytest.mark.slow
def test_a_codec_of_a_run_has_posterior_and_stages(tmp_path: Path) -> None:
    run = example_run(tmp_path)
    codec, own = RunCodec(run), base_of(run).assembly.codec
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert codec.posterior(x).std is not None
        torch.testing.assert_close(codec.posterior(x).joined(), own.posterior(x).joined())
        for ours, theirs in (
            (codec.encoder_stages(), own.encoder_stages()),
            (codec.decoder_stages(), own.decoder_stages()),
        ):
            assert len(ours) == len(theirs) > 1


@pytest.mark.slow
def test_components_share_one_reading_until_they_are_used(tmp_path: Path) -> None:
    run = example_run(tmp_path)
    with patch.object(of_run, "open_run", wraps=of_run.open_run) as opened:
        codec, text = RunCodec(run), RunConditioner(ConditionSpec((24,), "text"), run)
    assert opened.call_count == 1
    assert codec.base is text.base is copy.deepcopy(codec).base is base_of(run)
    with torch.no_grad():
        codec.encode(torch.zeros(1, 3, 16, 16))
    assert codec.base is None
    del text
    gc.collect()
    assert not of_run._held


@pytest.mark.slow
def test_a_recipe_reads_its_base_once_to_validate_and_once_to_build(tmp_path: Path) -> None:
    run = example_run(tmp_path)
    tree = {
        "name": "style",
        "data": {"name": "shape-only", "channels": 3, "size": [16, 16], "conditions": {"text": TEXT}},
        "conditions": {"text": {"name": "of-run", "run": run}},
        "codec": {"name": "of-run", "run": run},
        "schedule": "scaled-linear",
        "parameterization": "eps",
        "network": {"name": "lora", "run": run},
        "train": {"steps": 1, "ema": []},
    }
    with patch.object(of_run, "open_run", wraps=of_run.open_run) as opened:
        recipe = load_recipe(tree)
        gc.collect()
        assert opened.call_count == 1
        assemble(recipe)
        assert opened.call_count == 2
