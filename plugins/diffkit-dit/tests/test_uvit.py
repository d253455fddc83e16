"""`u-vit` is the network of Bao et al. 2023: parameter counts, its skip connections, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffkit_dit.uvit import UViT

from diffkit import RecipeError, Shape, UsageError

SMALL: dict[str, Any] = {"width": 32, "depth": 5, "heads": 4}
CASES = {
    ("S", 2): (Shape(3, 3, (32, 32)), 44),
    ("S", 4): (Shape(3, 3, (64, 64)), 44),
    ("M", 4): (Shape(3, 3, (64, 64), 1000), 131),
    ("L", 2): (Shape(4, 4, (32, 32), 1000), 287),
    ("H", 2): (Shape(4, 4, (32, 32), 1000), 501),
}


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_parameters_are_those_of_the_paper(size: Any, patch: int) -> None:
    """Bao et al. 2023, table 1."""
    shape, millions = CASES[size, patch]
    with torch.device("meta"):
        network = UViT(shape, size, patch)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_each_block_of_the_second_half_reads_the_mirrored_block() -> None:
    network = UViT(Shape(3, 3, (8, 8)), **SMALL).eval()
    outputs: list[torch.Tensor] = []
    skips: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
        block.register_forward_pre_hook(lambda module, args: skips.append(args[1]))
    with torch.no_grad():
        network(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]))
    assert skips[:3] == [None, None, None]
    assert skips[3] is outputs[1]
    assert skips[4] is outputs[0]


def test_misfits() -> None:
    with pytest.raises(RecipeError, match="depth is odd, got 4"):
        UViT(Shape(3, 3, (8, 8)), width=32, depth=4, heads=4)
    with pytest.raises(RecipeError, match="takes images"):
        UViT(Shape(2, 2))
    network = UViT(Shape(3, 3, (8, 8), 4), **SMALL)
    with pytest.raises(UsageError, match="learned positions for images of size"):
        network(torch.randn(2, 3, 8, 10), torch.zeros(2))
    with pytest.raises(UsageError, match="without text"):
        network(torch.randn(2, 3, 8, 8), torch.zeros(2), text=torch.zeros(2, 5, 6))
    with pytest.raises(UsageError, match="outside of the classes"):
        network(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 5]))
