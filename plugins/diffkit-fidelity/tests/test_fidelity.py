"""Distances against SciPy, the network against torch-fidelity and stored features, the cache, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffkit_fidelity import rows
from diffkit_fidelity.distances import frechet, moments
from diffkit_fidelity.efficientnet import EfficientNetLite0
from diffkit_fidelity.extractor import Extractor, NetworkExtractor, Values, as_pictures
from diffkit_fidelity.inception import Inception, InceptionV3
from diffkit_fidelity.metrics import FID, KID, InceptionScore, PrecisionRecall
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit import DataError, DataSpec, Evaluation
from diffkit.errors import PluginError

pytestmark = pytest.mark.xdist_group("fidelity")

PICTURES = DataSpec(1, (8, 8), bounded=True, bins=256)
GOLDEN = {414: 2.433258, 821: 1.284293, 289: 1.036939, 607: 0.876923, 1889: 0.744311}
"""Some features of `network`, which were those of torch-fidelity 0.4.0 bit for bit."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def evaluation(samples: Tensor, train: Tensor, spec: DataSpec | None = None) -> Evaluation:
    return Evaluation(spec or DataSpec(samples.shape[1]), samples, train, train)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "_kept", type(rows._kept)())


@pytest.mark.parametrize("count", [40, 300, 2500])
def test_the_distance_is_that_of_scipy(count: int) -> None:
    """Fewer rows than columns, more, and more than one block; a small distance, where errors of the root show."""
    width = 48
    mix = normal(width, width, seed=1).double() / 7
    a = normal(count, width, seed=2).double() @ mix + 0.01
    b = normal(count + 60, width, seed=3).double() @ mix
    found = frechet(*(moments(x.split(700), len(x)) for x in (a, b)))
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    if count > width:
        root = np.real(sqrtm(covariances[0] @ covariances[1])).trace()
    else:  # sqrtm is not accurate for singular products: the root of S' is regular, so S'^(1/2) S S'^(1/2) is exact
        half = np.real(sqrtm(covariances[1]))
        root = np.sqrt(np.linalg.eigvalsh(half @ covariances[0] @ half).clip(0)).sum()
    gap = (a.mean(0) - b.mean(0)).square().sum().item()
    want = gap + covariances[0].trace() + covariances[1].trace() - 2 * root
    assert found == pytest.approx(want, rel=1e-6)


def test_rows_in_files_are_those_in_memory() -> None:
    x = normal(2500, 5)
    kept = rows.Rows()
    for block in x.split(900):
        kept.append(block)
    assert torch.equal(torch.cat(list(kept.blocks())), x)
    assert max(len(block) for block in kept.blocks()) == rows.BLOCK
    chosen = torch.tensor([2400, 3, 1023, 1024])
    assert torch.equal(torch.cat(list(kept.blocks(chosen))), x[chosen.sort().values])


def test_blocks_do_not_change_kid_and_precision() -> None:
    x, y = normal(60, 4), normal(50, 4, seed=1) + 0.5
    metrics = (KID(features=Values()), PrecisionRecall(features=Values(), k=2))
    whole = [metric(evaluation(x, y)) for metric in metrics]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK", 7)
        rows._kept.clear()
        for metric, want in zip(metrics, whole, strict=True):
            assert metric(evaluation(x, y)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("metric", [KID, PrecisionRecall])
def test_the_training_examples_that_are_used_are_read_in_blocks(metric: type[KID | PrecisionRecall]) -> None:
    class Most(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.shape[1:] == (3,):
                self.rows = max(self.rows, len(found))
            return found

    x, train = normal(20, 3), normal(6000, 3, seed=1)
    made = metric(features=Values(), limit=4000)
    with Most() as most:
        made.protocol(evaluation(x, train))
        found = made(evaluation(x, train))
    assert found["reference"] == 4000
    assert 0 < most.rows <= rows.BLOCK


def test_copies_of_examples_are_inside_whatever_the_rounding() -> None:
    """Each example exists 4 times, so its third neighbour is a copy: the balls have no radius."""
    train = (normal(50, 2048) + 20).repeat(4, 1)
    metric = PrecisionRecall(features=Values())
    assert metric(evaluation(train[:7], train))["precision"] == 1
    assert metric(evaluation(train[:7] + 1e-3, train))["precision"] == 0


def test_kid_has_no_bias() -> None:
    """Binkowski et al. 2018, sec. 3: the mean over sets of 5 samples of the law of the data is 0."""
    found = [KID(features=Values())(evaluation(normal(5, 3, seed=i), normal(6, 3, seed=1000 + i))) for i in range(100)]
    values = torch.tensor([one["kid"] for one in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 100**0.5
    assert float(values.min()) < 0


@pytest.fixture(scope="module")
def network() -> Inception:
    """The network with weights that a seed gives, of a size that keeps features near 1."""
    net, source = Inception().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.ndim > 1:
                value.normal_(generator=source).mul_((2 / value[0].numel()) ** 0.5)
            elif "running_var" in name or "bn.weight" in name:
                value.uniform_(0.8, 1.2, generator=source)
            elif value.is_floating_point():
                value.normal_(generator=source).mul_(0.05)
    return net


def test_features_are_those_of_torch_fidelity(network: Inception, tmp_path: Path) -> None:
    """Pooling, resize and order of channels; compared with stored numbers if torch-fidelity is not installed."""
    pictures = torch.arange(3 * 30 * 37).reshape(1, 3, 30, 37).mul(37).remainder(256).to(torch.uint8)
    with torch.inference_mode():
        features, scores = network(pictures)
        assert features.shape == (1, 2048)
        assert scores.shape == (1, 1008)
        for at, want in GOLDEN.items():
            assert float(features[0, at]) == pytest.approx(want, rel=1e-3)
        if importlib.util.find_spec("torch_fidelity") is not None:
            torch.save(network.state_dict(), tmp_path / "weights.pth")
            theirs = _theirs()("theirs", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"))(pictures)
            torch.testing.assert_close(features, theirs[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(scores, theirs[1], rtol=1e-4, atol=1e-5)


def _theirs() -> type:
    """The network of torch-fidelity, without its package, which imports torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        found: type = importlib.import_module(
            "torch_fidelity.feature_extractor_inceptionv3"
        ).FeatureExtractorInceptionV3
    return found


@dataclass(frozen=True)
class Counting(Extractor):
    """Means of rows of pictures, which counts the examples that it sees."""

    seen: list[int] = field(default_factory=list)
    described = "means of rows"

    def protocol(self) -> Mapping[str, str]:
        return {"extractor": "counting", "rounding": "uint8"}

    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        return as_pictures(x, spec)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(len(prepared))
        values = prepared[:, 0].float().mean(2)
        return values, values


def test_features_are_extracted_once_and_those_of_training_examples_kept() -> None:
    x, y = (normal(n, 1, 8, 8, seed=n).mul(0.3).clamp(-1, 1) for n in (40, 70))
    one = evaluation(x, y, PICTURES)
    extractor = Counting()
    want = FID(features=extractor)(one)
    PrecisionRecall(features=extractor)(one)
    assert sum(extractor.seen) == 110
    assert max(extractor.seen) == extractor.batch_size
    rows._kept.clear()
    extractor.seen.clear()
    assert FID(features=extractor)(one) == want
    assert sum(extractor.seen) == 40
    (kept,) = rows.cache_folder().iterdir()
    data = bytearray(kept.read_bytes())
    data[5] ^= 1
    kept.write_bytes(bytes(data))
    rows._kept.clear()
    assert FID(features=extractor)(one) == want
    assert sum(extractor.seen) == 40 + 110


def test_a_cache_that_cannot_be_written_warns(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    x = normal(10, 1, 8, 8).mul(0.3).clamp(-1, 1)
    with pytest.warns(UserWarning, match="are not kept"):
        assert FID(features=Counting())(evaluation(x, x, PICTURES))["fid"] == pytest.approx(0.0, abs=1e-6)


class Full(rows.Rows):
    """Rows whose second block fails, as writing it to a full disk does."""

    def blocks(self, chosen: Tensor | None = None) -> Iterator[Tensor]:
        yield next(super().blocks(chosen))
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_no_file() -> None:
    kept = Full()
    kept.append(normal(2 * rows.BLOCK, 3))
    with pytest.warns(UserWarning, match="No space left on device"):
        rows._write(rows.cache_folder() / "x.rows", kept)
    assert list(rows.cache_folder().iterdir()) == []


def test_the_protocol_names_what_a_value_depends_on() -> None:
    x = normal(10, 1, 8, 8).mul(0.3).clamp(-1, 1)
    found = FID().protocol(evaluation(x, x, PICTURES))
    assert found["extractor"] == "efficientnet-lite0"
    assert len(found["extractor weights"]) == 64
    assert "224 x 224" in found["resize"]
    assert "uint8" in found["rounding"]
    assert (found["samples"], FID(limit=4).protocol(evaluation(x, x, PICTURES))["samples"]) == ("10", "4")
    other = FID().protocol(evaluation(x, x.flip(0), PICTURES))
    assert found["reference"].startswith("train, SHA-256 ")
    assert other["reference"] != found["reference"]
    assert PrecisionRecall(k=5).protocol(evaluation(x, x, PICTURES))["k"] == "5"
    assert InceptionScore(splits=2).protocol(evaluation(x, x, PICTURES))["splits"] == "2"


def test_the_protocol_of_inception_score_names_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses all of them, also beyond the limit of the other metrics."""
    monkeypatch.setattr(InceptionScore, "limit", 4)
    one = evaluation(normal(10, 2).softmax(1), normal(10, 2))
    metric = InceptionScore(features=Values(), splits=1)
    assert (metric.protocol(one)["samples"], metric(one)["samples"]) == ("10", 10.0)


class Replaced(NetworkExtractor):
    """A network whose weights are those of a file that was replaced."""

    described = "one weight"
    file = 1.0

    @property
    def weights_hash(self) -> str:
        return str(self.file)

    def protocol(self) -> Mapping[str, str]:
        return {"extractor": "replaced", "extractor weights": self.weights_hash}

    def network(self) -> nn.Module:
        return Twice(self.file)


class Twice(nn.Module):
    """Means of pictures times a weight, twice."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (found := self.weight * x.flatten(1).mean(1, keepdim=True)), found


def test_a_file_of_weights_that_was_replaced_is_loaded_again() -> None:
    extractor, x = Replaced(), torch.full((2, 1, 8, 8), 3.0)
    assert extractor(x)[0].flatten().tolist() == [3.0, 3.0]
    extractor.file = 2.0
    assert extractor(x)[0].flatten().tolist() == [6.0, 6.0]


def test_values_behind_the_first_channels_are_part_of_the_hash() -> None:
    """The mean of 3 channels of 2 values each moves by 1 in the last value alone, so the distance is 1."""
    x = normal(20, 3, 2)
    moved = x + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).view(3, 2)
    spec, metric = DataSpec(3, (2,)), FID(features=Values())
    found = [metric(evaluation(x, train, spec))["fid"] for train in (x, moved)]
    assert found == pytest.approx([0.0, 1.0], abs=1e-5)
    reference = [metric.protocol(evaluation(x, train, spec))["reference"] for train in (x, moved)]
    assert reference[0] != reference[1]


@pytest.mark.parametrize(
    ("channels", "digest"),
    [
        (1, "60a2486e434f6849f7e64add2105fa73f5ac2a68b5434c4c9225e12ade9fcb50"),
        (3, "df3a245046b8a317d7429280ef4118c9f3638c4fb99c7f61a8b115236a4246e4"),
    ],
)
def test_the_hash_of_pictures_is_that_of_earlier_records(channels: int, digest: str) -> None:
    """SHA-256 of the shape and of the grey levels; a grey channel counts once."""
    levels = torch.arange(2 * channels * 20).reshape(2, channels, 4, 5) * 37 % 256
    spec = DataSpec(channels, (4, 5), bounded=True)
    assert rows.digest_of(levels / 127.5 - 1, spec, Counting()) == digest
    shape = f"{(2, channels, 4, 5)}".encode()
    assert hashlib.sha256(shape + levels.to(torch.uint8).numpy().tobytes()).hexdigest() == digest


def test_samples_are_rounded_as_files_are() -> None:
    x = torch.tensor([-1.2, -1.0, 0.0, 0.003, 1.0]).view(1, 1, 1, 5)
    assert as_pictures(x, DataSpec(1, (1, 5), bounded=True))[0, 2, 0].tolist() == [0, 0, 128, 128, 255]


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match="are not pictures") as caught:
        FID()(evaluation(normal(8, 2), normal(8, 2)))
    assert caught.value.code == "DK332"
    bad = torch.zeros(4, 1, 8, 8)
    bad[2, 0, 3] = torch.nan
    with pytest.raises(DataError, match="1 of 4 samples hold NaN"):
        FID()(evaluation(bad, torch.zeros(4, 1, 8, 8), PICTURES))
    for metric in (FID(features=Values()), PrecisionRecall(features=Values())):
        with pytest.raises(DataError, match="1 of 8 samples hold NaN") as caught:
            metric(evaluation(normal(8, 2).index_fill(0, torch.tensor([3]), torch.nan), normal(8, 2)))
        assert caught.value.code == "DK330"
    with pytest.raises(DataError, match="3 samples are too few") as caught:
        PrecisionRecall(features=Values())(evaluation(normal(3, 2), normal(8, 2)))
    assert caught.value.code == "DK331"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match="not installed") as caught:
        EfficientNetLite0().network()
    assert caught.value.code == "DK290"
    assert "diffkit-fidelity[efficientnet]" in str(caught.value.fix)


def test_other_weights_in_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    file.write_bytes(b"other")
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="its SHA-256 is") as caught:
        EfficientNetLite0().network()
    assert "force-reinstall" in str(caught.value.fix)


def test_wrong_files_of_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with pytest.raises(DataError, match="there is no such file"):
        InceptionV3(str(file)).protocol()
    torch.save({"fc.bias": torch.zeros(1008)}, file)
    with pytest.raises(DataError, match=r"a pickle .* is never opened") as caught:
        InceptionV3(str(file)).network()
    assert caught.value.code == "DK333"
    save_file({"fc.bias": torch.zeros(1000), "AuxLogits.fc.bias": torch.zeros(3)}, file)
    with pytest.raises(DataError, match="does not hold the weights") as caught:
        InceptionV3(str(file)).network()
    assert "and " in caught.value.notes[-1]
    with pytest.raises(DataError, match="not the expected file"):
        InceptionV3(str(file), sha256="0" * 64).protocol()
