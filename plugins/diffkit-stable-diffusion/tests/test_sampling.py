"""Samples of an imported model are those of diffusers: images within 1e-4, latents within 1e-4 of their deviation."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffkit_stable_diffusion.importing import import_model
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from diffkit import Codec, RecipeError, Run, SampleNoise, open_run
from diffkit.cli.main import main
from diffkit.runs.planning import SampleRequest, plan_request
from diffkit.runs.sampling import draw_samples

pytestmark = pytest.mark.xdist_group("stable-diffusion")

STEPS, SCALE, PROMPT, NEGATIVE = 8, 4.0, "the red cat", "cat"
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
PIXELS = (np.random.default_rng(0).random((16, 16, 3)) * 255).astype("uint8")
MASK = np.zeros((16, 16), "uint8")
MASK[4:, 6:] = 255
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FIRST = SD | {"steps_offset": 1}
ZERO = FIRST | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
V = FIRST | {"prediction_type": "v_prediction", "clip_sample": False}


class Undecoded(Codec):
    """A codec whose decoder returns the latents."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.codec.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        return z


def imported(pipe: Any, folder: Path) -> Path:
    """The directory of a run that is imported from a pipeline."""
    pipe.save_pretrained(folder / "pipeline")
    return import_model(folder / "pipeline", folder / "run").directory.path


@pytest.fixture(scope="module")
def directory(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(pipeline, tmp_path_factory.mktemp("sampling"))


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of diffusers is that of diffkit: at the start, in steps, and in the posterior of the autoencoder."""
    source, step = SampleNoise(0, range(1)), count()
    encode = source.initial((4, 8, 8), stream="encode")

    def posterior(self: Any, generator: Any = None) -> Tensor:
        found: Tensor = self.mean + self.std * encode
        return found

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", posterior)
    folder = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_"
    for kind in ("img2img", "inpaint"):
        monkeypatch.setattr(f"{folder}{kind}.randn_tensor", lambda *_, **__: NOISE.clone())
    for kind in ("euler_ancestral_discrete", "ddpm"):
        steps = f"diffusers.schedulers.scheduling_{kind}.randn_tensor"
        monkeypatch.setattr(steps, lambda *_, **__: source.at_step(next(step))(NOISE))


def theirs(pipe: Any, scheduler: Any, kind: Any = None, **more: Any) -> tuple[Tensor, Tensor]:
    """The latents and the image of diffusers."""
    parts = {**pipe.components, "scheduler": scheduler}
    made = (kind or type(pipe))(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    latents = made(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=SCALE,
        num_inference_steps=STEPS,
        output_type="latent",
        **({"latents": NOISE.clone()} if kind is None else {}),
        **more,
    ).images
    with torch.no_grad():
        return latents, made.vae.decode(latents / made.vae.config.scaling_factor).sample


def ours(directory: Path, *overrides: str, **request: Any) -> tuple[Tensor, Tensor]:
    """The latents and the image of diffkit."""
    run = open_run(directory, device="cpu", overrides=overrides)
    stated = SampleRequest(
        count=1, prompt=PROMPT, negative=NEGATIVE, scale=SCALE, steps=STEPS, latents=NOISE, **request
    )
    assembly = run.trained()
    plan = plan_request(assembly, stated)
    if plan.edit is not None and plan.edit.unknown is not None:
        image = run.draw(stated).x
        object.__setattr__(plan.edit, "paste", lambda x, rows: x)
        return draw_samples(assembly.model, plan, Undecoded(assembly.codec), "cpu").x, image
    return draw_samples(assembly.model, plan, Undecoded(assembly.codec), "cpu").x, run.draw(stated).x


def compare(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 1e-4) -> None:
    (z, x), (z0, x0) = found, wanted
    assert float((z - z0).abs().max() / z0.std()) < tolerance
    assert float((x - x0).abs().max()) < tolerance


OF_DDIM = FIRST | {"set_alpha_to_one": False, "clip_sample": False}
CASES = [
    ("ddim", diffusers.DDIMScheduler, OF_DDIM),
    *(
        pytest.param(*one, marks=pytest.mark.slow)
        for one in (
            ("dpmpp-2m", diffusers.DPMSolverMultistepScheduler, SD),
            ("euler", diffusers.EulerDiscreteScheduler, FIRST),
            ("plms", diffusers.PNDMScheduler, FIRST | {"skip_prk_steps": True}),
            ("unipc", diffusers.UniPCMultistepScheduler, SD),
            ("heun", diffusers.HeunDiscreteScheduler, FIRST),
        )
    ),
]


@pytest.mark.parametrize(("sampler", "kind", "options"), CASES)
def test_text_to_image(directory: Path, pipeline: Any, sampler: str, kind: Any, options: dict[str, Any]) -> None:
    made = ours(directory, "sample.preset=diffusers", f"sample.sampler={sampler}")
    compare(made, theirs(pipeline, kind(**options)))


@pytest.mark.slow
def test_a_rescaled_output_takes_scale_and_negative(directory: Path, pipeline: Any) -> None:
    """The cfg inside of `rescale` is the one that `scale` and `negative` change."""
    made = ours(directory, "sample.guidance=[{name: rescale, of: output, phi: 0.7, inner: {name: cfg, scale: 7.5}}]")
    compare(made, theirs(pipeline, pipeline.scheduler, guidance_rescale=0.7))
    wrapped = ours(directory, guidance={"rescale": {"of": "output", "phi": 0.7, "inner": "cfg"}})
    compare(wrapped, made, 1e-6)


@pytest.mark.slow
def test_euler_ancestral(directory: Path, pipeline: Any) -> None:
    made = ours(directory, sampler="ancestral", grid="linspace")
    compare(made, theirs(pipeline, diffusers.EulerAncestralDiscreteScheduler(**FIRST)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (diffusers.DDPMScheduler, {"timestep_spacing": "linspace"}),
        (diffusers.DDPMScheduler, {"timestep_spacing": "trailing"}),
        (diffusers.EulerAncestralDiscreteScheduler, {}),
        (diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": "leading"}),
        (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "solver_type": "heun"}),
    ],
)
def test_imports(make: Any, tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    pipe = make(scheduler=kind(**FIRST | options))
    compare(ours(imported(pipe, tmp_path)), theirs(pipe, pipe.scheduler))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "grid", "kind", "options"),
    [
        ("dpmpp-2m", "leading", diffusers.DPMSolverMultistepScheduler, FIRST | {"timestep_spacing": "leading"}),
        ("dpmpp-2m", "karras", diffusers.DPMSolverMultistepScheduler, SD | {"use_karras_sigmas": True}),
        ("unipc", "leading", diffusers.UniPCMultistepScheduler, FIRST | {"timestep_spacing": "leading"}),
        ("euler", "leading", diffusers.EulerDiscreteScheduler, FIRST | {"timestep_spacing": "leading"}),
        ("euler", "karras", diffusers.EulerDiscreteScheduler, SD | {"use_karras_sigmas": True}),
    ],
)
def test_other_times(
    directory: Path, pipeline: Any, sampler: str, grid: str, kind: Any, options: dict[str, Any]
) -> None:
    made = ours(directory, "sample.preset=diffusers", f"sample.sampler={sampler}", f"sample.grid={grid}")
    compare(made, theirs(pipeline, kind(**options)))


@pytest.mark.slow
def test_a_velocity_and_zero_terminal_snr(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM to 1e-4; in 20 steps Euler and DPM-Solver++ to 1e-3, as diffusers starts them at alpha_bar = 2^-24."""
    pipe = make(scheduler=diffusers.DDIMScheduler(**V))
    compare(ours(imported(pipe, tmp_path / "v")), theirs(pipe, pipe.scheduler))
    pipe = make(scheduler=diffusers.DDIMScheduler(**ZERO, clip_sample=False))
    directory = imported(pipe, tmp_path / "zero")
    compare(ours(directory), theirs(pipe, pipe.scheduler))
    trailing = ("sample.preset=diffusers", "sample.grid=trailing")
    monkeypatch.setitem(globals(), "STEPS", 20)
    for sampler, kind in (
        ("euler", diffusers.EulerDiscreteScheduler),
        ("dpmpp-2m", diffusers.DPMSolverMultistepScheduler),
    ):
        made = ours(directory, *trailing, f"sample.sampler={sampler}")
        compare(made, theirs(pipe, kind(**ZERO)), 1e-3)
    compare(
        ours(directory, sampler="euler", grid="trailing"), theirs(pipe, diffusers.EulerDiscreteScheduler(**ZERO)), 1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True, "timestep_spacing": "linspace"}])
def test_an_import_of_euler_with_zero_terminal_snr(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(globals(), "STEPS", 20)
    pipe = make(scheduler=diffusers.EulerDiscreteScheduler(**ZERO | options))
    directory = imported(pipe, tmp_path)
    compare(ours(directory), theirs(pipe, pipe.scheduler), 1e-3)
    plain = ("sample.preset=null", "sample.sampler=euler", "sample.grid=trailing")
    with pytest.raises(RecipeError, match=r"or use sample\.sampler\.chart: flow"):
        ours(directory, *plain)
    assert ours(directory, *plain, "sample.sampler.chart=flow")[0].isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("ddim", "DDIMScheduler"), pytest.param("dpmpp-2m", "DPMSolverMultistepScheduler", marks=pytest.mark.slow)],
)
def test_image_to_image(directory: Path, pipeline: Any, sampler: str, kind: str) -> None:
    options = OF_DDIM if sampler == "ddim" else SD
    picture = Image.fromarray(PIXELS)
    made = ours(directory, "sample.preset=diffusers", f"sample.sampler={sampler}", image=picture, strength=0.6)
    scheduler = getattr(diffusers, kind)(**options)
    compare(made, theirs(pipeline, scheduler, diffusers.StableDiffusionImg2ImgPipeline, image=picture, strength=0.6))


@pytest.mark.parametrize(
    ("channels", "strength"),
    [(4, 1.0), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((4, 0.6), (9, 1.0), (9, 0.6)))],
)
def test_inpainting(make: Any, tmp_path: Path, channels: int, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of the mask the image is that of diffusers; outside it is the picture.

    The masked picture that 9 channels receive is the mean of the posterior here, and a draw of it in diffusers.
    """
    if channels == 9:
        drawn, left = DiagonalGaussianDistribution.sample, iter([False] if strength == 1.0 else [True, False])
        monkeypatch.setattr(
            DiagonalGaussianDistribution,
            "sample",
            lambda self, generator=None: drawn(self) if next(left) else self.mean,
        )
    pipe = make(channels=channels)
    directory = imported(pipe, tmp_path)
    picture, mask = Image.fromarray(PIXELS), Image.fromarray(MASK)
    kind = diffusers.StableDiffusionInpaintPipeline
    more = {"image": picture, "mask_image": mask, "strength": strength, "height": 16, "width": 16}
    z0, x0 = theirs(pipe, pipe.scheduler, kind, **more)
    z, x = ours(directory, image=picture, mask=mask, strength=strength)
    assert float((z - z0).abs().max() / z0.std()) < 1e-4
    inside = torch.from_numpy(MASK) > 0
    assert float((x - x0)[..., inside].abs().max()) < 1e-4
    kept = torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 127.5 - 1.0
    assert torch.equal(x[0][:, ~inside], kept[:, ~inside])


def test_through_the_command_line(directory: Path, pipeline: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", latents=NOISE.numpy())
    words = ["sample", str(directory), "--prompt", PROMPT, "--negative", NEGATIVE, "--scale", str(SCALE)]
    words += ["--steps", str(STEPS), "--latents", str(tmp_path / "noise.npz"), "--size", "16x16"]
    words += ["--set", "sample.preset=diffusers", "--out", str(tmp_path / "drawn.npz"), "-q"]
    assert main([*words, "--sampler", "dpmpp-2m"]) == 0
    x = theirs(pipeline, diffusers.DPMSolverMultistepScheduler(**SD))[1]
    wanted = ((x + 1.0) * 127.5).round().clamp(0, 255)
    assert float((torch.from_numpy(np.load(tmp_path / "drawn.npz")["x"]).float() - wanted).abs().max()) <= 1.0


def test_there_are_as_many_images_as_texts(directory: Path, tmp_path: Path) -> None:
    run: Run = open_run(directory, device="cpu")
    both = run.sample(prompt=["cat", "the red cat"], steps=2)
    assert len(both) == 2
    torch.testing.assert_close(both[:1], run.sample(prompt="cat", steps=2), rtol=0, atol=1e-5)
    assert len(run.sample(1, prompt=["cat", "the red cat"], steps=2)) == 1
    (tmp_path / "texts.txt").write_text("cat\nthe red cat\na cat\n")
    words = ["sample", str(directory), "--condition", f"text=@{tmp_path / 'texts.txt'}", "--steps", "2", "-q"]
    assert main([*words, "--out", str(tmp_path / "drawn.npz")]) == 0
    assert len(np.load(tmp_path / "drawn.npz")["x"]) == 3


def test_a_size_that_the_parts_do_not_take(directory: Path) -> None:
    run: Run = open_run(directory, device="cpu")
    assert run.sample(1, prompt=PROMPT, size=(32, 16), steps=2).shape == (1, 3, 32, 16)
    with pytest.raises(Exception, match="do not take the size 30x17") as caught:
        run.sample(1, prompt=PROMPT, size=(30, 17))
    assert "30x16 or 30x18" in str(getattr(caught.value, "fix", ""))
