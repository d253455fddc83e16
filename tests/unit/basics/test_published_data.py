"""MNIST, Fashion-MNIST and CIFAR-10: small files in their formats, damaged ones, and the real sets."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from diffkit.basics.data.published import CIFAR10, MNIST, FashionMNIST, read_idx
from diffkit.data import DataSpec
from diffkit.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {stem: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for stem, n in (("train", 6), ("t10k", 4))}
LABELS = {"train": np.arange(6, dtype=np.uint8), "t10k": np.array([9, 0, 9, 0], dtype=np.uint8)}
BATCHES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[stem])))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(LABELS[stem]))
    return tmp_path


@pytest.fixture
def cifar(tmp_path):
    for i, name in enumerate(BATCHES):
        (tmp_path / name).write_bytes(b"".join(bytes([k]) + bytes([i, k]) * 1536 for k in range(10)))
    return tmp_path


def code(data) -> str:
    with pytest.raises(DataError) as raised:
        data.split("train")
    assert raised.value.fix
    return raised.value.code


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_idx_sets_are_read_gzipped_or_not(mnist, kind):
    data = kind(str(mnist))
    assert data.spec == DataSpec(1, (28, 28), 10, True, 256, kind.class_names)
    train, held_out = data.split("train"), data.split("held-out")
    assert torch.equal(train.x[:, 0], torch.tensor(IMAGES["train"]))
    assert torch.equal(held_out.x[:, 0], torch.tensor(IMAGES["t10k"]))
    assert held_out.cond["label"].tolist() == [9, 0, 9, 0]
    assert held_out.cond["label"].dtype == torch.long
    assert torch.equal(data.to_storage(data.to_model_range(train.x)), train.x)


def test_labels_can_be_hidden(mnist, tmp_path):
    data = MNIST(str(mnist), labels=False)
    assert data.spec.classes is None
    assert data.split("train").cond == {}


def test_default_folders(mnist, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFKIT_DATA", raising=False)
    assert code(MNIST()) == "DK301"
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mnist").symlink_to(mnist)
    monkeypatch.setenv("DIFFKIT_DATA", str(tmp_path / "sets"))
    assert len(MNIST().split("train")) == 6
    monkeypatch.delenv("DIFFKIT_DATA")
    (tmp_path / "data").symlink_to(tmp_path / "sets")
    assert len(MNIST().split("train")) == 6
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(MNIST("~/sets/mnist").split("train")) == 6


def test_missing_files_are_named_with_the_archive_beside(mnist):
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    (mnist / "mnist.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte\.gz") as raised:
        MNIST(str(mnist)).split("train")
    assert "unpack" in raised.value.render()


def test_a_packed_folder_is_told_to_be_unpacked(tmp_path):
    (tmp_path / "mnist.tar.gz").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        MNIST(str(tmp_path / "mnist")).split("train")
    assert "unpack it first" in raised.value.render()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda raw: raw[:-1], "declares"),
        (lambda raw: raw + b"x", "more"),
        (lambda raw: raw[:3], "header"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "starts with"),
        (lambda raw: raw[:3] + b"\1" + raw[4:], "starts with"),
        (lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:], "at most 1073741824"),
    ],
)
def test_damaged_idx_files(tmp_path, damage, why):
    raw = damage(idx(IMAGES["train"]))
    plain, packed = tmp_path / "plain", tmp_path / "packed.gz"
    plain.write_bytes(raw)
    packed.write_bytes(gzip.compress(raw))
    for path in (plain, packed):
        with pytest.raises(DataError, match=why) as raised:
            read_idx(path, 3)
        assert raised.value.code == "DK302"


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: b"no gzip", lambda raw: raw[:30] + b"\0" * 30])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx(IMAGES["train"]))))
    with pytest.raises(DataError, match="damaged") as raised:
        read_idx(path, 3)
    assert raised.value.code == "DK302"


def test_images_and_labels_that_do_not_belong_together(mnist):
    path = mnist / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.arange(5, dtype=np.uint8)))
    assert code(MNIST(str(mnist))) == "DK305"
    path.write_bytes(idx(np.full(6, 10, dtype=np.uint8)))
    assert code(MNIST(str(mnist))) == "DK305"
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((6, 8, 8), np.uint8))))
    assert code(MNIST(str(mnist))) == "DK302"


def test_fingerprint_follows_content_not_place(mnist, tmp_path_factory):
    before = MNIST(str(mnist)).fingerprint()
    other = tmp_path_factory.mktemp("elsewhere") / "moved"
    mnist.rename(other)
    assert MNIST(str(other)).fingerprint() == before
    assert MNIST(str(other), labels=False).fingerprint() != before
    raw = bytearray((other / "train-labels-idx1-ubyte").read_bytes())
    raw[-1] ^= 1
    (other / "train-labels-idx1-ubyte").write_bytes(raw)
    assert MNIST(str(other)).fingerprint() != before


def test_cifar10_layout(cifar):
    """A record is the label, then the red, green and blue plane."""
    raw = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    (cifar / "test_batch.bin").write_bytes(raw)
    data = CIFAR10(str(cifar))
    assert data.spec.shape == (3, 32, 32)
    assert data.spec.class_names[7] == "horse"
    x, cond = data.split("held-out")[0]
    assert cond["label"] == 7
    assert x.flatten(1).unique(dim=1).tolist() == [[1], [2], [3]]
    assert len(data.split("train")) == 50
    assert CIFAR10(str(cifar), labels=False).spec.classes is None
    assert data.fingerprint() == CIFAR10(str(cifar)).fingerprint()


def test_cifar10_in_its_inner_folder(cifar):
    (cifar / "cifar-10-batches-bin").mkdir()
    for name in BATCHES:
        (cifar / name).rename(cifar / "cifar-10-batches-bin" / name)
    assert len(CIFAR10(str(cifar)).split("train")) == 50


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-py"])
def test_the_pickled_cifar10_is_refused_unread(tmp_path, inner):
    """Data never becomes code."""
    (tmp_path / inner).mkdir(exist_ok=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / inner / name).write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match="pickled") as raised:
        CIFAR10(str(tmp_path)).split("train")
    assert raised.value.code == "DK303"
    assert "cifar-10-binary.tar.gz" in raised.value.render()


def test_damaged_cifar10(cifar):
    (cifar / "data_batch_2.bin").write_bytes(b"\0" * 3072)
    assert code(CIFAR10(str(cifar))) == "DK302"
    (cifar / "data_batch_2.bin").write_bytes(b"\x0b" * 3073)
    assert code(CIFAR10(str(cifar))) == "DK305"
    (cifar / "data_batch_2.bin").unlink()
    assert code(CIFAR10(str(cifar))) == "DK301"
    assert code(CIFAR10(str(cifar / "none"))) == "DK301"


@pytest.mark.data
@pytest.mark.parametrize(
    ("kind", "folder", "counts", "mean", "std"),
    [
        (MNIST, "mnist", (60_000, 10_000), [0.1307], [0.3081]),
        (FashionMNIST, "fashion-mnist", (60_000, 10_000), [0.2860], [0.3530]),
        (CIFAR10, "cifar10", (50_000, 10_000), [0.4914, 0.4822, 0.4465], None),
    ],
)
def test_real_sets_have_their_published_moments(kind, folder, counts, mean, std):
    root = os.environ.get("DIFFKIT_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"DIFFKIT_DATA names no folder that holds {folder}")
    data = kind()
    train, held_out = data.split("train"), data.split("held-out")
    assert (len(train), len(held_out)) == counts
    assert (torch.bincount(held_out.cond["label"]) > 800).all()
    values = train.x.double() / 255
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.tensor(mean, dtype=torch.float64), atol=6e-5, rtol=0)
    if std is not None:
        assert values.std() == pytest.approx(std[0], abs=6e-5)
