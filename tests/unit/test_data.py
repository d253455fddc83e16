"""Examples that a caller passes: each rule of conversion, and each refusal with its fix."""

import numpy as np
import pytest
import torch

from diffkit.data import Data, DataSpec, InMemorySplit, as_examples
from diffkit.errors import UsageError


class Given(Data):
    """Data of a given spec."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def split(self, part: str) -> InMemorySplit:
        raise AssertionError("the examples are not needed")


PICTURES = Given(DataSpec(3, (4, 5), bounded=True, bins=256))
VECTORS = Given(DataSpec(2))
BYTES = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
FLOATS = torch.from_numpy(BYTES / 127.5 - 1)


@pytest.mark.parametrize(
    "x",
    [
        BYTES,
        torch.from_numpy(BYTES),
        BYTES.astype(">i4"),
        np.asfortranarray(BYTES),
        BYTES[:, :, ::-1].copy()[:, :, ::-1],
        FLOATS,
        FLOATS.numpy(),
        FLOATS.numpy().astype(">f4"),
        FLOATS.movedim(1, -1).contiguous().movedim(-1, 1),
    ],
)
def test_raw_values_and_floats_of_the_model_are_the_same_examples(x):
    got = as_examples(x, PICTURES, count=6)
    assert got.dtype == torch.float32
    assert torch.allclose(got, FLOATS.float(), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        ([[1.0]], "got list"),
        (FLOATS > 0, "torch.bool"),
        (FLOATS.to(torch.complex64), "complex"),
        (FLOATS.to_sparse(), "got Tensor"),
        (FLOATS.to("meta"), "got Tensor"),
        (BYTES.astype(object), "array of object"),
        (BYTES > 3, "array of bool"),
        (BYTES[0], "one example"),
        (BYTES.transpose(0, 2, 3, 1), "channels are last"),
        (BYTES[:, :1], "got shape"),
        (BYTES[:0], "got shape"),
        (np.array(3.0), "got shape"),
        (BYTES.astype("int16") + 1, "from 1 to 256"),
        (FLOATS * float("nan"), "NaN"),
        (FLOATS.double() * 1e300, "NaN or infinite"),
        (BYTES.astype("float32"), r"\[0, 255\]"),
    ],
)
def test_anything_else_is_refused(x, problem):
    with pytest.raises(UsageError, match=problem) as raised:
        as_examples(x, PICTURES)
    assert raised.value.code == "DK019"
    assert raised.value.fix


def test_count_and_data_without_raw_values():
    with pytest.raises(UsageError, match="shape \\(7, 3, 4, 5\\)"):
        as_examples(BYTES, PICTURES, count=7)
    with pytest.raises(UsageError, match="no raw values"):
        as_examples(np.arange(4).reshape(2, 2), VECTORS)
    assert as_examples(100 * torch.ones(2, 2), VECTORS).max() == 100


def test_pixels_of_0_to_1_are_reported():
    with pytest.warns(UserWarning, match="2 x - 1"):
        as_examples(BYTES / 255, PICTURES)


def test_the_fixes_work():
    assert as_examples(torch.as_tensor(BYTES.transpose(0, 2, 3, 1)).movedim(-1, 1), PICTURES).shape == BYTES.shape
    assert as_examples(BYTES[0][None], PICTURES).shape == (1, 3, 4, 5)
    assert as_examples(BYTES.astype("float32") / 127.5 - 1, PICTURES).min() >= -1
