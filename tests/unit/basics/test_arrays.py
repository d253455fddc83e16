"""Arrays: images and vectors in NumPy files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from diffkit.basics.data import arrays, files
from diffkit.basics.data.arrays import ArrayRows, Arrays
from diffkit.data import ConditionSpec, DataSpec, InMemorySplit, as_texts, stack
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
    np.save(tmp_path / "x.npy", RNG.standard_normal(shape))
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
    assert missing.choices == "'kinds', 'pictures'"


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
    split = ArrayRows(tmp_path / "images.npy", torch.arange(20), {}, "auto", False)
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


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@pytest.mark.parametrize("shape", [(40, 2, 64), (40, 64, 2), (40, 1, 64)])
def test_an_explicit_layout_is_obeyed(tmp_path, shape, layout):
    """Fault A7, case 07: series. `auto` reads grey images, with a warning if one axis is short."""
    array = RNG.standard_normal(shape).astype("float32")
    np.savez(tmp_path / "x.npz", images=array)
    data = Arrays(str(tmp_path / "x.npz"), layout=layout)
    channels, length = shape[1:] if layout == "channels-first" else shape[:0:-1]
    assert data.spec == DataSpec(channels, (length,))
    first = array if layout == "channels-first" else array.transpose(0, 2, 1)
    assert gathered(data) == sorted(np.ascontiguousarray(x).tobytes() for x in first)
    with pytest.warns(UserWarning, match="set data.layout for series"):
        assert Arrays(str(tmp_path / "x.npz")).spec.shape == (1, *shape[1:])


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (np.arange(30) % 4 + 1, "1 of 5 classes have no training example: 0;"),
        (np.array([0, 1, 3])[LABELS], "1 of 4 classes have no training example: 2;"),
        (np.where(np.arange(30) % 2, 29, 0), "28 of 30 classes .*: 1, 2, .* and 18 more"),
    ],
)
def test_classes_without_examples_are_reported(tmp_path, labels, missing):
    """Fault A7, case 11; the advice works."""
    data = Arrays(save(tmp_path, images=BYTES, labels=labels), labels="labels")
    with pytest.warns(UserWarning, match=missing) as warned:
        data.split("train")
    assert "numpy.unique(labels, return_inverse=True)[1]" in str(warned[0].message)
    save(tmp_path, labels=np.unique(labels, return_inverse=True)[1])
    mended = Arrays(str(tmp_path), labels="labels")
    mended.split("train")
    assert mended.spec.classes == len(np.unique(labels))
    assert f"{mended.spec.classes} classes (0: " in mended.summary


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (BYTES.astype("float32"), "0 to 255 .* are in no known range"),
        (BYTES / 255, "black is -1"),
        (RNG.integers(-1000, 3000, (30, 6, 5)).astype("float32"), "are in no known range"),
        (np.full((30, 6, 5), 7, np.uint8), "all values are 7"),
        (BYTES // 16, "use a small part"),
        (RNG.standard_normal((30, 7)) * 1e-3, "are in no known range"),
    ],
)
def test_values_in_no_known_range_are_reported_once(tmp_path, array, problem):
    data = Arrays(save(tmp_path, images=array))
    with pytest.warns(UserWarning, match=problem) as warned:
        data.split("train")
    assert len(warned) == 1
    assert len(data.split("held-out"))  # an error if it warned again


@pytest.mark.parametrize("shape", [(40, 6), (40, 8, 8), (40, 3, 8, 8), (40, 8, 8, 3)])
@pytest.mark.parametrize(
    "convert",
    [
        lambda g: (g * 65535).astype("uint16"),
        lambda g: (g * 4095).astype("uint16"),
        lambda g: (g * 255 - 128).astype("int8"),
        lambda g: g > 0.5,
        lambda g: (g * 4000 - 1000).astype("int16"),
        lambda g: (g * 255).astype("int64"),
        lambda g: (g * 2.0**60).astype("int64"),
        lambda g: (g * 2 - 1).astype("complex64"),
    ],
)
def test_the_advice_for_each_type_works(tmp_path, convert, shape):
    """Fault D24, case 12: the expression in the fix is run, and its result keeps the values but for scale and shift."""
    source = np.linspace(0, 1, np.prod(shape)).reshape(shape)
    array = convert(source)
    error = failure(Arrays(save(tmp_path, images=array)))
    assert error.code == "DK308"
    converted = eval(error.fix.removeprefix("convert them: "), {"numpy": np, "array": array})  # noqa: S307
    assert converted.dtype in (np.uint8, np.float32)
    layout = "auto" if len(shape) < 4 else "channels-first" if shape[1] == 3 else "channels-last"
    read = Arrays(save(tmp_path, images=converted), layout=layout)
    x = torch.cat([read.split(part).x for part in ("train", "held-out")]).float()
    assert float(x.max() - x.min()) >= (255 if converted.dtype == np.uint8 else 0.5)
    if array.dtype.kind == "c":
        assert set(array.real.reshape(-1).tolist()) <= set(converted.reshape(-1).tolist())
    else:
        assert np.corrcoef(converted.reshape(-1), array.reshape(-1).astype(float))[0, 1] > 0.9999


def test_the_advice_for_records_and_text_works(tmp_path):
    records = np.zeros(30, dtype=[("a", "f4"), ("b", "f4")])
    records["a"], records["b"] = RNG.standard_normal((2, 30))
    for array in (records, RNG.standard_normal((30, 3)).astype("U20")):
        error = failure(Arrays(save(tmp_path, images=array)))
        assert error.code == "DK308"
        plain = eval(error.fix.removeprefix("store plain numbers: "), {"numpy": np, "array": array})  # noqa: S307
        assert len(Arrays(save(tmp_path, images=plain)).split("train")) > 20


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_without_axes(tmp_path, kind):
    """Case 13."""
    save(tmp_path, images=np.float32(3))
    np.savez(tmp_path / "x.npz", images=np.float32(3))
    assert failure(Arrays(str(tmp_path / ("x.npz" if kind == "npz" else "images.npy")))).code == "DK308"
    np.savez(tmp_path / "y.npz", images=BYTES, labels=np.int64(3))
    assert failure(Arrays(str(tmp_path / "y.npz"), labels="labels")).code == "DK305"


def test_packed_arrays_have_limits(tmp_path, monkeypatch):
    """Fault B14: sizes are checked before anything is unpacked, and the advice works."""
    monkeypatch.setattr(arrays, "MAX_RATIO_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((1000, 1000), np.uint8))
    assert "unpacks to" in failure(Arrays(str(tmp_path / "x.npz"))).message
    np.savez(tmp_path / "x.npz", images=BYTES)
    monkeypatch.setattr(files, "MAX_RESIDENT_BYTES", 1000)
    assert "unpacks to" in failure(Arrays(str(tmp_path / "x.npz"))).message
    assert len(Arrays(str(tmp_path / "x.npz"), resident="always").split("train")) > 20


FURTHER = {
    "kind": (np.arange(30) % 4, ConditionSpec((), "long", 4)),
    "angle": (np.linspace(0, 1, 30), ConditionSpec()),
    "pose": (RNG.standard_normal((30, 3)).astype(np.float16), ConditionSpec((3,))),
    "text": (np.array([f"a hat {i}" for i in range(30)]), ConditionSpec((8,), "text")),
    "tokens": (RNG.standard_normal((30, 77, 8, 2, 1)), ConditionSpec((77, 8, 2, 1))),
    "mask": (BYTES[..., 0], ConditionSpec((1, 6, 5), "uint8")),
    "low": (BYTES[:, ::2, ::2], ConditionSpec((3, 3, 3), "uint8")),
    "depth": (np.asfortranarray(RNG.standard_normal((30, 6, 5, 1))), ConditionSpec((1, 6, 5))),
    "code": (BYTES[:, 0, 0], ConditionSpec((3,), "uint8")),
}


def test_any_array_is_a_condition_in_memory_and_streamed(tmp_path):
    path = save(tmp_path, images=BYTES, labels=LABELS, **{name: array for name, (array, _) in FURTHER.items()})
    named = {name: name for name in FURTHER}
    kept, read = (Arrays(path, labels="labels", conditions=named, resident=one) for one in ("always", "never"))
    assert kept.spec.conditions == {name: spec for name, (_, spec) in FURTHER.items()} | {
        "label": ConditionSpec((), "long", 3)
    }
    split = read.split("train")
    assert isinstance(split, ArrayRows)
    shipped = pickle.loads(pickle.dumps(split))  # noqa: S301 - as a spawned worker does
    assert len(pickle.dumps(split)) < 20_000
    x, cond = stack(kept.split("train"), range(27))
    same, other = (stack(part, range(27))[1] for part in (split, shipped))
    assert cond.keys() == same.keys() == other.keys() == kept.spec.conditions.keys()
    assert all(torch.equal(cond[name], same[name]) and torch.equal(cond[name], other[name]) for name in cond)
    for i, one in enumerate(x):
        row = next(k for k in range(30) if (BYTES[k].transpose(2, 0, 1) == one.numpy()).all())
        assert cond["mask"][i, 0].tolist() == BYTES[row, ..., 0].tolist()
        assert cond["depth"][i, 0].tolist() == FURTHER["depth"][0][row, ..., 0].astype(np.float32).tolist()
        assert cond["kind"][i] == row % 4
        assert as_texts(cond["text"][i : i + 1]) == [f"a hat {row}"]


def test_conditions_enter_the_fingerprint(tmp_path):
    path = save(tmp_path, images=BYTES, kind=LABELS)
    plain, whole = Arrays(path), Arrays(path, conditions={"kind": "kind"})
    before, after = plain.fingerprint(), whole.fingerprint()
    save(tmp_path, kind=LABELS[::-1].copy())
    assert Arrays(path).fingerprint() == before
    assert Arrays(path, conditions={"kind": "kind"}).fingerprint() != after
    np.savez(tmp_path / "x.npz", images=BYTES, a=LABELS, b=LABELS)
    packed = [Arrays(str(tmp_path / "x.npz"), conditions={"kind": key}).fingerprint() for key in "ab"]
    assert packed[0] != packed[1]
    named = [Arrays(path, conditions={name: "kind"}).fingerprint() for name in ("kind", "sort")]
    assert named[0] != named[1]


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros(29), "(29,) rows for 30 examples"),
        (np.zeros((30, 0)), "(30, 0) rows for 30 examples"),
        (np.zeros((30, 3), np.int64), "cannot be int64"),
        (np.zeros(30, bool), "cannot be bool"),
        (np.zeros(30, complex), "cannot be complex128"),
        (np.array(["a"] * 30).reshape(30, 1), "cannot be <U1"),
        (np.full(30, -1), "label -1 of example 0"),
        (np.where(np.arange(30) == 7, np.nan, 0.0), "a value of example 7 is not finite"),
        (np.where(np.arange(30) == 7, 1e300, 0.0), "a value of example 7 is not finite"),
    ],
)
def test_arrays_that_are_not_conditions(tmp_path, array, told):
    error = failure(Arrays(save(tmp_path, images=BYTES, extra=array), conditions={"pose": "extra"}))
    assert told in error.message
    assert error.code == "DK305"
    assert "extra" in error.message


def test_conditions_need_a_file_of_their_own(tmp_path):
    with pytest.raises(ValueError, match=r"one \.npy file holds no conditions"):
        Arrays("x.npy", conditions={"pose": "pose"})
    with pytest.raises(ValueError, match="two options state the condition label"):
        Arrays("x.npz", labels="labels", conditions={"label": "kind"})
    assert failure(Arrays(save(tmp_path, images=BYTES), conditions={"pose": "pose"})).code == "DK301"
