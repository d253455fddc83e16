"""Conditions of pictures: tables, captions and paired pictures, and one error for each that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit import Conditions, DataError, Unchanged
from diffkit.basics.augmentation import Flip
from diffkit.basics.conditioners import Concat
from diffkit.basics.data.images import Images
from diffkit.data import ConditionSpec, InMemorySplit, as_texts, stack
from diffkit.noise import RandomStreams
from diffkit.train.preprocessing import Preprocessing
from diffkit.train.tasks import TrainingProblem

COUNT = 12
KINDS = ("hat", "dress", "shoe")
EVERY = {
    "labels": "kind",
    "captions": "caption",
    "classes": {"year": "year"},
    "numbers": {"angle": "angle", "place": ("angle", "height")},
    "pictures": {"mask": {"folder": "masks", "color": "grey", "smooth": False}, "low": {"column": "low", "size": 3}},
}


def pixels(i: int, height: int = 6, width: int = 6) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(i: int) -> dict[str, object]:
    return {
        "file_name": f"{i:02}.png",
        "kind": KINDS[i % 3],
        "caption": f"a {KINDS[i % 3]}, {i} grün",
        "year": 1990 + i % 4,
        "angle": i / 4,
        "height": -i,
        "low": f"small/{i:02}.png",
    }


def write_rows(folder: Path, rows: list[dict[str, object]], suffix: str = "jsonl") -> None:
    """Write the table in one of its three formats."""
    for old in folder.glob("metadata.*"):
        old.unlink()
    mark = "\t" if suffix == "tsv" else ","
    lines = [json.dumps(one, ensure_ascii=False) for one in rows]
    if suffix != "jsonl":
        quoted = [[f'"{value}"' if "," in str(value) else str(value) for value in one.values()] for one in rows]
        lines = [mark.join(rows[0]), *(mark.join(cells) for cells in quoted)]
    (folder / f"metadata.{suffix}").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with a table, captions, masks in a second folder, and smaller pictures that the table names."""
    photos = tmp_path / "photos"
    for name in (photos, photos / "small", tmp_path / "masks"):
        name.mkdir()
    for i in range(COUNT):
        pixels(i).save(photos / f"{i:02}.png")
        pixels(i).save(photos / "small" / f"{i:02}.png")
        pixels(i).convert("L").save(tmp_path / "masks" / f"{i:02}.bmp")
    write_rows(photos, [row(i) for i in reversed(range(COUNT))])
    return photos


def caption(folder: Path) -> None:
    for i in range(COUNT):
        (folder / f"{i:02}.txt").write_text(f"number {i}\n", encoding="utf-8")


def failure(folder: Path, **options: object) -> DataError:
    with pytest.raises(DataError) as raised:
        Images(str(folder), **options).split("train")  # type: ignore[arg-type]
    assert raised.value.fix
    return raised.value


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_every_condition_belongs_to_its_picture(folder: Path, suffix: str) -> None:
    write_rows(folder, [row(i) for i in reversed(range(COUNT))], suffix)
    table = str(folder / "metadata.tsv") if suffix == "tsv" else None
    data = Images(str(folder), **EVERY, table=table)  # type: ignore[arg-type]
    spec = data.spec.conditions
    assert (data.spec.classes, data.spec.class_names) == (3, ("dress", "hat", "shoe"))
    assert spec["year"] == ConditionSpec((), "long", 4, ("1990", "1991", "1992", "1993"))
    assert (spec["place"], spec["mask"]) == (ConditionSpec((2,)), ConditionSpec((1, 6, 6), "uint8"))
    seen = {}
    for part in ("train", "held-out"):
        split = data.split(part)
        for x, cond in (split[i] for i in range(len(split))):
            seen[x.numpy().tobytes()] = cond
    for i in range(COUNT):
        cond = seen[np.asarray(pixels(i)).transpose(2, 0, 1).tobytes()]
        assert data.spec.class_names[cond["label"]] == row(i)["kind"]
        assert as_texts(cond["text"][None]) == [row(i)["caption"]]
        assert cond["year"] == i % 4
        assert cond["place"].tolist() == [i / 4, -i]
        assert cond["angle"] == i / 4
        assert torch.equal(cond["mask"][0], torch.from_numpy(np.array(pixels(i).convert("L"))))
        assert cond["low"].shape == (3, 3, 3)


def test_streamed_pictures_have_the_same_conditions(folder: Path) -> None:
    kept, read = (Images(str(folder), **EVERY, resident=resident).split("train") for resident in ("always", "never"))  # type: ignore[arg-type]
    assert isinstance(kept, InMemorySplit)
    assert not isinstance(read, InMemorySplit)
    (x, cond), (y, other) = stack(kept, range(len(kept))), stack(read, range(len(read)))
    assert torch.equal(x, y)
    assert cond.keys() == other.keys()
    assert all(torch.equal(cond[name], other[name]) for name in cond)


def test_captions_are_texts_beside_the_pictures(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    for one in (folder / "small").iterdir():
        one.unlink()
    caption(folder)
    data = Images(str(folder), captions=True)
    assert data.spec.conditions == {"text": ConditionSpec((len("number 11"),), "text")}
    x, cond = data.split("train")[3]
    (text,) = as_texts(cond["text"][None])
    assert torch.equal(x, torch.from_numpy(np.array(pixels(int(text.split()[1]))).transpose(2, 0, 1)))


def test_a_fingerprint_follows_conditions_only_if_there_are_any(folder: Path) -> None:
    plain, whole = Images(str(folder)), Images(str(folder), **EVERY)  # type: ignore[arg-type]
    before, after = plain.fingerprint(), whole.fingerprint()
    write_rows(folder, [row(i) | {"angle": 7} for i in range(COUNT)])
    assert Images(str(folder)).fingerprint() == before
    assert Images(str(folder), **EVERY).fingerprint() != after  # type: ignore[arg-type]
    write_rows(folder, [row(i) for i in range(COUNT)])
    assert Images(str(folder), **EVERY).fingerprint() == after  # type: ignore[arg-type]
    pixels(99).convert("L").save(folder.parent / "masks" / "03.bmp")
    assert Images(str(folder), **EVERY).fingerprint() != after  # type: ignore[arg-type]


def rewritten(change: Callable[[list[dict[str, object]]], object], suffix: str = "jsonl") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        rows = [row(i) for i in range(COUNT)]
        change(rows)
        write_rows(folder, rows, suffix)

    return write


def appended(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "metadata.jsonl"
        file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")

    return write


def save(i: int, name: str, height: int, width: int) -> Callable[[Path], None]:
    return lambda folder: pixels(i, height, width).save(folder / name)


TABLE = [
    (rewritten(lambda rows: rows[3].update(file_name="x.png")), "metadata.jsonl:4:", "file_name 'x.png' is not there"),
    (rewritten(lambda rows: rows[5].update(rows[2])), "metadata.jsonl:6:", "'02.png' has a row already, in line 3"),
    (rewritten(lambda rows: rows.pop(4)), "", "no row for picture 04.png"),
    (rewritten(lambda rows: rows[2].update(angle="far")), "metadata.jsonl:3:", "column 'angle': 'far' is not a number"),
    (rewritten(lambda rows: rows[2].update(angle="far"), "csv"), "metadata.csv:4:", "'far' is not a number"),
    (rewritten(lambda rows: rows[2].update(angle="inf"), "csv"), "metadata.csv:4:", "'inf' is not finite"),
    (rewritten(lambda rows: rows[2].update(angle=10**400)), "metadata.jsonl:3:", "is not a number"),
    (rewritten(lambda rows: rows[2].update(angle=1e300)), "metadata.jsonl:3:", "is not finite"),
    (rewritten(lambda rows: rows[2].update(angle="7")), "metadata.jsonl:3:", "'7' is not a number"),
    (rewritten(lambda rows: rows[2].update(angle=True)), "metadata.jsonl:3:", "True is not a number"),
    (
        rewritten(lambda rows: rows[7].update(kind=3)),
        "metadata.jsonl:8:",
        "3 is a whole number, but the first",
    ),
    (rewritten(lambda rows: rows[7].update(year=1990.5)), "metadata.jsonl:8:", "1990.5 is a number, but the first"),
    (
        rewritten(lambda rows: [one.update(year=[1]) for one in rows]),
        "metadata.jsonl:1:",
        "[1] is a list, which is",
    ),
    (rewritten(lambda rows: rows[7].update(caption=["a"])), "metadata.jsonl:8:", "['a'] is a list, not a caption"),
    (rewritten(lambda rows: rows[7].pop("kind")), "metadata.jsonl:8:", "the row has no value in column 'kind'"),
    (
        rewritten(lambda rows: rows[7].update(kind=""), "csv"),
        "metadata.csv:9:",
        "the row has no value in column 'kind'",
    ),
    (rewritten(lambda rows: [one.pop("kind") for one in rows]), "", "has no column 'kind'"),
    (rewritten(lambda rows: [one.pop("file_name") for one in rows]), "", "has no column 'file_name'"),
    (rewritten(lambda rows: rows[1].update(low="small/x.png")), "metadata.jsonl:2:", "low 'small/x.png' is not there"),
    (appended("\n{"), "metadata.jsonl:13:", "the line is not JSON"),
    (appended("\n[1]"), "metadata.jsonl:13:", "the line is a list, not an object"),
    (lambda folder: (folder / "metadata.csv").write_text("file_name\n"), "", "holds 2 tables"),
    (lambda folder: (folder / "metadata.jsonl").write_text(""), "", "holds no rows"),
    (lambda folder: (folder / "metadata.jsonl").write_bytes(b"\xff\xfe"), "", "cannot be read"),
    (lambda folder: (folder / "metadata.jsonl").unlink(), "", "holds no table"),
    (lambda folder: (folder.parent / "masks" / "03.bmp").unlink(), "", "no mask for picture 03.png"),
    (save(0, "../masks/03.bmp", 6, 5), "", "03.bmp has 5x6 pixels, its picture 03.png 6x6"),
    (save(0, "../masks/03.bmp", 3, 3), "", "the pictures of mask have 2 different sizes"),
    (lambda folder: (folder.parent / "masks" / "03.bmp").write_bytes(b""), "", "cannot be used as mask: empty file"),
    (
        lambda folder: (folder.parent / "masks").rename(folder.parent / "maks"),
        "",
        "the folder of mask, beside photos",
    ),
]


@pytest.mark.parametrize(("change", "place", "told"), TABLE, ids=[told for *_, told in TABLE])
def test_a_table_that_does_not_fit_is_one_error(
    folder: Path, change: Callable[[Path], object], place: str, told: str
) -> None:
    change(folder)
    error = failure(folder, **EVERY)
    assert told in error.message
    assert place in error.render()
    assert error.code in ("DK301", "DK309", "DK312")


def test_rows_of_a_csv_file_have_as_many_values_as_columns(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,kind\n"00.png","a\nb"\n01.png,a,b\n')
    assert "the row has 3 values for 2 columns" in (error := failure(folder, labels="kind")).message
    assert "metadata.csv:4:" in error.render()
    (folder / "metadata.csv").write_text("file_name,kind,kind\n00.png,a,b\n")
    assert "the column 'kind' appears twice" in failure(folder, labels="kind").message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "03.txt").unlink(), "no caption for picture 03.png"),
        (lambda folder: (folder / "x.txt").write_text("a"), "no picture for caption x.txt"),
        (lambda folder: (folder / "03.txt").write_bytes(b"\xff"), "03.txt cannot be read"),
        (lambda folder: (folder / "03.txt").write_bytes(b"a\0b"), "not a caption"),
        (save(50, "03.jpg", 6, 6), "03.jpg and 03.png share the caption 03.txt"),
    ],
)
def test_captions_that_do_not_fit_are_one_error(folder: Path, change: Callable[[Path], object], told: str) -> None:
    for one in (folder / "small").iterdir():
        one.unlink()
    caption(folder)
    change(folder)
    assert told in (error := failure(folder, captions=True)).message
    assert error.code == "DK312"


def test_what_moves_pixels_moves_their_partners(folder: Path) -> None:
    """The mask is the grey version of its picture, before and after flips, and numbers stay."""
    for one in (folder / "small").iterdir():
        one.unlink()
    data = Images(str(folder), pictures={"mask": {"folder": "masks", "color": "grey"}}, numbers={"angle": "angle"})
    specs = data.spec.conditions
    own = Conditions({"mask": Concat(specs["mask"], data), "angle": Unchanged(specs["angle"])}, specs)
    unused: Any = None
    made = Preprocessing(TrainingProblem(unused, unused, data, augment=(Flip(),), conditions=own))
    raw, cond = data.split("train").rows(torch.arange(8))  # type: ignore[attr-defined]
    x, ready = made.train(raw, cond, RandomStreams(0, 0, 8))
    flipped = (x != data.to_model_range(raw)).flatten(1).any(1)
    assert 0 < int(flipped.sum()) < 8
    mask = data.to_model_range(cond["mask"])
    assert torch.equal(ready["concat"], torch.where(flipped[:, None, None, None], mask.flip(-1), mask))
    assert torch.equal(ready["angle"], cond["angle"])
