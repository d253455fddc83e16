"""LoRA: read and merged as diffusers applies it, trained on a run, exported and loaded by diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffkit_stable_diffusion.importing import import_model
from diffkit_stable_diffusion.lora import export_lora
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit import CheckpointError, Recipe, RecipeError, UsageError, load_recipe, open_run, run
from diffkit.cli.main import main
from diffkit.errors import ResourceError

pytestmark = pytest.mark.slow
TEXT = "a red cat"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SMALL = {
    "data.size": 16,
    "data.held_out": 2,
    "network.rank": 2,
    "network.alpha": 4.0,
    "train.steps": 3,
    "train.batch_size": 2,
    "train.accumulate": 1,
    "train.optimizer": "{name: adam, lr: 0.01}",
    "sample.steps": 2,
    "sample.count": 2,
    "sample.conditions": "{text: cat}",
}


def recipe(base: Path, pictures: Path) -> Recipe:
    """The packaged recipe, on a small base and few pictures."""
    runs = {f"{part}.run": base for part in ("network", "codec", "conditions.text")}
    changes = {**SMALL, **runs, "data.path": pictures}
    return load_recipe("lora-stable-diffusion", [f"{key}={value}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return import_model(folder, tmp_path_factory.mktemp("runs") / "sd")


def adapters(pipeline: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same updates with the names of diffusers and of kohya: attention, a convolution, and the text encoder."""
    torch.manual_seed(1)
    unet = {n: m for n, m in pipeline.unet.named_modules() if n.endswith(ATTENTION) or n.endswith("resnets.0.conv1")}
    text = {n: m for n, m in pipeline.text_encoder.named_modules() if n.endswith(("q_proj", "v_proj"))}
    theirs: dict[str, Tensor] = {}
    kohya: dict[str, Tensor] = {}
    for rank, (part, begin, layers) in ((2, ("unet", "lora_unet_", unet)), (3, ("text_encoder", "lora_te_", text))):
        for name, layer in layers.items():
            down = 0.3 * torch.randn(rank, *layer.weight.shape[1:])
            up = 0.3 * torch.randn(layer.weight.shape[0], rank, *(1,) * (down.ndim - 2))
            name = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            theirs[f"{part}.{name}.lora_A.weight"], theirs[f"{part}.{name}.lora_B.weight"] = down, up
            there = begin + name.replace(".", "_")
            kohya |= {f"{there}.lora_down.weight": down, f"{there}.lora_up.weight": up * 4 / rank}
            kohya[f"{there}.alpha"] = torch.tensor(rank * rank / 4)
    return theirs, kohya


def test_merged_is_what_diffusers_computes(base: Any, make: Any, tmp_path: Path) -> None:
    pipeline = make()
    theirs, kohya = adapters(pipeline)
    save_file(theirs, tmp_path / "theirs.safetensors")
    save_file(kohya, tmp_path / "kohya.safetensors")
    of_two = {name.replace("lora_te_", "lora_te1_"): one for name, one in kohya.items()}
    save_file(of_two, tmp_path / "te1.safetensors")
    pipeline.load_lora_weights(str(tmp_path), weight_name="theirs.safetensors", adapter_name="one")
    pipeline.set_adapters(["one"], 0.6)
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    with torch.no_grad():
        want_text = pipeline.encode_prompt([TEXT], "cpu", 1, False)[0]
        want = pipeline.unet(z, t, encoder_hidden_states=want_text).sample
        plain = base.trained()
        before = plain.conditions.stated({"text": TEXT}, 1)["text"]
        for file in ("theirs", "kohya", "te1"):
            merged = base.trained(adapters=[f"{tmp_path / file}.safetensors:0.6"])
            text = merged.conditions.stated({"text": TEXT}, 1)["text"]
            torch.testing.assert_close(text, want_text, rtol=0, atol=1e-5)
            torch.testing.assert_close(merged.network(z, t, text=text), want, rtol=0, atol=1e-5)
        assert torch.equal(plain.conditions.stated({"text": TEXT}, 1)["text"], before)
    assert float((before - want_text).abs().max()) > 1e-2


def test_half_precision_comes_after_the_merge_and_any_size_is_taken(base: Any, make: Any, tmp_path: Path) -> None:
    """An update below the last place of bfloat16 moves a share of the weights, not none of them."""
    theirs, _ = adapters(make())
    file = tmp_path / "small.safetensors"
    save_file({name: 0.03 * tensor for name, tensor in theirs.items()}, file)
    half = open_run(base.directory.path, device="cpu", overrides=["sample.precision=bfloat16"])
    merged = dict(half.trained(adapters=[str(file)]).network.named_parameters())
    for name, weight in base.trained(adapters=[str(file)]).network.named_parameters():
        assert torch.equal(merged[name], weight.to(torch.bfloat16))
    assert half.sample(1, prompt=TEXT, steps=1, size=(32, 32)).shape == (1, 3, 32, 32)


def test_options_in_the_header_are_applied_as_diffusers_does(base: Any, make: Any, tmp_path: Path) -> None:
    pipeline, fresh = make(), make()
    patterns = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"attn1.to_q": 3, "to_k": 5}}
    unet = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_k", "to_v"], **patterns)
    text = peft.LoraConfig(r=4, lora_alpha=9, target_modules=["q_proj"], use_rslora=True)
    torch.manual_seed(2)
    layers: dict[str, Any] = {}
    for name, options in (("unet", unet), ("text_encoder", text)):
        part = peft.inject_adapter_in_model(options, getattr(pipeline, name))
        for weight in (value for key, value in part.named_parameters() if "lora_B" in key):
            weight.data.normal_(std=0.3)
        state = {key.replace(".default", ""): value for key, value in part.state_dict().items() if "lora_" in key}
        layers |= {f"{name}_lora_layers": state, f"{name}_lora_adapter_metadata": options.to_dict()}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    pipeline.save_lora_weights(tmp_path, **layers)
    fresh.load_lora_weights(str(tmp_path))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    want = fresh(TEXT, latents=z, num_inference_steps=3, guidance_scale=3.0, output_type="pt").images
    drawn = base.sample(1, prompt=TEXT, latents=z, steps=3, scale=3.0, adapters=[str(file)])
    torch.testing.assert_close(drawn.clamp(-1, 1) / 2 + 0.5, want, rtol=0, atol=1e-4)
    save_file(load_file(file), tmp_path / "without.safetensors")
    without = base.sample(
        1, prompt=TEXT, latents=z, steps=3, scale=3.0, adapters=[str(tmp_path / "without.safetensors")]
    )
    assert float((without - drawn).abs().max()) > 1e-3


def test_files_that_do_not_fit_are_refused(base: Any, pipeline: Any, tmp_path: Path) -> None:
    theirs, kohya = adapters(pipeline)
    file = tmp_path / "lora.safetensors"
    name = next(iter(theirs))
    for changed, match in (
        (
            {**theirs, "unet.strange.lora_A.weight": torch.zeros(2, 2)},
            f"{file} does not fit: the model has no layer for unet.strange.lora_A.weight",
        ),
        ({**theirs, "vae.more": torch.zeros(2)}, "vae.more"),
        (
            {one: tensor for one, tensor in theirs.items() if one != name},
            f"{name.replace('lora_A', 'lora_B')} has no other half",
        ),
        ({**kohya, "lora_unet_strange.alpha": torch.tensor(1.0)}, "lora_unet_strange.alpha"),
        ({**theirs, name: torch.zeros(2, 7)}, "does not update"),
        ({}, "has no tensors"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError) as caught:
            base.trained(adapters=[str(file)])
        assert match in "\n".join([caught.value.message, *caught.value.notes])
    file.write_bytes(b"\x80\x04pickle")
    for text, match in (
        (str(file), "cannot be read"),
        (str(tmp_path), "is a folder"),
        (f"{file}:half", "the weight of the adapter .* is half"),
    ):
        with pytest.raises(UsageError, match=match):
            base.trained(adapters=[text])


def test_trained_exported_and_loaded_by_diffusers(base: Any, make: Any, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 100, 50)).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"a red cat {number}")
    where = base.directory.path
    trained = run(recipe(where, tmp_path / "pictures"), tmp_path / "run", device="cpu")
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    stored = load_file(checkpoint / "network.safetensors")
    assert all(".lora_" in name or name == "sha256" for name in stored)
    assert sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) < 200_000
    network = trained.trained().network
    assert any(float(update.up.abs().max()) > 1e-3 for update in network.updates().values())

    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    text = trained.trained().conditions.stated({"text": TEXT}, 1)["text"]
    with torch.no_grad():
        want = network(z, t, text=text)
        pipeline = make()
        file = export_lora(tmp_path / "run", tmp_path / "new" / "out.safetensors")
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        torch.testing.assert_close(pipeline.unet(z, t, encoder_hidden_states=text).sample, want, rtol=0, atol=1e-5)
        assert (
            main(["export-lora", str(tmp_path / "run"), str(tmp_path / "kohya.safetensors"), "--names", "kohya"]) == 0
        )
        for name in ("new/out", "kohya"):
            merged = base.trained(adapters=[str(tmp_path / f"{name}.safetensors")]).network
            torch.testing.assert_close(merged(z, t, text=text), want, rtol=0, atol=1e-5)
    drawn = ["sample", str(where), "--prompt", "cat", "--count", "1", "--steps", "2", "--out", str(tmp_path / "a.png")]
    assert main([*drawn, "--adapter", f"{file}:0.5"]) == 0
    with pytest.raises(UsageError, match="exists already"):
        export_lora(tmp_path / "run", file)
    with pytest.raises(ResourceError, match="cannot write"):
        export_lora(tmp_path / "run", file / "below.safetensors")
    with pytest.raises(UsageError, match="has no low-rank adapter"):
        export_lora(where, tmp_path / "no.safetensors")


def test_a_base_with_another_prediction_is_refused_and_other_levels_are_a_warning(base: Any, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (30 * number, 100, 50)).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text("a red cat")
    runs = {f"{part}.run": base.directory.path for part in ("network", "codec", "conditions.text")}
    changes = [f"{key}={value}" for key, value in {**SMALL, **runs, "data.path": tmp_path / "pictures"}.items()]
    with pytest.raises(RecipeError, match="predicts eps, but parameterization is v; set parameterization: eps"):
        load_recipe("lora-stable-diffusion", [*changes, "parameterization=v"])
    with pytest.warns(UserWarning, match="was trained with the schedule scaled-linear, whose levels are others"):
        load_recipe("lora-stable-diffusion", [*changes, "schedule={name: linear}"])


def test_a_base_that_was_moved(base: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (30 * number, 100, 50)).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text("a red cat")
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(base.directory.path, first)
    made = run(recipe(first, tmp_path / "pictures"), tmp_path / "style", device="cpu")
    before = made.sample(1, seed=3)
    first.rename(second)
    assert main(["sample", str(tmp_path / "style"), "--count", "1", "-q"]) == 2
    said = capsys.readouterr().err
    places = [f"{part}.run" for part in ("network", "codec", "conditions.text")]
    assert all(f"name its present directory: --set {place}=DIR" in said for place in places[1:])
    opened = open_run(tmp_path / "style", device="cpu", overrides=[f"{place}={second}" for place in places])
    assert torch.equal(opened.sample(1, seed=3), before)
    sets = [word for place in places for word in ("--set", f"{place}={second}")]
    assert main(["sample", str(tmp_path / "style"), "--count", "1", "-q", *sets]) == 0
    for wrong in ("train.steps=5", "data.path=x", "network.rank=3", "network=lora"):
        with pytest.raises(UsageError, match="cannot be set: the run is trained"):
            _ = open_run(tmp_path / "style", device="cpu", overrides=[wrong]).recipe
