"""Data sets of torch, Hugging Face and plain objects as data, and runs of them that continue with the same bits."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import diffkit
from diffkit import ArgumentError, DataError, RecipeError, assemble, build, load_recipe, open_run, run
from diffkit.basics.data.dataset import DatasetData, DatasetRows
from diffkit.data import ConditionSpec, InMemorySplit, as_texts, stack
from diffkit.runs.training import make_trainer

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
KEYS = {"label": "kind", "text": "words", "angle": "angle", "pose": "pose", "mask": "mask"}


def encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    """A picture as a PNG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Tuples(Dataset[tuple[torch.Tensor, int]]):
    """Points about -1 or 1, and their class."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([index % 2 * 2.0 - 1.0, index / 64]), index % 2


class Rows:
    """Mappings; `change` replaces entries of one of them."""

    def __init__(self, change: dict[str, Any] | None = None, at: int = 7) -> None:
        self.change, self.at = change or {}, at

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {
            "image": Image.fromarray(PIXELS[index]),
            "kind": ("hat", "dress")[index % 2],
            "words": f"a hat {index}",
            "angle": index / 4,
            "pose": [index, -1.0],
            "mask": torch.from_numpy(PIXELS[index, None, ..., 0]),
        }
        return row | (self.change if index == self.at else {})


RECIPE = """
name: given
data: {name: dataset, condition_dropout: 0.1, resident: never}
schedule: {name: linear, steps: 10, beta_start: 0.1, beta_end: 0.6}
parameterization: eps
network: {name: mlp, width: 8}
train: {steps: 6, batch_size: 8}
sample: {sampler: ancestral, count: 4}
evaluate: {metrics: sliced-wasserstein, count: 16}
"""


def test_mappings_with_every_kind_of_condition() -> None:
    kept, read = (DatasetData(Rows(), conditions=KEYS, resident=one) for one in ("always", "never"))
    assert kept.spec == read.spec
    assert kept.spec.shape == (3, 6, 5)
    assert kept.spec.conditions == {
        "label": ConditionSpec((), "long", 2, ("dress", "hat")),
        "text": ConditionSpec((8,), "text"),
        "angle": ConditionSpec(),
        "pose": ConditionSpec((2,)),
        "mask": ConditionSpec((1, 6, 5), "uint8"),
    }
    assert kept.fingerprint() == read.fingerprint() != DatasetData(Rows({"angle": 9.0}), conditions=KEYS).fingerprint()
    whole, streamed = kept.split("train"), read.split("train")
    assert isinstance(whole, InMemorySplit)
    assert isinstance(streamed, DatasetRows)
    shipped = pickle.loads(pickle.dumps(streamed))  # noqa: S301 - as a spawned worker does
    (x, cond), (y, same), (z, other) = (stack(part, range(len(whole))) for part in (whole, streamed, shipped))
    assert torch.equal(x, y)
    assert torch.equal(x, z)
    for name, value in cond.items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, other[name])
    for row, text in enumerate(as_texts(cond["text"])):
        index = int(text.split()[-1])
        assert torch.equal(x[row], torch.from_numpy(PIXELS[index]).permute(2, 0, 1))
        assert torch.equal(cond["mask"][row, 0], torch.from_numpy(PIXELS[index, ..., 0]))
        assert cond["label"][row] == (index + 1) % 2
        assert cond["angle"][row] == index / 4


def test_tuples_have_a_class_and_parts_may_be_given() -> None:
    data = DatasetData({"train": Tuples(), "held-out": Tuples()})
    assert (data.spec.shape, data.spec.classes, data.spec.bins) == ((2,), 2, None)
    assert (len(data.split("train")), len(data.split("held-out"))) == (64, 64)
    assert build("data", "dataset", dataset=Tuples()).split("train")[3][1]["label"].dtype == torch.long


def test_a_run_of_a_given_data_set_resumes_with_the_same_bits(tmp_path: Path) -> None:
    made = run(RECIPE, tmp_path / "whole", dataset=Tuples(), device="cpu")
    assert made.results.metrics
    assert run(RECIPE, tmp_path / "whole", dataset=Tuples(), device="cpu").evaluate("mmd", count=8).metrics
    assert open_run(tmp_path / "whole", device="cpu").sample(2).shape == (2, 2)
    with pytest.raises(DataError, match="which is not given"):
        run(RECIPE, tmp_path / "other", device="cpu")

    def trainer() -> Any:
        return make_trainer(assemble(load_recipe(RECIPE, dataset=Tuples())), torch.device("cpu"))

    whole, first, second = trainer(), trainer(), trainer()
    whole.run()
    first.run(stop=lambda: first.step >= 3)
    second.load(first.tensors(), first.state())
    second.run()
    for group, tensors in whole.tensors().items():
        assert all(torch.equal(value, second.tensors()[group][name]) for name, value in tensors.items())


def test_the_recipe_must_name_the_data_set_that_is_given() -> None:
    with pytest.raises(RecipeError, match="data digits does not take the data set that is given"):
        load_recipe(RECIPE, ["data=digits"], dataset=Tuples())
    with pytest.raises(ArgumentError, match=r"argument `dataset` must be a data set, got Stream"):
        load_recipe(RECIPE, dataset=Stream())  # type: ignore[arg-type]


class Stream(IterableDataset[int]):
    """Has no length."""

    def __iter__(self) -> Iterator[int]:
        yield 0


class Random(Tuples):
    """Changes at each call."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(2), 0


class Raises(Tuples):
    """Cannot be read to the end."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return super().__getitem__(index) if index < 9 else super().__getitem__(1 // 0)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (Rows({"image": Image.fromarray(PIXELS[0][:4])}), "example 7 of the data set: x is (3, 4, 5)"),
        (Rows({"image": torch.full((3, 6, 5), 7)}), "image is of torch.int64"),
        (Rows({"mask": torch.full((1, 6, 5), float("nan"))}), "mask is not finite"),
        (Rows({"mask": torch.zeros(1, 6, 5)}), "mask is (1, 6, 5) of torch.float32, in the first example"),
        (Rows({"mask": 3}), "its conditions are of other kinds"),
        (Rows({"kind": 3}), "label: 3 is a whole number, but the first value"),
        (Rows({"words": 3}), "text: 3 is a whole number, not a caption"),
        (Rows({"angle": "far"}), "'angle': 'far' is not a number"),
        (Rows({"image": "a.png"}), "image is str"),
        ([{"picture": 1}] * 3, "the example has no 'image'; it has: picture"),
        (Random(), "two calls return different examples"),
        (Raises(), "example 9 of the data set: the data set raises ZeroDivisionError"),
        ({"train": Tuples(), "test": Tuples()}, "the parts are train, test"),
        ([(torch.zeros(2), 0)], "the data set has 1 examples"),
    ],
)
def test_an_example_that_does_not_fit_is_one_error(dataset: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        DatasetData(dataset, conditions=KEYS if isinstance(dataset, Rows) else {}).split("train")
    assert told in caught.value.message
    assert caught.value.fix


def test_hugging_face() -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    pyarrow = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["hat", "dress"]),
            "words": datasets.Value("string"),
        }
    )
    rows = [
        {"image": {"bytes": encoded(one), "path": None}, "kind": i % 2, "words": f"a {i}"}
        for i, one in enumerate(PIXELS)
    ]
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    theirs = datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint="0" * 16)
    data = diffkit.build("data", "dataset", dataset=theirs, conditions={"label": "kind", "text": "words"})
    assert data.spec.class_names == ("hat", "dress")
    x, cond = data.split("train")[0]
    index = int(as_texts(cond["text"][None])[0].split()[1])
    assert torch.equal(x, torch.from_numpy(PIXELS[index]).permute(2, 0, 1))
    assert cond["label"] == index % 2
