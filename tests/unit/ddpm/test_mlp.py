"""The MLP for vectors: its options, errors and numerics."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffkit.ddpm.mlp import MLP
from diffkit.errors import RecipeError, UsageError
from diffkit.network import Shape

SHAPE = Shape(2, 3)
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "embedding_channels": 8, "initialisation": "torch"}
T = torch.tensor([0.0, 17.0, 998.5])


def _net(shape: Shape = SHAPE, **options: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(shape, **{**SMALL, **options}).eval()


def _x(batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(1))


def test_shape() -> None:
    assert _net()(_x(), T).shape == (3, 3)
    assert MLP(Shape(5, 5, classes=3))(torch.zeros(2, 5), torch.zeros(2), torch.tensor([0, 3])).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "same_shapes"),
    [
        ({"width": 24}, False),
        ({"depth": 3}, False),
        ({"embedding_channels": 12}, False),
        ({"embedding": "openai"}, True),
        ({"activation": "gelu"}, True),
        ({"activation": "relu"}, True),
        ({"activation": "tanh"}, True),
        ({"initialisation": "ddpm"}, False),
        ({"initialisation": "ddpm-zero"}, False),
        ({"initialisation": "openai"}, False),
    ],
    ids=str,
)
def test_every_option_changes_the_output(options: dict[str, Any], same_shapes: bool) -> None:
    """pains 25"""
    plain, other = _net(), _net(**options)
    if same_shapes:
        other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert (plain(_x(), T) - other(_x(), T)).abs().max() > 1e-4


def test_dropout_acts_in_training_only() -> None:
    """pains 25"""
    plain, dropping = _net(), _net(dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(_x(), T), dropping(_x(), T))
        dropping.train()
        assert not torch.equal(dropping(_x(), T), dropping(_x(), T))


def test_every_parameter_gets_a_gradient() -> None:
    net = _net(Shape(2, 3, classes=2)).train()
    net(_x(), T, torch.tensor([0, 1, 2])).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(("initialisation", "largest"), [("ddpm", 1e-3), ("ddpm-zero", 0.0), ("openai", 0.0)])
def test_starts_silent(initialisation: str, largest: float) -> None:
    with torch.no_grad():
        assert _net(initialisation=initialisation)(_x(), T).abs().max() <= largest


def test_labels() -> None:
    """The last row of the table is the null class, which is also what no label means."""
    net = _net(Shape(2, 3, classes=2))
    x, t = _x(1).expand(3, -1), torch.full((3,), 5.0)
    with torch.no_grad():
        each = net(x, t, torch.arange(3))
        torch.testing.assert_close(net(x, t)[0], each[2])
    assert (each[0] - each[1]).abs().max() > 1e-4
    assert (each[0] - each[2]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (Shape(1, 1, (8, 8)), {}, "use network unet for images"),
        (Shape(1, 1, (8,)), {}, r"the data has size \(8,\)"),
        (SHAPE, {"activation": "swish"}, 'unknown activation "swish"'),
        (SHAPE, {"embedding": "fourier"}, 'unknown embedding "fourier"'),
        (SHAPE, {"initialisation": "xavier"}, 'unknown initialisation "xavier"'),
    ],
)
def test_options_that_do_not_fit(shape: Shape, options: dict[str, Any], message: str) -> None:
    """pains 10"""
    with pytest.raises(RecipeError, match=message) as caught:
        _net(shape, **options)
    assert caught.value.code == "DK140"


@pytest.mark.parametrize(
    ("x", "t", "label", "code"),
    [
        (torch.zeros(3, 2, 1), T, None, "DK040"),
        (torch.zeros(3, 3), T, None, "DK040"),
        (torch.zeros(2, 2), T, None, "DK040"),
        (torch.zeros(3, 2), T, torch.zeros(3, dtype=torch.long), "DK041"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, t: Tensor, label: Tensor | None, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        _net()(x, t, label)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0),
        ("depth", 0),
        ("embedding_channels", 5),
        ("embedding_channels", 2),
        ("dropout", 1.0),
        ("activation", "x"),
    ],
)
def test_constraints_are_in_the_signature(option: str, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(get_type_hints(MLP.__init__, include_extras=True)[option]).validate_python(value)


def test_an_example_does_not_depend_on_its_batch() -> None:
    """pains 16"""
    net, x, t = _net().double(), _x(7).double(), torch.linspace(0, 999, 7)
    with torch.no_grad():
        together = net(x, t)
        for i in range(7):
            torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)


def test_bf16_autocast_and_compile() -> None:
    """pains 7, 8"""
    net = _net()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(_x(), T).dtype == torch.bfloat16
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(_x(), T), net(_x(), T))


def test_learns_a_denoiser() -> None:
    """A few steps of regression onto eps of x0 ~ N(0, 1) at two levels come near the optimum eps = sigma x."""
    torch.manual_seed(0)
    net = MLP(Shape(1, 1), width=32, depth=2, embedding_channels=16)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        t = torch.randint(0, 2, (256,)).float() * 500
        sigma = torch.where(t == 0, 0.3, 0.9)[:, None]
        x0, eps = torch.randn(256, 1), torch.randn(256, 1)
        loss = (net((1 - sigma**2).sqrt() * x0 + sigma * eps, t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.linspace(-1.5, 1.5, 9)[:, None]
    with torch.no_grad():
        for t, sigma in ((0.0, 0.3), (500.0, 0.9)):
            assert (net(x, torch.full((9,), t)) - sigma * x).abs().max() < 0.3
