"""The codec of another run: its scale, what the run stores of it, latents on disk, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_latent.trained import Trained
from torch import Tensor

from diffkit import CheckpointError, CodecRecord, RecipeError, Run, UsageError, build, load_recipe, open_run, run
from diffkit.cli.main import main
from diffkit.data import stack
from diffkit.host import configure, load_file
from diffkit.runs.dry_run import dry_run
from diffkit.runs.results import StageStatus
from diffkit.runs.training import latents_folder

pytestmark = pytest.mark.xdist_group("latent")

PLUGIN = '''
import torch
from torch import Tensor, nn
from dataclasses import replace
from diffkit import Codec, Data, DataSpec, Entry, FilePath, InMemorySplit, Posterior, hookimpl

class Pictures(Data):
    """Pictures in a file of torch, with the fingerprint that every data set has by default."""

    def __init__(self, path: FilePath) -> None:
        self.x = torch.load(path)

    @property
    def spec(self):
        return DataSpec(1, (8, 8), bounded=True)

    def split(self, part):
        return InMemorySplit(self.x[:40] if part == "train" else self.x[40:])

class Halves(nn.Module, Codec):
    """Halve each side by a linear map with a constant std."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, width, 2, 2), nn.ConvTranspose2d(width, 1, 2, 2)

    def posterior(self, x: Tensor) -> Posterior:
        mean = self.down(x) * 2 + 0.5
        return Posterior(mean, torch.full_like(mean, 0.05))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(noise)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)

    def spec(self, data):
        return replace(data, channels=self.down.out_channels, size=tuple(n // 2 for n in data.size), bounded=False)

@hookimpl
def diffkit_components():
    yield Entry("codec", "halves", f"{__name__}:Halves", "Halve each side")
    yield Entry("data", "pictures", f"{__name__}:Pictures", "Pictures in a file of torch")
'''
COMMON = """
data: digits
schedule: linear
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: [], groups: 4}
objective: simple
sample: {sampler: ddim, steps: 2, count: 2}
"""
NOISE = torch.randn(1285, 3, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("plugin") / "halving.py"
    path.write_text(PLUGIN)
    load_file(path)
    yield
    configure()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose codec has weights."""
    path = tmp_path_factory.mktemp("source") / "vae"
    run(f"name: vae\ncodec: {{name: halves, width: 3}}\ntrain: {{steps: 2, batch_size: 4, ema: []}}{COMMON}", path)
    return path


def latent(source: Path, **options: Any) -> str:
    codec = json.dumps({"name": "trained", "run": str(source), **options})
    return f"name: latent\ncodec: {codec}\ntrain: {{steps: 3, batch_size: 4, ema: []}}{COMMON}"


def digits(part: Any = "train") -> Tensor:
    data = build("data", "digits")
    split = data.split(part)
    return data.to_model_range(stack(split, range(len(split)))[0])


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(latent(source), tmp_path_factory.mktemp("latent") / "run")


def codec_of(one: Run) -> Trained:
    found = one.trained().codec
    assert isinstance(found, Trained)
    return found


@pytest.mark.parametrize("scale", ["auto", "per-channel", 0.25])
def test_scaled_codes_have_std_1(source: Path, scale: Any) -> None:
    data = build("data", "digits")
    codec = build("codec", "trained", data=data, run=str(source), scale=scale)
    assert isinstance(codec, Trained)
    line = codec.fit(data)
    with torch.no_grad():
        plain = open_run(source).trained().codec.encode(digits(), NOISE)
        z, held_out = codec.encode(digits(), NOISE), codec.encode(digits("held-out"), NOISE[: len(digits("held-out"))])
        torch.testing.assert_close(codec.decode(z), codec.inner.decode(plain))
    assert "1,285 training examples" in line
    if scale == 0.25:
        torch.testing.assert_close(z, 0.25 * plain)
    elif scale == "auto":
        assert abs(float(z.std()) - 1) < 1e-3
        assert abs(float(held_out.std()) - 1) < 0.05
        torch.testing.assert_close(z / plain, (z / plain)[:1, :1, :1, :1].expand_as(z), rtol=1e-4, atol=1e-4)
    else:
        assert z.std(dim=(0, 2, 3)).sub(1).abs().max() < 5e-3
        assert z.mean(dim=(0, 2, 3)).abs().max() < 5e-3
        assert held_out.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.05


def test_the_run_needs_no_other(
    source: Path, finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything works after the source is gone, and the results are the same."""
    before = finished.sample(2, steps=2)
    shutil.copytree(source, tmp_path / "kept")
    shutil.rmtree(source)
    try:
        alone = open_run(finished.directory.path)
        assert torch.equal(alone.sample(2, steps=2), before)
        place = str(finished.directory.path)
        assert main(["sample", place, "--count", "2", "--out", str(tmp_path / "samples")]) == 0
        assert main(["report", place]) == 0
        assert main(["evaluate", place, "--metric", "frechet", "--count", "8"]) == 0
        assert main(["evaluate", place, "--metric", "bits-per-dim", "--set", "steps=4", "--set", "count=8"]) == 0
        printed = capsys.readouterr()
        assert "density" in printed.out + printed.err
        with pytest.raises(RecipeError, match="is not a run directory"):
            load_recipe(latent(source))
    finally:
        shutil.copytree(tmp_path / "kept", source)


def test_the_run_stores_weights_scale_and_hash(source: Path, finished: Run) -> None:
    step = finished.directory.checkpoints / "step-00000003"
    record = codec_of(finished).record()
    assert json.loads((step / "manifest.json").read_text())["meta"]["codec"] == record.sha256
    assert json.loads((finished.directory.path / "codec.json").read_text())["record"]["sha256"] == record.sha256
    weights = open_run(source).trained().codec
    assert isinstance(weights, torch.nn.Module)
    for name, value in weights.state_dict().items():
        assert torch.equal(codec_of(finished).inner.state_dict()[name], value)
    event = [line for line in (finished.directory.path / "events.jsonl").read_text().splitlines() if '"codec"' in line]
    assert len(event) == 1
    assert "from 1,285 training examples" in event[0]


@pytest.mark.slow
def test_a_resume_with_another_source_names_both_hashes(source: Path, finished: Run, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(finished.directory.path, place)
    run(latent(source), place)
    shutil.copytree(source, tmp_path / "vae")
    text = f"name: vae\ncodec: {{name: halves, width: 3}}\ntrain: {{steps: 4, batch_size: 4, ema: []}}{COMMON}"
    run(text, tmp_path / "vae")
    shutil.move(source, tmp_path / "first")
    shutil.move(tmp_path / "vae", source)
    try:
        with pytest.raises(CheckpointError) as caught:
            run(latent(source), place)
        old, new = codec_of(finished).record().sha256, weights_now(source)
        assert caught.value.notes == (f"sha256: {old} then, {new} now",)
        assert caught.value.code == "DK607"
    finally:
        shutil.rmtree(source)
        shutil.move(tmp_path / "first", source)


def weights_now(source: Path) -> str:
    data = build("data", "digits")
    record = build("codec", "trained", data=data, run=str(source)).record()
    assert record is not None
    return record.sha256


@pytest.mark.parametrize("scale", [0, -0.5])
def test_scales_that_undo_nothing_are_refused(scale: float) -> None:
    """z / 0 is not a picture."""
    with pytest.raises(RecipeError, match=f"scale must be one of auto, per-channel or more than 0, not {scale}"):
        build("codec", "trained", data=build("data", "digits"), run="no/run", scale=scale)


def test_codecs_without_weights_are_refused(tmp_path: Path) -> None:
    run(f"name: plain\ntrain: {{steps: 0, ema: []}}{COMMON}", tmp_path / "plain")
    with pytest.raises(UsageError, match=r"the codec identity of .* has no weights") as caught:
        Trained(build("data", "digits"), str(tmp_path / "plain"))
    assert caught.value.code == "DK041"


@pytest.mark.slow
def test_a_trained_codec_of_a_trained_codec(source: Path, finished: Run, tmp_path: Path) -> None:
    again = run(latent(finished.directory.path, scale=2.0), tmp_path / "again")
    shutil.copytree(finished.directory.path, tmp_path / "kept")
    before = again.sample(2, steps=2)
    assert torch.equal(open_run(tmp_path / "again").sample(2, steps=2), before)
    with torch.no_grad():
        once, twice = codec_of(finished).encode(digits()[:4]), codec_of(again).encode(digits()[:4])
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.slow
def test_a_chain_of_runs_with_tiles_between_needs_no_other_run(tmp_path: Path) -> None:
    """Run b: tiles around the codec of run a, and run c: the codec of run b; then a and b are deleted."""
    codecs: dict[str, dict[str, Any]] = {
        "a": {"name": "kl-vae", "factor": 2, "channels": 3, "width": 8},
        "b": {"name": "tiled", "inner": {"name": "trained", "run": str(tmp_path / "a"), "scale": 2.0}},
        "c": {"name": "trained", "run": str(tmp_path / "b"), "scale": 3.0},
    }
    for name, codec in codecs.items():
        run(f"name: {name}\ncodec: {json.dumps(codec)}\ntrain: {{steps: 0, ema: []}}{COMMON}", tmp_path / name)
    before = open_run(tmp_path / "c").sample(2, steps=2)
    with torch.no_grad():
        mean = open_run(tmp_path / "a").trained().codec.encode(digits()[:2])
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    again = open_run(tmp_path / "c")
    assert torch.equal(again.sample(2, steps=2), before)
    with torch.no_grad():
        torch.testing.assert_close(codec_of(again).encode(digits()[:2]), 6.0 * mean)


def test_codecs_inside_the_codec_of_a_record_are_built_from_it() -> None:
    """The record of run c of the chain above: neither run exists."""
    section = {"name": "diffkit-latent/kl-vae", "factor": 2, "channels": 3, "width": 8}
    first = CodecRecord("", {"codec": section, "inside": None})
    inner = {"name": "diffkit-latent/trained", "run": "no/such/run", "scale": 2.0}
    tiled = {"name": "diffkit-latent/tiled", "inner": inner}
    record = CodecRecord("", {"codec": tiled, "inside": vars(first)})
    codec = build("codec", "trained", data=build("data", "digits"), run="no/other/run", scale=3.0, record=record)
    assert isinstance(codec, Trained)
    assert codec.inner.inner.record() == first
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(x), 6.0 * codec.inner.inner.inner.encode(x))


def test_build_passes_the_data_to_codecs_inside() -> None:
    codec = build("codec", "tiled", inner={"name": "kl-vae", "factor": 2, "width": 8}, data=build("data", "digits"))
    assert codec.encode(torch.zeros(1, 1, 8, 8)).shape == (1, 4, 4, 4)
    with pytest.raises(UsageError, match="`data` must be a number, text, list or mapping, got Digits"):
        build("codec", "affine", data=build("data", "digits"))


def test_a_scale_is_required_before_codes_are_used(source: Path) -> None:
    codec = Trained(build("data", "digits"), str(source))
    with pytest.raises(UsageError, match="not measured yet"):
        codec.encode(digits()[:1])
    with pytest.raises(UsageError, match="not measured yet"):
        codec.decode(torch.zeros(1, 3, 4, 4))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached_run(source: Path, out: Path, *, cache: bool, steps: int = 5, augment: str = "[flip]") -> Run:
    common = COMMON.replace("data: digits", f"data: {{name: digits, condition_dropout: 0.5, augment: {augment}}}")
    codec = json.dumps({"name": "trained", "run": str(source), "cache": cache})
    text = f"name: latent\ncodec: {codec}\ntrain: {{steps: {steps}, batch_size: 6, accumulate: 2, ema: [0.9]}}{common}"
    return run(text, out)


def events(one: Run, name: str) -> list[dict[str, object]]:
    lines = (one.directory.path / "events.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["event"] == name]


def assert_same(a: Run, b: Run) -> None:
    for weights in ("raw", "ema"):
        one, two = (found.trained(weights).network.state_dict() for found in (a, b))
        assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (StageStatus(found.directory).read()["train"].held_out_loss for found in (a, b))
    assert first == second


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_training_from_the_cache_is_equal_bit_for_bit(source: Path, tmp_path: Path) -> None:
    plain = cached_run(source, tmp_path / "plain", cache=False)
    first = cached_run(source, tmp_path / "first", cache=True)
    again = cached_run(source, tmp_path / "again", cache=True)
    assert_same(plain, first)
    assert_same(plain, again)
    assert [events(one, "latents")[0]["encoded"] for one in (first, again)] == [True, False]
    assert not events(plain, "latents")
    assert len(list(latents_folder().iterdir())) == 1
    half = cached_run(source, tmp_path / "half", cache=True, steps=3)
    assert StageStatus(half.directory).read()["train"].step == 3
    assert_same(plain, cached_run(source, tmp_path / "half", cache=True))


@pytest.mark.parametrize("scale", ["auto", "per-channel"])
def test_a_dry_run_measures_the_scale_first(source: Path, tmp_path: Path, scale: str) -> None:
    facts = dry_run(load_recipe(latent(source, scale=scale, cache=True)), tmp_path / "run", device="cpu")
    assert "kept latents" in facts["images per second"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_other_examples_are_encoded_whatever_the_fingerprint_of_the_data(source: Path, tmp_path: Path) -> None:
    for name in "ab":
        torch.save(torch.rand(50, 1, 8, 8) * 2 - 1, tmp_path / name)
    encoded = []
    for number, name in enumerate("abb"):
        codec = json.dumps({"name": "trained", "run": str(source), "cache": True, "scale": 1.0})
        data = json.dumps({"name": "pictures", "path": str(tmp_path / name)})
        text = f"name: x\ncodec: {codec}\ntrain: {{steps: 1, batch_size: 4, ema: []}}{COMMON}"
        made = run(text.replace("data: digits", f"data: {data}"), tmp_path / f"run{number}")
        encoded.append(events(made, "latents")[0]["encoded"])
    assert encoded == [True, True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("damage", ["byte", "file", "manifest"])
def test_damage_is_found_and_encoded_again(source: Path, tmp_path: Path, damage: str) -> None:
    plain = cached_run(source, tmp_path / "plain", cache=True, steps=2)
    (folder,) = latents_folder().iterdir()
    file, manifest = folder / "train.x.npy", folder / "latents.json"
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "file":
        file.unlink()
    else:
        changed = json.loads(manifest.read_text())
        changed["meaning"]["data"] = "other"
        manifest.write_text(json.dumps(changed))
    found = cached_run(source, tmp_path / "found", cache=True, steps=2)
    reasons = {"byte": "train.x.npy is damaged", "file": "train.x.npy", "manifest": "it holds other latents"}
    (event,) = events(found, "latents-failed")
    assert reasons[damage] in str(event["reason"])
    assert_same(plain, found)
    assert [one.name for one in latents_folder().iterdir()] == [folder.name]
    assert events(cached_run(source, tmp_path / "more", cache=True, steps=2), "latents")[0]["encoded"] is False


@pytest.mark.usefixtures("cache")
def test_augmentations_without_end_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gives an example no fixed number of results") as caught:
        cached_run(source, tmp_path / "run", cache=True, augment="[edm]")
    assert caught.value.code == "DK058"
    assert not latents_folder().exists() or not list(latents_folder().iterdir())


@pytest.mark.slow
def test_tiles_around_the_codec_of_another_run(source: Path, tmp_path: Path) -> None:
    """The run needs the other one no longer, and tiles change nothing."""
    codec = f"{{name: tiled, inner: {{name: trained, run: {tmp_path / 'vae'}}}, tile: 2, overlap: 1}}"
    shutil.copytree(source, tmp_path / "vae")
    made = run(f"name: l\ncodec: {codec}\ntrain: {{steps: 1, batch_size: 4, ema: []}}{COMMON}", tmp_path / "run")
    shutil.rmtree(tmp_path / "vae")
    tiled = open_run(made.directory.path, device="cpu").trained("raw").codec
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tiled.decode(z), tiled.inner.decode(z), rtol=0, atol=1e-5)
    x = tiled.decode(z)
    torch.testing.assert_close(tiled.encode(x, z), tiled.inner.encode(x, z), rtol=0, atol=1e-5)
