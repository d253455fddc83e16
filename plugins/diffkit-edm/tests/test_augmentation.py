"""The augmentation and the labels it gives, part by part."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffkit_edm.augmentation import EDM
from torch import Tensor

from diffkit import DataError

OFF: dict[str, Any] = {"x_flip": False, "y_flip": False, "scale": 0.0, "rotate": 0.0, "stretch": 0.0, "translate": 0.0}


def blob(size: int = 32, at: tuple[float, float] = (6.0, 2.0), wide: float = 2.0, high: float = 2.0) -> Tensor:
    """One smooth spot, `at` = (right, down) of the middle: (1, 1, size, size)."""
    i = torch.arange(size) - (size - 1) / 2
    return torch.exp(-0.5 * (((i[None, :] - at[0]) / wide) ** 2 + ((i[:, None] - at[1]) / high) ** 2))[None, None]


def middle(x: Tensor) -> tuple[float, float]:
    """Where the mass of a picture lies: (right, down) of the middle."""
    i = torch.arange(x.shape[-1]) - (x.shape[-1] - 1) / 2
    mass = x.sum()
    return float((x * i[None, :]).sum() / mass), float((x * i[:, None]).sum() / mass)


def apply(x: Tensor, uniforms: dict[int, float], **options: Any) -> tuple[Tensor, Tensor]:
    u = torch.full((len(x), EDM.draws), 0.9)
    for index, value in uniforms.items():
        u[:, index] = value
    x, cond = EDM(**{**OFF, **options})(x, u, {})
    return x, cond["augment"][0]


def normal(z: float) -> float:
    """The uniform number of a normal one."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_flips_are_exact_and_labelled() -> None:
    x = torch.randn(1, 3, 8, 6)
    for options, uniforms, axis, label in (
        ({"x_flip": True}, {0: 0.2}, 3, 0),
        ({"y_flip": True}, {1: 0.2, 2: 0.0}, 2, 1),
    ):
        y, labels = apply(x, uniforms, **options)
        assert torch.equal(y, x.flip(axis))
        assert labels.tolist() == [1.0 if i == label else 0.0 for i in range(9)]
    same, labels = apply(x, {0: 0.8}, x_flip=True)
    assert torch.equal(same, x)
    assert not labels.any()


def test_scaling() -> None:
    """By 2^(scale a), a = 2: the spot moves away from the middle."""
    y, labels = apply(blob(), {3: 0.0, 4: normal(2.0)}, scale=0.2)
    right, down = middle(y)
    assert (right, down) == pytest.approx((6.0 * 2**0.4, 2.0 * 2**0.4), abs=0.05)
    assert labels[2].item() == pytest.approx(2.0, abs=1e-4)


def test_rotation() -> None:
    """By pi / 2: (6, 2) goes to (-2, 6), down being positive."""
    y, labels = apply(blob(), {5: 0.0, 6: 0.75}, rotate=1.0)
    assert middle(y) == pytest.approx((-2.0, 6.0), abs=0.05)
    assert labels[3:5].tolist() == pytest.approx([math.cos(math.pi / 2) - 1, 1.0], abs=1e-6)
    _, less = apply(blob(), {5: 0.0, 6: 0.75}, rotate=0.5)
    assert less[4].item() == pytest.approx(math.sin(math.pi / 4), abs=1e-6)


def test_stretching() -> None:
    """Along direction 0 by 2^(stretch a), across by the inverse."""
    y, labels = apply(blob(), {7: 0.0, 8: normal(1.5), 9: 0.5}, stretch=0.2)
    assert middle(y) == pytest.approx((6.0 * 2**0.3, 2.0 * 2**-0.3), abs=0.05)
    assert labels[5:7].tolist() == pytest.approx([1.5, 0.0], abs=1e-4)


def test_translation() -> None:
    """By an eighth of the size times a normal number; pictures need not be square."""
    x = blob()[..., 4:-4, :]
    y, labels = apply(x, {10: 0.0, 11: normal(0.5), 12: normal(-1.0)}, translate=0.125)
    i = torch.arange(24) - 11.5
    assert middle(y[..., :, :].sum(-2, keepdim=True).expand(1, 1, 32, 32))[0] == pytest.approx(6.0 + 2.0, abs=0.1)
    assert float((y * i[:, None]).sum() / y.sum()) == pytest.approx(2.0 - 3.0, abs=0.1)
    assert labels[7:].tolist() == pytest.approx([0.5, -1.0], abs=1e-4)


def test_parts_that_are_not_drawn_leave_the_example_as_it_is() -> None:
    x = torch.randn(2, 1, 8, 8)
    y, labels = apply(x, {}, scale=0.2, rotate=1.0, stretch=0.2, translate=0.125, y_flip=True)
    assert torch.equal(y, x)
    assert not labels.any()


def test_the_probability_is_that_of_each_part() -> None:
    u = torch.rand(4000, EDM.draws, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(4000, 1, 4, 4)
    _, cond = EDM(probability=0.3)(x, u, {"label": torch.arange(4000)})
    share = (cond["augment"] != 0).float().mean(0)
    assert share.tolist() == pytest.approx([0.5, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], abs=0.03)
    assert torch.equal(cond["label"], torch.arange(4000))


def test_labels_can_be_left_out() -> None:
    x, cond = EDM(labels=False)(torch.zeros(2, 1, 4, 4), torch.rand(2, EDM.draws), {})
    assert cond == {}
    assert x.shape == (2, 1, 4, 4)


def test_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="images"):
        EDM()(torch.zeros(2, 3), torch.rand(2, EDM.draws), {})
