"""`unet` computes what diffusers' UNet2DModel computes, given its weights."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.importing import unet_options
from diffkit_diffusers.unet_config import config_of, options_of, read_config
from diffkit_diffusers.weights import diffusers_weights, unet_weights

from diffkit import CheckpointError, Shape, UsageError
from diffkit.ddpm.unet import UNet

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
TINY = {
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
CASES: dict[str, tuple[Shape, dict[str, Any]]] = {
    "cifar10": (Shape(3, 3, (32, 32)), CIFAR10),
    "28x28, heads, openai embedding, symmetric padding": (
        Shape(1, 2, (28, 28)),
        TINY | {"sample_size": 28, "attention_head_dim": 8, "flip_sin_to_cos": True, "freq_shift": 0},
    ),
    "scale-shift, resampling blocks, labels": (
        Shape(1, 2, (12, 8), classes=5),
        TINY
        | {
            "down_block_types": ("AttnDownBlock2D",) * 2,
            "up_block_types": ("AttnUpBlock2D",) * 2,
            "attention_head_dim": 16,
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "num_class_embeds": 6,
            "attn_norm_num_groups": 8,
        },
    ),
    "no attention in the middle": (
        Shape(1, 2, (8, 8)),
        TINY | {"add_attention": False, "attention_head_dim": 8, "freq_shift": 1, "flip_sin_to_cos": False},
    ),
}


def _pair(case: str) -> tuple[UNet, Any, Shape]:
    shape, config = CASES[case]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # no weight is zero, no norm is the identity
            weight.add_(0.02 * torch.randn_like(weight))
    found = read_config(dict(theirs.config))
    ours = UNet(shape, **options_of(found, shape.size)).eval()
    ours.load_state_dict(unet_weights(theirs.state_dict(), found.layout))
    return ours, theirs, shape


SMALL = [case for case in CASES if case != "cifar10"]


@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    [("cifar10", torch.float32, 1e-5), *((case, torch.float64, 1e-9) for case in SMALL)],
)
def test_outputs_equal(case: str, dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the size of the output, as random weights leave it at any size."""
    ours, theirs, shape = _pair(case)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(2, shape.in_channels, *shape.size, dtype=dtype)
    t = torch.tensor([3.0, 870.0])
    label = None if shape.classes is None else torch.tensor([4, 5])
    with torch.no_grad():
        want = theirs(x, t, label).sample
        got = ours(x, t, label)
    assert want.std() > 1e-3
    torch.testing.assert_close(got / want.std(), want / want.std(), rtol=tolerance, atol=tolerance)


def test_gradients_equal() -> None:
    ours, theirs, shape = _pair("28x28, heads, openai embedding, symmetric padding")
    ours, theirs = ours.double(), theirs.double()
    x, t = torch.randn(2, shape.in_channels, *shape.size, dtype=torch.float64), torch.tensor([3.0, 870.0])
    theirs(x, t).sample.square().mean().backward()
    ours(x, t).square().mean().backward()
    layout = read_config(dict(theirs.config)).layout
    want = unet_weights({name: weight.grad for name, weight in theirs.named_parameters()}, layout)
    assert want.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, want[name], rtol=1e-8, atol=1e-10)


def test_lsun_has_as_many_parameters() -> None:
    """google/ddpm-church-256, google/ddpm-celebahq-256: 114 M."""
    kinds = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            **CIFAR10
            | {
                "block_out_channels": (128, 128, 256, 256, 512, 512),
                "down_block_types": kinds,
                "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
            }
        )
        ours = UNet(Shape(3, 3, (256, 256)), multipliers=(1, 1, 2, 2, 4, 4))
    assert sum(w.numel() for w in ours.parameters()) == sum(w.numel() for w in theirs.parameters()) == 113_673_219


@pytest.mark.parametrize("case", SMALL)
def test_weights_and_config_come_back_as_they_were(case: str) -> None:
    """Byte by byte, and diffusers builds from our config what it had."""
    ours, theirs, shape = _pair(case)
    found = read_config(dict(theirs.config))
    options = {"heads": 1, "head_channels": None, "augment": 0, "patch": 1} | options_of(found, shape.size)
    config = config_of(ours, shape, options)
    assert config.layout == found.layout
    back = diffusers_weights(ours.state_dict(), config.layout)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())
    rebuilt = diffusers.UNet2DModel(**config.model_dump(mode="json")).eval()
    rebuilt.load_state_dict(back)
    x = torch.randn(2, shape.in_channels, *shape.size)
    label = None if shape.classes is None else torch.tensor([4, 5])
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(x, 5, label).sample, theirs(x, 5, label).sample, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "down_block_types.1"),
        ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "mirror"),
        ({"block_out_channels": (16, 24)}, "multiples"),
        ({"block_out_channels": (16, 32, 32)}, "length"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"time_embedding_dim": 100}, "time_embedding_dim"),
        ({"flip_sin_to_cos": False}, "(Ho et al.) or true"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"resnet_time_scale_shift": "scale_shift"}, "must equal norm_num_groups"),
        ({"layers_per_block": "2"}, "layers_per_block"),
    ],
)
def test_what_unet_cannot_express_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(TINY | change)
    assert caught.value.code == "DK081"
    assert any(message in note for note in caught.value.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": None, "multipliers": (1, 2)}, "number of groups"),
        ({"downsample": "average"}, "average"),
        ({"upsample": "bilinear"}, "bilinear"),
        ({"upsample": "transposed"}, "transposed"),
        ({"augment": 2}, "augmentation"),
        ({"patch": 2}, "patches"),
        ({"multipliers": (2, 2)}, "start with 1"),
        ({"heads": 2, "attention": (8, 4)}, "one width of heads"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(options: dict[str, Any], message: str) -> None:

    given = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 8} | options
    shape = Shape(1, 1, (8, 8))
    network = UNet(shape, **given)
    with pytest.raises(UsageError, match=message):
        config_of(network, shape, unet_options(network, given))


def test_heads_are_counted_by_their_width() -> None:

    shape = Shape(1, 1, (8, 8))
    for given, width in (({"heads": 4}, 8), ({"head_channels": 16}, 16), ({}, None)):
        options = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 8} | given
        network = UNet(shape, **options)
        assert config_of(network, shape, unet_options(network, options)).attention_head_dim == width


def test_weights_of_another_network_are_named() -> None:
    _, theirs, _ = _pair("no attention in the middle")
    layout = read_config(dict(theirs.config)).layout
    weights = theirs.state_dict()
    missing = {name: value for name, value in weights.items() if name != "conv_in.bias"}
    with pytest.raises(CheckpointError) as caught:
        unet_weights(missing, layout)
    assert caught.value.notes == ("missing: conv_in.bias",)
    with pytest.raises(CheckpointError) as caught:
        unet_weights(weights | {"stranger": weights["conv_in.bias"]}, layout)
    assert caught.value.notes == ("unexpected: stranger",)
    with pytest.raises(CheckpointError):
        diffusers_weights({"enter.weight": weights["conv_in.weight"]}, layout)
