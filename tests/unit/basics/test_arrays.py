"""Arrays: images and vectors in NumPy files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from diffkit.basics.data import files
from diffkit.basics.data.arrays import ArrayRows, Arrays
from diffkit.data import DataSpec, InMemorySplit
from diffkit.errors import DataError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
FLOATS = RNG.standard_normal((30, 2, 6, 5))
LABELS = np.arange(30) % 3


def save(folder, **members):
    for name, member in members.items():
        np.save(folder / f"{name}.npy", member)
    return str(folder)


def gathered(data) -> torch.Tensor:
    """All examples of both parts, as raw bytes sorted, to compare as sets."""
    rows = [data.split(part)[i][0] for part in ("train", "held-out") for i in range(len(data.split(part)))]
    return sorted(row.numpy().tobytes() for row in rows)


def failure(data, part="train") -> DataError:
    with pytest.raises(DataError) as raised:
        data.split(part)
    assert raised.value.fix or raised.value.choices
    return raised.value


@pytest.mark.parametrize("resident", ["always", "never"])
def test_bytes_channels_last(tmp_path, resident):
    data = Arrays(save(tmp_path, images=BYTES, labels=LABELS), labels="labels", resident=resident)
    assert data.spec == DataSpec(3, (6, 5), 3, bounded=True, bins=256)
    assert gathered(data) == sorted(np.ascontiguousarray(x.transpose(2, 0, 1)).tobytes() for x in BYTES)
    assert len(data.split("train")) + len(data.split("held-out")) == 30
    for i in range(len(data.split("train"))):
        x, cond = data.split("train")[i]
        source = next(k for k in range(30) if np.array_equal(BYTES[k].transpose(2, 0, 1), x.numpy()))
        assert cond["label"] == LABELS[source]
        assert cond["label"].dtype == torch.long


@pytest.mark.parametrize("resident", ["always", "never"])
def test_floats_channels_first(tmp_path, resident):
    data = Arrays(save(tmp_path, images=FLOATS), resident=resident)
    assert data.spec == DataSpec(2, (6, 5))
    assert gathered(data) == sorted(x.astype(np.float32).tobytes() for x in FLOATS)
    x = data.split("train")[0][0]
    assert torch.equal(data.to_model_range(x), x)
    assert torch.equal(data.to_storage(x), x)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((30, 7), DataSpec(7)), ((30, 6, 5), DataSpec(1, (6, 5))), ((30, 6, 5, 1), DataSpec(1, (6, 5)))],
)
def test_vectors_and_grey_images(tmp_path, shape, spec):
    np.save(tmp_path / "x.npy", np.zeros(shape))
    data = Arrays(str(tmp_path / "x.npy"))
    assert data.spec == spec
    assert data.split("train")[0][0].shape == spec.shape


def test_npz_and_other_names(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", pictures=BYTES, kinds=LABELS.astype(np.uint8))
    data = Arrays(str(tmp_path / "set.npz"), images="pictures", labels="kinds")
    assert data.spec == DataSpec(3, (6, 5), 3, bounded=True, bins=256)
    assert isinstance(data.split("train"), InMemorySplit)
    assert data.split("train").cond["label"].max() == 2
    missing = failure(Arrays(str(tmp_path / "set.npz")))
    assert missing.code == "DK301"
    assert missing.choices == ["kinds", "pictures"]


def test_layout_is_asked_for_where_the_shape_does_not_tell(tmp_path):
    path = save(tmp_path, images=np.zeros((10, 3, 8, 3), np.uint8))
    assert failure(Arrays(path)).code == "DK308"
    assert Arrays(path, layout="channels-last").spec.shape == (3, 3, 8)
    assert Arrays(path, layout="channels-first").spec.shape == (3, 8, 3)
    deep = save(tmp_path, images=np.zeros((10, 16, 8, 8), np.uint8))
    assert failure(Arrays(deep)).code == "DK308"
    assert Arrays(deep, layout="channels-first").spec.shape == (16, 8, 8)


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((4, 2), np.int64), "DK308"),
        (np.zeros((4, 2), np.complex64), "DK308"),
        (np.zeros(4), "DK308"),
        (np.zeros((4, 0)), "DK308"),
        (np.zeros((0, 4)), "DK304"),
        (np.zeros((1, 4)), "DK304"),
        (np.array([[0.0, 1.0], [0.0, np.nan], [0.0, 0.0]]), "DK307"),
        (np.array([[0.0, 1.0], [0.0, 1e300], [0.0, 0.0]]), "DK307"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_arrays_that_hold_no_usable_examples(tmp_path, array, code):
    error = failure(Arrays(save(tmp_path, images=array)))
    assert error.code == code
    if code == "DK307":
        assert "example 1" in error.message


def test_values_outside_of_declared_bounds(tmp_path):
    path = save(tmp_path, images=np.array([[0.0], [1.5], [0.1]]))
    assert not Arrays(path).spec.bounded
    assert Arrays(path, bounded=True).spec.bounded
    assert failure(Arrays(path, bounded=True)).code == "DK307"


def test_streamed_values_are_checked_when_read(tmp_path):
    path = save(tmp_path, images=np.full((20, 2), np.nan))
    split = ArrayRows(tmp_path / "images.npy", torch.arange(20), None, "auto", False)
    with pytest.raises(DataError, match="example 7") as raised:
        split[7]
    assert raised.value.code == "DK307"
    assert path


@pytest.mark.parametrize(
    "labels", [np.arange(5), np.full(30, -1), np.full(30, 30), np.zeros(30), np.zeros((30, 1), int)]
)
def test_labels_that_do_not_fit(tmp_path, labels):
    assert failure(Arrays(save(tmp_path, images=BYTES, labels=labels), labels="labels")).code == "DK305"


def test_missing_files(tmp_path):
    assert failure(Arrays(str(tmp_path / "none"))).code == "DK301"
    save(tmp_path, pictures=BYTES)
    error = failure(Arrays(str(tmp_path)))
    assert error.code == "DK301"
    assert error.choices == ["pictures"]


def test_pickled_arrays_are_refused_unread(tmp_path):
    """Data never becomes code."""

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "images.npy", np.array([Bomb()] * 3, dtype=object), allow_pickle=True)
    assert failure(Arrays(str(tmp_path))).code == "DK303"
    np.savez(tmp_path / "x.npz", images=np.array([Bomb()] * 3, dtype=object))
    assert failure(Arrays(str(tmp_path / "x.npz"))).code == "DK303"
    (tmp_path / "images.npy").write_bytes(pickle.dumps(Bomb()))
    assert failure(Arrays(str(tmp_path))).code == "DK303"


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw[:20], lambda raw: b"text" * 50]
)
def test_damaged_files(tmp_path, damage):
    save(tmp_path, images=BYTES)
    raw = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(damage(raw))
    assert failure(Arrays(str(tmp_path))).code == "DK302"
    with zipfile.ZipFile(tmp_path / "inner.npz", "w") as archive:
        archive.writestr("images.npy", damage(raw))
    assert failure(Arrays(str(tmp_path / "inner.npz"))).code == "DK302"
    packed = io.BytesIO()
    np.savez_compressed(packed, images=BYTES)
    (tmp_path / "outer.npz").write_bytes(damage(packed.getvalue()))
    assert failure(Arrays(str(tmp_path / "outer.npz"))).code == "DK302"


def test_a_header_that_claims_the_moon_allocates_nothing(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**3)})
    (tmp_path / "images.npy").write_bytes(header.getvalue() + b"\0" * 80)
    assert failure(Arrays(str(tmp_path))).code == "DK302"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "images.npy", "images.npy")
    assert failure(Arrays(str(tmp_path / "x.npz"))).code == "DK302"


def test_large_sets_stream_and_small_ones_stay(tmp_path, monkeypatch):
    path = save(tmp_path, images=BYTES)
    assert isinstance(Arrays(path).split("train"), InMemorySplit)
    monkeypatch.setattr(files, "MAX_RESIDENT_BYTES", BYTES.nbytes - 1)
    assert isinstance(Arrays(path).split("train"), ArrayRows)
    assert isinstance(Arrays(path, resident="always").split("train"), InMemorySplit)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_streams_work_in_loader_workers(tmp_path, context):
    """The split carries a path, not the file: pickled, it is small whatever was read before."""
    data = Arrays(save(tmp_path, images=BYTES, labels=LABELS), labels="labels", resident="never")
    split = data.split("train")
    expected = [split[i] for i in range(len(split))]
    assert len(pickle.dumps(split)) < 4000
    loader = DataLoader(split, batch_size=None, num_workers=2, multiprocessing_context=context)
    for (x, cond), (wanted, label) in zip(loader, expected, strict=True):
        assert torch.equal(x, wanted)
        assert torch.equal(cond["label"], label["label"])


def test_options_that_contradict_the_file(tmp_path):
    with pytest.raises(ValueError, match="labels"):
        Arrays("x.npy", labels="labels")
    with pytest.raises(ValueError, match="streamed"):
        Arrays("x.npz", resident="never")
    with pytest.raises(ValueError, match="held_out"):
        Arrays("x.npz", held_out=2.5)


def test_fortran_order_byte_order_and_held_out(tmp_path):
    path = save(tmp_path, images=np.asfortranarray(FLOATS).astype(">f8"))
    data = Arrays(path, held_out=4)
    assert len(data.split("held-out")) == 4
    assert gathered(data) == sorted(x.astype(np.float32).tobytes() for x in FLOATS)


def test_fingerprint(tmp_path, monkeypatch):
    before = Arrays(save(tmp_path, images=BYTES)).fingerprint()
    assert Arrays(str(tmp_path), workers=0, resident="never").fingerprint() == before
    assert Arrays(str(tmp_path), held_out=3).fingerprint() != before
    monkeypatch.setattr(files, "MAX_HASHED_BYTES", 0)
    monkeypatch.setattr(files, "PIECE_BYTES", 16)
    sampled = Arrays(str(tmp_path)).fingerprint()
    changed = BYTES.copy()
    changed[-1, -1, -1, -1] ^= 1
    np.save(tmp_path / "images.npy", changed)
    assert Arrays(str(tmp_path)).fingerprint() != sampled
