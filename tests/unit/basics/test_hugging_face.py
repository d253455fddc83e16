"""Data sets of Hugging Face on disk: the conditions of their columns, and what does not fit."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit import DataError, as_texts
from diffkit.basics.data.hugging_face import STATE, HuggingFace
from diffkit.basics.data.pictures import read_picture
from diffkit.train.data_loading import ShuffledOrder, batch_source

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra diffkit[streams])")


def png(seed: int, height: int = 6, width: int = 5) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


COLUMNS = {
    "image": [{"bytes": png(i), "path": None} for i in range(20)],
    "label": [i % 2 for i in range(20)],
    "kind": [f"k{i % 3}" for i in range(20)],
    "text": [f"text ü {'!' * i}" for i in range(20)],
    "age": [i / 2 for i in range(20)],
    "pair": [[float(i), 1.0] for i in range(20)],
}
INFO = {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}
ALL = {"labels": "label", "captions": "text", "classes": {"kind": "kind"}, "numbers": {"age": "age", "pair": "pair"}}


def write(folder, pieces: int = 2, **columns) -> str:
    """Write columns as `save_to_disk` does, in several files."""
    folder.mkdir(exist_ok=True)
    table = arrow.table({**COLUMNS, **columns})
    names = [f"data-{i:05}-of-{pieces:05}.arrow" for i in range(pieces)]
    step = -(-len(table) // pieces)
    for i, name in enumerate(names):
        with arrow.OSFile(str(folder / name), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(i * step, step), max_chunksize=3)
    (folder / STATE).write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps(INFO))
    return str(folder)


def test_examples_and_conditions(tmp_path) -> None:
    data = HuggingFace(write(tmp_path / "set"), held_out=4, **ALL)
    assert data.spec.shape == (3, 6, 5)
    assert data.spec.class_names == ("cat", "dog")
    assert data.spec.conditions["kind"].names == ("k0", "k1", "k2")
    seen = set()
    for part in ("train", "held-out"):
        split = pickle.loads(pickle.dumps(data.split(part)))  # noqa: S301 - as a worker process receives it
        for x, cond in (split[i] for i in range(len(split))):
            i = round(float(cond["age"]) * 2)
            seen.add(i)
            assert torch.equal(x, read_picture(io.BytesIO(png(i)), None, "rgb"))
            assert (int(cond["label"]), int(cond["kind"]), cond["pair"].tolist()) == (i % 2, i % 3, [i, 1])
            assert as_texts(cond["text"][None]) == [COLUMNS["text"][i]]
    assert seen == set(range(20))
    assert len(data.split("held-out")) == 4


def test_the_number_of_files_changes_nothing_but_the_fingerprint(tmp_path) -> None:
    one, other = (HuggingFace(write(tmp_path / str(n), n), **ALL) for n in (1, 5))
    for part in ("train", "held-out"):
        first, second = one.split(part), other.split(part)
        assert all(torch.equal(first[i][0], second[i][0]) for i in range(len(first)))
    before = one.fingerprint()
    assert before != other.fingerprint()
    write(tmp_path / "1", 1, age=[1.0] * 20)
    assert HuggingFace(str(tmp_path / "1"), **ALL).fingerprint() != before


def test_batches_depend_on_seed_and_step_alone(tmp_path) -> None:
    split = HuggingFace(write(tmp_path / "set"), **ALL).split("train")
    order, cpu = ShuffledOrder(len(split), 8, seed=3), torch.device("cpu")

    def batches(own: range, first: int, workers: int) -> list[torch.Tensor]:
        source = batch_source(split, order, own, range(first, 5), cpu, workers)
        found = [source.rows(step, own)[0] for step in range(first, 5)]
        source.close()
        return found

    whole = batches(range(8), 0, 0)
    for workers in (0, 2):
        halves = zip(batches(range(4), 3, workers), batches(range(4, 8), 3, workers), strict=True)
        assert all(torch.equal(torch.cat(pair), full) for pair, full in zip(halves, whole[3:], strict=True))


@pytest.mark.parametrize(
    ("columns", "options", "code", "text"),
    [
        ({}, {"labels": "absent"}, "DK317", "no column 'absent'"),
        ({"label": [0, None] * 10}, {"labels": "label"}, "DK317", "lacks a value in 10 examples"),
        ({"label": [0, 2] * 10}, {"labels": "label"}, "DK317", "a class outside 0 to 1"),
        ({}, {"labels": "age"}, "DK317", "not classes"),
        ({}, {"captions": "age"}, "DK317", "not texts"),
        ({}, {"numbers": {"a": "text"}}, "DK317", "not numbers"),
        ({"pair": [[1.0], [1.0, 2.0]] * 10}, {"numbers": {"a": "pair"}}, "DK317", r"lengths \[1, 2\]"),
        ({"age": [float("nan")] * 20}, {"numbers": {"a": "age"}}, "DK317", "NaN or infinity"),
        ({}, {"image": "text"}, "DK317", "not pictures"),
        ({"image": [{"bytes": png(i, 5 + i % 2), "path": None} for i in range(20)]}, {}, "DK306", "several sizes"),
        ({"image": [{"bytes": b"x", "path": None}] * 20}, {}, "DK309", "picture 0 cannot be used: not a PNG"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * 20}, {}, "DK309", "holds its path only"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, options, code, text) -> None:
    if code == "DK309" and "path only" in text:
        columns = {
            "image": arrow.array(columns["image"], arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}))
        }
    with pytest.raises(DataError, match=text) as caught:
        HuggingFace(write(tmp_path / "set", **columns), **options).split("train")
    assert caught.value.code == code


def test_folders_that_are_no_data_set(tmp_path) -> None:
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "train", 1)
    with pytest.raises(DataError, match="several parts") as caught:
        HuggingFace(str(tmp_path / "parts")).spec  # noqa: B018 - a property
    assert str(tmp_path / "parts" / "train") in str(caught.value)
    state = tmp_path / "parts" / "train" / STATE
    for text in ("{", "[]", "{}", '{"_data_files": [{"filename": "../data-00000-of-00001.arrow"}]}'):
        state.write_text(text)
        with pytest.raises(DataError, match="damaged") as caught:
            HuggingFace(str(state.parent)).spec  # noqa: B018 - a property
        assert caught.value.code == "DK302"
    whole = write(tmp_path / "cut", 1)
    file = tmp_path / "cut" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(DataError, match="damaged"):
        HuggingFace(whole).spec  # noqa: B018 - a property


@pytest.mark.slow
def test_a_folder_that_datasets_wrote(tmp_path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "text": datasets.Value("string"),
    }
    features = datasets.Features(kinds)
    table = arrow.table({name: COLUMNS[name] for name in kinds}, schema=features.arrow_schema)
    info = datasets.DatasetInfo(features=features)
    datasets.Dataset(table, info=info, fingerprint="0" * 16).save_to_disk(tmp_path / "set")
    own = HuggingFace(str(tmp_path / "set"), labels="label", captions="text", held_out=5)
    read = datasets.load_from_disk(tmp_path / "set")
    assert own.spec.class_names == tuple(read.features["label"].names)
    for at, row in enumerate(own.split("train").at.tolist()):
        x, cond = own.split("train")[at]
        assert np.array_equal(x.permute(1, 2, 0).numpy(), np.asarray(read[row]["image"]))
        assert as_texts(cond["text"][None]) == [read[row]["text"]]
