"""Folders of diffusers to runs: every part computes what diffusers and transformers compute."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffkit_stable_diffusion.importing import import_model
from diffkit_stable_diffusion.pipeline import read_pipeline
from safetensors.torch import load_file, save_file

from diffkit import CheckpointError, RecipeError, UsageError, guide, open_run, sample
from diffkit.cli.main import main
from diffkit.runs.planning import SampleRequest, plan_request
from diffkit.train.precision import recompute_activations

pytestmark = pytest.mark.xdist_group("stable-diffusion")

TEXTS = ["the red cat", ""]
NAMES = ["text", "text_mask", "concat"]
LONG = "a cat and a red cat and the red cat and the cat"


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return import_model(folder, tmp_path_factory.mktemp("runs") / "sd")


def text_of(run: Any, texts: list[str]) -> torch.Tensor:
    found: torch.Tensor = run.trained().conditions.stated({"text": texts}, len(texts))["text"]
    return found


def test_every_part_computes_the_same(run: Any, pipeline: Any) -> None:
    trained = run.trained()
    with torch.no_grad():
        want = pipeline.encode_prompt(TEXTS, "cpu", 1, False)[0]
        text = text_of(run, TEXTS)
        torch.testing.assert_close(text, want, rtol=0, atol=1e-5)
        null = trained.conditions.conditioners["text"].null()
        torch.testing.assert_close(null, want[1], rtol=0, atol=1e-5)
        z, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 981.0])
        theirs = pipeline.unet(z, t, encoder_hidden_states=want).sample
        torch.testing.assert_close(trained.network(z, t, text=text), theirs, rtol=0, atol=1e-5)
        decoded = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
        torch.testing.assert_close(trained.codec.decode(z), decoded, rtol=0, atol=1e-5)
    ours = [float(run.assembly.schedule.level(float(t)).alpha) ** 2 for t in (1, 500, 1000)]
    assert ours == pytest.approx(pipeline.scheduler.alphas_cumprod[[0, 499, 999]].tolist(), rel=1e-5)


@pytest.mark.slow
def test_the_run_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    before = import_model(copied, tmp_path / "run").sample(1, conditions={"text": "cat"}, steps=2)
    shutil.rmtree(copied)
    (tmp_path / "run").rename(tmp_path / "moved")
    after = open_run(tmp_path / "moved", device="cpu").sample(1, conditions={"text": "cat"}, steps=2)
    assert torch.equal(before, after)


@pytest.mark.slow
def test_old_layouts_shards_and_variants(
    run: Any, pipeline: Any, folder: Path, tmp_path: Path, to_old_layout: Any
) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    to_old_layout(old)
    pipeline.unet.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    shutil.rmtree(old / "unet")
    (tmp_path / "sharded").rename(old / "unet")
    assert len(list((old / "unet").glob("*-of-*"))) > 1
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        whole = old / part / f"{name}.safetensors"
        save_file({n: one.half() if one.is_floating_point() else one for n, one in load_file(whole).items()}, whole)
        whole.rename(old / part / f"{name}.fp16.safetensors")
    made = import_model(old, tmp_path / "run")
    torch.testing.assert_close(text_of(made, TEXTS), text_of(run, TEXTS), rtol=0, atol=1e-2)
    ours, theirs = made.trained().network.state_dict(), run.trained().network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_long_texts(folder: Path, run: Any) -> None:
    from diffkit_stable_diffusion.text import ClipText

    from diffkit import ConditionSpec, as_bytes

    with pytest.warns(UserWarning, match="more than 16 tokens.*'.*cat' is lost"):
        cut = text_of(run, [LONG])
    wide = ClipText(ConditionSpec((256,), "text"), str(folder), chunks=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = wide(as_bytes([LONG, "cat"], 256))
    assert value.shape == (2, 48, 32)
    torch.testing.assert_close(value[0, :16], cut[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(value[1, 16:32], wide.null()[:16], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "wanted"), [("0.8.1", 64), ("0.9.0", 8), ("1.2.0.dev0", 8), ("unknown", 8)])
def test_the_size_of_old_models(folder: Path, tmp_path: Path, version: str, wanted: int) -> None:
    """diffusers reads a size below 64 as 64 in files of versions before 0.9; it does not read files of no version."""
    copied = shutil.copytree(folder, tmp_path / "copied")
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": version}))
    assert read_pipeline(copied).size == (wanted, wanted)
    if version != "unknown":
        theirs = diffusers.DiffusionPipeline.from_pretrained(copied)
        assert theirs.unet.config.sample_size == wanted


@pytest.mark.slow
def test_a_tokenizer_that_states_fewer_tokens_than_the_encoder_takes(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    path = copied / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 9}))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        copied, safety_checker=None, requires_safety_checker=False
    )
    with torch.no_grad():
        want = theirs.encode_prompt("cat", "cpu", 1, False)[0]
    assert want.shape == (1, 9, 32)
    made = import_model(copied, tmp_path / "run")
    for run in (made, open_run(made.directory.path, device="cpu")):
        torch.testing.assert_close(text_of(run, ["cat"]), want, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "prediction", "schedule"),
    [
        ({"prediction_type": "v_prediction"}, "v", "scaled-linear"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "v", "zero-snr"),
        ({"beta_schedule": "linear", "prediction_type": "sample"}, "x0", "linear"),
    ],
)
def test_levels_and_predictions(
    folder: Path, tmp_path: Path, scheduler: Any, options: dict[str, Any], prediction: str, schedule: str
) -> None:
    theirs = scheduler(diffusers.DDIMScheduler, **options)
    copied = shutil.copytree(folder, tmp_path / "copied")
    theirs.save_pretrained(copied / "scheduler")
    made = import_model(copied, tmp_path / "run")
    assert (made.recipe.parameterization.name, made.recipe.schedule.name) == (prediction, schedule)
    for step in (1, 500, 1000):
        level = made.assembly.schedule.level(float(step))
        assert float(level.alpha) ** 2 == pytest.approx(float(theirs.alphas_cumprod[step - 1]), abs=1e-6)


@pytest.mark.slow
def test_inpainting_with_nine_channels(make: Any, tmp_path: Path) -> None:
    theirs = make(channels=9)
    theirs.save_pretrained(tmp_path / "nine")
    made = import_model(tmp_path / "nine", tmp_path / "run")
    picture = torch.randint(256, (4, 16, 16), dtype=torch.uint8)
    picture[3] = 0
    picture[3, 4:12, 4:12] = 255
    trained = made.trained()
    cond = trained.conditions.stated({"text": ["cat"], "inpainting": picture}, 1)
    mask = (picture[3:].float() / 255)[None]
    masked = (picture[:3].float() / 127.5 - 1) * (mask < 0.5)
    with torch.no_grad():
        latents = theirs.vae.encode(masked).latent_dist.mean * theirs.vae.config.scaling_factor
        beside = torch.cat([torch.nn.functional.interpolate(mask, (8, 8)), latents], 1)
        torch.testing.assert_close(cond["concat"], beside, rtol=0, atol=1e-5)
        z, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
        want = theirs.unet(torch.cat([z, beside], 1), t, encoder_hidden_states=cond["text"]).sample
        torch.testing.assert_close(trained.network(z, t, **cond), want, rtol=0, atol=1e-5)
    assert made.sample(1, conditions={"text": "cat", "inpainting": picture}, steps=2).shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, change: Any, kind: type[Exception] = UsageError) -> None:
        copied = shutil.copytree(folder, tmp_path / f"case{len(list(tmp_path.iterdir()))}")
        change(copied)
        with pytest.raises(kind, match=match):
            import_model(copied, tmp_path / "never")
        assert not (tmp_path / "never").exists()

    def edit(path: str, **changes: Any) -> Any:
        def change(root: Path) -> None:
            found = json.loads((root / path).read_text())
            (root / path).write_text(json.dumps(found | changes))

        return change

    def weights(path: str, change: Any) -> Any:
        def changed(root: Path) -> None:
            found = load_file(root / path)
            change(found)
            save_file(found, root / path)

        return changed

    unet, text = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    index = "model_index.json"
    refused("StableDiffusionXLPipeline, which is not supported", edit(index, _class_name="StableDiffusionXLPipeline"))
    refused("text_encoder is a T5EncoderModel", edit(index, text_encoder=["transformers", "T5EncoderModel"]))
    refused("sample_size is 'x', not a whole number", edit("unet/config.json", sample_size="x"))
    refused("sample_size is '\\[8\\]', not a whole", edit("unet/config.json", sample_size=[8]))
    refused("in_channels is 'None'", edit("unet/config.json", in_channels=None))
    refused("block_out_channels is '4', not a list", edit("vae/config.json", block_out_channels=4))
    refused("the recipe: scaling_factor is None", edit("vae/config.json", scaling_factor=None), RecipeError)
    refused("the recipe: scaling_factor is 0", edit("vae/config.json", scaling_factor=0), RecipeError)
    refused("CLIPTextModel does not accept.*nope", edit("text_encoder/config.json", hidden_act="nope"), RecipeError)
    refused("config.*not a multiple", edit("text_encoder/config.json", num_attention_heads=5), RecipeError)
    refused("addition_embed_type", edit("unet/config.json", addition_embed_type="text_time"))
    refused("model.bin is a pickle", lambda root: (root / unet).rename((root / unet).with_suffix(".bin")))
    refused(
        "pytorch_model.bin is a pickle",
        lambda root: (root / text).rename(root / "text_encoder" / "pytorch_model.bin"),
    )
    refused("holds no tokenizer.json, or vocab.json", lambda root: shutil.move(root / "tokenizer", root / "words"))
    refused("do not fit", weights(unet, lambda found: found.update(more=torch.zeros(1))), CheckpointError)
    refused("do not fit", weights(text, lambda found: found.popitem()), CheckpointError)
    refused(
        "do not fit",
        weights(unet, lambda found: found.update({"conv_in.bias": torch.zeros(3)})),
        CheckpointError,
    )
    refused("trained_betas", edit("scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]))


@pytest.mark.slow
def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["import", str(folder), str(out), "--set", "sample.steps=2"]) == 0
    assert main(["sample", str(out), "--count", "1", "--prompt", "cat", "--negative", "red", "--scale", "3"]) == 0
    assert main(["import", str(folder), str(out), "--heads", "3", "--steps", "4"]) == 2
    assert "--steps has no effect on the format stable-diffusion" in capsys.readouterr().err
    pickle = tmp_path / "model.ckpt"
    pickle.touch()
    assert main(["import", str(pickle), str(out)]) == 2
    assert "is a pickle, which is not opened" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}, 1e-4),
        ("DDIMScheduler", {"clip_sample": False}, 1e-4),
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 1e-4),
        ("DPMSolverMultistepScheduler", {}, 1e-4),
        ("UniPCMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 1e-4),
        ("EulerDiscreteScheduler", {}, 1e-4),
        ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, 1e-4),
    ],
)
def test_text_to_image_is_that_of_diffusers(
    folder: Path, pipeline: Any, tmp_path: Path, scheduler: Any, kind: str, options: dict[str, Any], tolerance: float
) -> None:
    theirs = scheduler(getattr(diffusers, kind), **options)
    copied = shutil.copytree(folder, tmp_path / "copied")
    theirs.save_pretrained(copied / "scheduler")
    made = import_model(copied, tmp_path / "run", overrides=["sample.steps=8"])
    z = torch.randn(1, 4, 8, 8)
    parts = {**pipeline.components, "scheduler": theirs}  # the constructor changes options of the scheduler
    pipe = type(pipeline)(**parts, requires_safety_checker=False)
    want = pipe("a red cat", negative_prompt="the", num_inference_steps=8, latents=z, output_type="pt").images
    request = SampleRequest(count=1, conditions={"text": "a red cat"}, guidance={"cfg": {"negative": {"text": "the"}}})
    trained = made.trained()
    plan = plan_request(trained, request)
    cond = trained.conditions.stated({"text": "a red cat"}, 1)
    denoise = partial(guide(trained.model, plan.guidance), **cond)
    with torch.no_grad():
        x = sample(denoise, plan.sampler, plan.levels, plan.start(z))
        image = trained.codec.decode(x.float()) / 2 + 0.5
    torch.testing.assert_close(image.clamp(0, 1), want, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_preset_of_another_sampler(run: Any, pipeline: Any, scheduler: Any) -> None:
    """The run starts at unit scale, Euler at that of the first level."""
    opened = open_run(run.directory.path, device="cpu", overrides=["sample.preset=diffusers", "sample.sampler=euler"])
    z = torch.randn(1, 4, 8, 8)
    before, pipeline.scheduler = pipeline.scheduler, scheduler(diffusers.EulerDiscreteScheduler, steps_offset=1)
    try:
        want = pipeline(TEXTS[0], num_inference_steps=5, latents=z, output_type="pt").images
    finally:
        pipeline.scheduler = before
    ours = opened.sample(1, prompt=TEXTS[0], latents=z, steps=5)
    torch.testing.assert_close(ours.clamp(-1, 1) / 2 + 0.5, want, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_half_precision_is_nearer_to_float32_than_that_of_diffusers(run: Any, folder: Path) -> None:
    """Theirs keeps the latents, the text and the autoencoder in float16 too."""
    opened = open_run(run.directory.path, device="cpu", overrides=["sample.precision=float16"])
    torch.manual_seed(0)
    z, options = torch.randn(1, 4, 8, 8), {"num_inference_steps": 4, "output_type": "pt"}
    whole = run.sample(1, prompt=TEXTS[0], steps=4, latents=z).clamp(-1, 1)
    ours = opened.sample(1, prompt=TEXTS[0], steps=4, latents=z)
    assert opened.trained().network.model.conv_in.weight.dtype == torch.float16
    assert ours.dtype == torch.float32
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    theirs = pipeline(TEXTS[0], latents=z.half(), **options).images.float() * 2 - 1
    errors = [(one.clamp(-1, 1) - whole).abs() for one in (ours, theirs)]
    assert 0.0 < float(errors[0].mean()) < float(errors[1].mean())
    assert float(errors[0].max()) < 1.1 * float(errors[1].max())


@pytest.mark.slow
def test_parts_take_turns_on_the_device(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of one part at a time lie on the device, and the samples are the same to the bit."""
    want = run.sample(1, prompt=TEXTS[0], steps=2)
    opened = open_run(run.directory.path, device="cpu", overrides=["sample.offload=true"])
    opened.device = torch.device("cpu", 0)
    present: set[str] = set()
    most, order, move = 0, [], torch.nn.Module.to

    def moved(part: torch.nn.Module, where: torch.device) -> torch.nn.Module:
        nonlocal most
        order.append(type(part).__name__)
        (present.add if where.index == 0 else present.discard)(order[-1])
        most = max(most, len(present))
        return move(part, where)

    assembly = opened.trained()
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    assert torch.equal(opened.sample(1, prompt=TEXTS[0], steps=2), want)
    assert most == 1
    assert order == ["ClipText", "ClipText", "TextUNet", "TextUNet", "DiffusersVAE"]
    assert list(inspect.signature(assembly.network.forward).parameters) == ["x", "c_noise", "label", *NAMES]


@pytest.mark.slow
def test_checkpointing_of_activations_changes_no_gradient(run: Any) -> None:
    network = copy.deepcopy(run.trained().network).train().requires_grad_(True)
    again = copy.deepcopy(network)
    recompute_activations(again)
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 16, 32)
    for one in (network, again):
        one(z, t, text=text).square().sum().backward()
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
