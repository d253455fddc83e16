"""`dit` is the network of Peebles & Xie 2023: parameter counts, the model of diffusers, other sizes, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffkit_dit.dit import DiT
from diffkit_dit.transformer import positions, unpatch
from diffkit_dit.weights import dit_weights
from diffusers import DiTTransformer2DModel
from einops import rearrange

from diffkit import RecipeError, Shape, UsageError

LATENTS = Shape(4, 8, (32, 32), 1000)
SMALL: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3}
MILLIONS = {
    ("S", 2): 33, ("S", 4): 33, ("S", 8): 33, ("B", 2): 130, ("B", 4): 130, ("B", 8): 131,
    ("L", 2): 458, ("L", 4): 458, ("L", 8): 459, ("XL", 2): 675, ("XL", 4): 675, ("XL", 8): 676,
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "patch"), [pytest.param(*one, marks=[pytest.mark.slow] if one[1] > 2 else []) for one in MILLIONS]
)
def test_parameters_are_those_of_the_paper(size: Any, patch: int) -> None:
    """Peebles & Xie 2023, table 4."""
    with torch.device("meta"):
        network = DiT(LATENTS, size, patch)
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6) == MILLIONS[size, patch]


def test_parameters_of_the_authors_code() -> None:
    """Their train.py prints 675,129,632 for DiT-XL/2, which counts the fixed positions."""
    with torch.device("meta"):
        network = DiT(LATENTS, "XL")
    assert sum(p.numel() for p in (*network.parameters(), *network.buffers())) == 675_129_632


def theirs_and_ours(patch: int) -> tuple[DiTTransformer2DModel, DiT]:
    """A model of diffusers with random weights, the embedder of the first block in all blocks, and `dit` with them."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=16,
        patch_size=patch,
        num_embeds_ada_norm=10,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    ours = DiT(Shape(4, 8, (16, 16), 10), patch=patch, width=24, depth=3, heads=3, embedding="ho", norm_eps=1e-5).eval()
    ours.load_state_dict(dit_weights(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("patch", [2, 4])
def test_equals_the_model_of_diffusers(patch: int) -> None:
    theirs, ours = theirs_and_ours(patch)
    x, c_noise = torch.randn(3, 4, 16, 16), torch.tensor([0.0, 437.0, 999.0])
    label = torch.tensor([3, 0, 10])
    with torch.no_grad():
        want = theirs(x, timestep=c_noise, class_labels=label).sample
        torch.testing.assert_close(ours(x, c_noise, label), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x, c_noise)[2], want[2], rtol=1e-5, atol=1e-5)


def test_other_weights_are_refused() -> None:
    theirs, _ = theirs_and_ours(4)
    state = theirs.state_dict()
    with pytest.raises(UsageError, match="not a weight of DiTTransformer2DModel"):
        dit_weights({"down_blocks.0.weight": torch.zeros(1)})
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1.0
    with pytest.raises(UsageError, match="different embedders"):
        dit_weights(state)


def test_untrained_output_is_zero() -> None:
    """AdaLN-zero: gates and the last layer start at zero."""
    network = DiT(Shape(3, 3, (8, 8)), **SMALL)
    assert not network(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])).any()


def test_patches_return_to_their_places() -> None:
    x = torch.randn(2, 3, 8, 12)
    tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
    assert torch.equal(unpatch(tokens, 3, 4), x)


def test_positions_name_column_and_row() -> None:
    table = positions((2, 3), 8, (2, 3)).unflatten(0, (2, 3))
    assert torch.equal(table[0, :, :4], table[1, :, :4])  # the column
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])  # the row
    angles = torch.tensor([2.0, 0.02], dtype=torch.float64)
    assert torch.allclose(table[1, 2, :4], torch.cat([angles.sin(), angles.cos()]))
    assert torch.allclose(positions((4, 6), 8, (2, 3)).unflatten(0, (4, 6))[::2, ::2], table)


def test_another_size_is_taken() -> None:
    network = DiT(Shape(3, 3, (8, 8)), **SMALL)
    assert network(torch.randn(2, 3, 12, 16), torch.tensor([1.0, 2.0])).shape == (2, 3, 12, 16)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (Shape(2, 2), {}, "takes images"),
        (Shape(3, 3, (28, 28)), {"patch": 8}, "do not tile images"),
        (Shape(3, 3, (8, 8)), {"width": 40, "heads": 3}, "3 heads do not divide the width 40"),
        (Shape(3, 3, (8, 8)), {"width": 30, "heads": 3}, "divisible by 4"),
        (Shape(3, 3, (8, 8)), {"size": "XXL"}, "unknown size"),
    ],
)
def test_misfits(shape: Shape, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DiT(shape, **options)


def test_inputs_that_do_not_fit() -> None:
    network = DiT(Shape(3, 3, (8, 8)), **SMALL)
    with pytest.raises(UsageError, match="takes x"):
        network(torch.randn(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(UsageError, match="divisible by 2"):
        network(torch.randn(2, 3, 8, 7), torch.zeros(2))
    with pytest.raises(UsageError, match="without classes"):
        network(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 1]))
