"""The U-Net: its options, sizes, errors and numerics."""

from __future__ import annotations

import copy
from typing import Any, get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from diffkit.ddpm.attention import CrossAttention, SelfAttention
from diffkit.ddpm.blocks import Downsample, ResidualBlock, Upsample, from_patches, to_patches
from diffkit.ddpm.embedding import sinusoid
from diffkit.ddpm.fit import group_count
from diffkit.ddpm.initialisation import Initialisation, variance_scaling_
from diffkit.ddpm.unet import UNet
from diffkit.errors import RecipeError, UsageError
from diffkit.network import Shape

SHAPE = Shape(2, 3, (8, 8))
SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
T = torch.tensor([0.0, 17.0, 998.5])


def _net(shape: Shape = SHAPE, **options: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(shape, **{**SMALL, "initialisation": "torch", **options}).eval()


def _x(batch: int = 3, size: tuple[int, ...] = (8, 8), channels: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def _count(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_cifar10_has_the_published_number_of_parameters() -> None:
    """35.7 M, Ho et al. 2020, appendix B; the defaults are that network."""
    with torch.device("meta"):
        net = UNet(Shape(3, 3, (32, 32)))
    assert _count(net) == 35_746_307
    attended = [name for name, module in net.named_modules() if isinstance(module, SelfAttention)]
    assert len(attended) == 2 + 1 + 3  # at 16 x 16 on the way down, in the middle, at 16 x 16 on the way up


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"attention": ()}, True),
        ({"attention": (8, 4)}, True),
        ({"heads": 4}, False),
        ({"head_channels": 8}, False),
        ({"middle_attention": False}, True),
        ({"channels": 32}, True),
        ({"multipliers": (1, 3)}, True),
        ({"blocks": 2}, True),
        ({"time": "scale-shift"}, True),
        ({"embedding": "openai"}, False),
        ({"downsample": "conv"}, False),
        ({"downsample": "average"}, True),
        ({"downsample": "resblock"}, True),
        ({"upsample": "bilinear"}, False),
        ({"upsample": "transposed"}, True),
        ({"upsample": "resblock"}, True),
        ({"initialisation": "ddpm"}, False),
        ({"initialisation": "ddpm-zero"}, False),
        ({"initialisation": "openai"}, False),
        ({"groups": 2}, False),
        ({"norm_eps": 0.1}, False),
        ({"patch": 2}, True),
    ],
    ids=str,
)
def test_every_option_changes_the_output(options: dict[str, Any], parameters: bool) -> None:
    """pains 25. Where the weights are of the same shapes, they are the same weights."""
    plain, other = _net(), _net(**options)
    if "initialisation" not in options:
        assert (_count(plain) != _count(other)) == parameters
        if not parameters:
            other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert (plain(_x(), T) - other(_x(), T)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 8, 12)])
def test_patches_are_channels_of_the_finest_map(size: tuple[int, ...]) -> None:
    """Each position holds the values of its own patch, and the way back is exact; in two dimensions it is torch's."""
    x = _x(size=size)
    divided = to_patches(x, 4)
    assert divided.shape == (3, 2 * 4 ** len(size), *(side // 4 for side in size))
    first = x[(..., *(slice(4) for _ in size))]
    assert torch.equal(divided.flatten(2)[..., 0], first.flatten(1))
    assert torch.equal(from_patches(divided, 4), x)
    if len(size) == 2:
        assert torch.equal(divided, nn.functional.pixel_unshuffle(x, 4))


def test_a_patched_network_is_the_plain_one_between_patches() -> None:
    """The same weights on data that are divided by hand give the same output, with `concat` beside x."""
    patched, x = _net(Shape(2, 3, (8, 8), extra_channels=1), patch=2), _x()
    plain = _net(Shape(8, 12, (4, 4), extra_channels=4))
    plain.load_state_dict(patched.state_dict())
    mask = _x(channels=1)
    with torch.no_grad():
        expected = plain(to_patches(x, 2), T, concat=to_patches(mask, 2))
        assert torch.equal(to_patches(patched(x, T, concat=mask), 2), expected)


def test_patches_that_do_not_fit_name_those_that_do() -> None:
    with pytest.raises(RecipeError) as caught:
        _net(patch=3)
    assert caught.value.code == "DK140"
    assert "1, 2, 4, 8" in caught.value.render()
    with pytest.raises(RecipeError, match="divisible by 16, got size"):
        _net(patch=8)
    with pytest.raises(UsageError, match="divisible by 4") as wrong:
        _net(patch=2)(_x(size=(8, 10)), T)
    assert wrong.value.code == "DK040"


def test_dropout_acts_in_training_only() -> None:
    """pains 25"""
    plain, dropping = _net(), _net(dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(_x(), T), dropping(_x(), T))
        dropping.train()
        assert not torch.equal(dropping(_x(), T), dropping(_x(), T))
        torch.manual_seed(3)
        first = dropping(_x(), T)
        torch.manual_seed(3)
        assert torch.equal(first, dropping(_x(), T))


@pytest.mark.parametrize("options", [{}, {"time": "scale-shift", "downsample": "resblock", "upsample": "resblock"}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    net = _net(Shape(2, 3, (8, 8), classes=2), **options).train()
    net(_x(), T, torch.tensor([0, 1, 2])).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        if not name.endswith("qkv.bias"):  # a constant in k changes no softmax
            assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("initialisation", ["ddpm", "ddpm-zero", "openai", "torch"])
def test_starts_silent_unless_told_otherwise(initialisation: str) -> None:
    """Zero layers: conv2 of each block, the output of attention, the last conv; 1e-10 in the authors' code."""
    net = _net(initialisation=initialisation)
    with torch.no_grad():
        size = net(_x(), T).abs().max().item()
    expected = {"ddpm": (1e-8, 1e-3), "ddpm-zero": (0, 0), "openai": (0, 0), "torch": (0.05, 10)}[initialisation]
    assert expected[0] <= size <= expected[1]


def test_variance_scaling() -> None:
    weight = torch.empty(256, 128, 3, 3)
    torch.manual_seed(0)
    variance_scaling_(weight, 1.0)
    fan_avg = 9 * (256 + 128) / 2
    assert weight.var().item() == pytest.approx(1 / fan_avg, rel=0.01)
    assert weight.abs().max().item() <= (3 / fan_avg) ** 0.5
    variance_scaling_(weight, 1e-10)
    assert weight.std().item() == pytest.approx(1e-5 / fan_avg**0.5, rel=0.01)


def test_fused_layers_are_drawn_as_if_apart() -> None:
    torch.manual_seed(0)
    fused = Initialisation("ddpm").layer(nn.Linear(128, 3 * 128), pieces=3)
    assert fused.weight.abs().max().item() == pytest.approx((3 / 128) ** 0.5, rel=0.01)
    assert fused.bias.abs().max() == 0


def test_sinusoid_follows_its_formula() -> None:
    """Reproduction notes, section 5: [sin, cos] with half - 1, or [cos, sin] with half."""
    half = 8
    t = T.double()
    for order, divisor in (("ho", half - 1), ("openai", half)):
        angle = t[:, None] * torch.tensor([10000.0 ** (-k / divisor) for k in range(half)], dtype=torch.float64)
        parts = [angle.sin(), angle.cos()] if order == "ho" else [angle.cos(), angle.sin()]
        got = sinusoid(t, 2 * half, order)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.cat(parts, 1), rtol=0, atol=1e-12)


def test_sinusoid_is_not_computed_in_low_precision() -> None:
    """pains 8"""
    assert sinusoid(torch.tensor([998.0], dtype=torch.bfloat16), 8).dtype == torch.float32


def test_asymmetric_padding_is_that_of_tensorflow() -> None:
    """SAME pads an even size by one pixel in all, at its end: out[i, j] reads rows 2i to 2i + 2."""
    down = Downsample(1, "conv-asymmetric", Initialisation("torch"))
    assert down.conv is not None
    nn.init.constant_(down.conv.weight, 1.0)
    nn.init.zeros_(down.conv.bias)  # type: ignore[arg-type]
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    want = [
        [0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10, 2 + 3 + 6 + 7 + 10 + 11],
        [8 + 9 + 10 + 12 + 13 + 14, 10 + 11 + 14 + 15],
    ]
    assert down(x, x).tolist() == [[want]]


@pytest.mark.parametrize("side", [1, 2, 5, 16])
def test_align_corners_picks_the_same_pixels(side: int) -> None:
    """DDPM's authors upsample with align_corners=True: source = round(i (H - 1) / (2H - 1))."""
    up = Upsample(1, "nearest", Initialisation("torch"))
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)  # type: ignore[arg-type]
    x = torch.randn(1, 1, side, side)
    source = [round(i * (side - 1) / (2 * side - 1)) for i in range(2 * side)]
    assert torch.equal(up(x, x), x[:, :, source][:, :, :, source])


@pytest.mark.parametrize(
    ("size", "multipliers"),
    [((28, 28), (1, 2, 2)), ((7, 7), (1,)), ((14, 14), (1, 2)), ((12, 8), (1, 1, 1)), ((1, 1), (1,))],
)
@pytest.mark.parametrize("options", [{}, {"downsample": "conv", "upsample": "transposed"}, {"downsample": "average"}])
def test_sizes(size: tuple[int, int], multipliers: tuple[int, ...], options: dict[str, Any]) -> None:
    """Skips meet maps of their own size, also where sizes are no powers of two or not square."""
    net = _net(Shape(2, 5, size), multipliers=multipliers, attention=(), **options)
    assert net(_x(3, size), T).shape == (3, 5, *size)


def test_larger_images_than_it_was_built_for() -> None:
    assert _net()(_x(3, (12, 20)), T).shape == (3, 3, 12, 20)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (Shape(1, 1, (28, 28)), {"multipliers": (1, 2, 2, 2)}, "divisible by 8, got size"),
        (Shape(1, 1, (8, 6)), {"multipliers": (1, 1, 1)}, "divisible by 4, got size"),
        (Shape(2, 2), {}, "use network mlp for vectors"),
        (Shape(2, 2, (4, 4, 4, 4)), {}, "4 spatial dimensions"),
        (Shape(1, 1, (8,), conditions={"text": (6,)}), {}, r"condition text of shape \(tokens, width\), got \(6,\)"),
        (Shape(1, 1, (8,), conditions={"map": (3, 6)}), {}, r"condition map of shape \(width,\)"),
        (Shape(1, 1, (8,), conditions={"text": (3, 6)}), {"middle_attention": False}, "no attention to read them"),
        (SHAPE, {"attention": (5,)}, "no map of size 5"),
        (SHAPE, {"groups": 3}, "3 groups do not divide the 16 channels"),
        (SHAPE, {"heads": 5}, "5 heads do not divide the 32 channels"),
        (SHAPE, {"head_channels": 5}, "heads of 5 channels do not divide the 32"),
        (SHAPE, {"heads": 2, "head_channels": 8}, "contradict"),
        (SHAPE, {"attention": (), "middle_attention": False, "heads": 2}, "has no attention"),
        (SHAPE, {"upsample": "banana"}, 'unknown upsample "banana"'),
        (SHAPE, {"downsample": "nearest"}, 'unknown downsample "nearest"'),
        (SHAPE, {"time": "film"}, 'unknown time "film"'),
        (SHAPE, {"embedding": "fourier"}, 'unknown embedding "fourier"'),
        (SHAPE, {"initialisation": "xavier"}, 'unknown initialisation "xavier"'),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_options_that_do_not_fit(shape: Shape, options: dict[str, Any], message: str) -> None:
    """pains 10"""
    with pytest.raises(RecipeError, match=message) as caught:
        _net(shape, **{**({"attention": ()} if shape is not SHAPE else {}), **options})
    assert caught.value.code == "DK140"


def test_errors_name_what_is_allowed() -> None:
    with pytest.raises(RecipeError) as attention:
        _net(attention=(5,))
    assert "allowed: 8, 4" in attention.value.render()
    with pytest.raises(RecipeError, match="at most 3 multipliers, or pad the data to a multiple of 8"):
        _net(Shape(1, 1, (28, 28)), multipliers=(1, 2, 2, 2), attention=())


def test_default_attention_is_skipped_where_no_map_has_its_size() -> None:
    options = {**SMALL}
    del options["attention"]
    torch.manual_seed(0)
    net = UNet(SHAPE, **options)
    assert sum(isinstance(module, SelfAttention) for module in net.modules()) == 1


@pytest.mark.parametrize(
    ("x", "t", "label", "code"),
    [
        (torch.zeros(3, 2, 8), T, None, "DK040"),
        (torch.zeros(3, 1, 8, 8), T, None, "DK040"),
        (torch.zeros(2, 2, 8, 8), T, None, "DK040"),
        (torch.zeros(3, 2, 8, 8), T[:, None], None, "DK040"),
        (torch.zeros(3, 2, 8, 7), T, None, "DK040"),
        (torch.zeros(3, 2, 8, 8), T, torch.zeros(3, dtype=torch.long), "DK041"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, t: Tensor, label: Tensor | None, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        _net()(x, t, label)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("channels", 2),
        ("channels", 17),
        ("multipliers", ()),
        ("multipliers", (1, 0)),
        ("blocks", 0),
        ("attention", (0,)),
        ("heads", 0),
        ("head_channels", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("groups", 0),
        ("norm_eps", 0.0),
        ("time", "film"),
    ],
)
def test_constraints_are_in_the_signature(option: str, value: object) -> None:
    """A recipe is refused by them, before anything is built."""
    hint = get_type_hints(UNet.__init__, include_extras=True)[option]
    with pytest.raises(ValidationError):
        TypeAdapter(hint).validate_python(value)


@pytest.mark.parametrize(
    ("channels", "count"), [(128, 32), (512, 32), (64, 16), (48, 12), (40, 10), (36, 9), (7, 1), (3, 1)]
)
def test_groups_adapt_to_few_channels(channels: int, count: int) -> None:
    assert group_count(channels, None) == count
    assert channels % count == 0


def test_labels() -> None:
    """K classes make K + 1 rows; the last is the null class, which is also what no label means."""
    net = _net(Shape(2, 3, (8, 8), classes=4))
    assert net.embedding.table is not None
    assert net.embedding.table.weight.shape == (5, 64)
    x, t = _x(1).expand(6, -1, -1, -1), torch.full((6,), 5.0)
    with torch.no_grad():
        each = net(x[:5], t[:5], torch.arange(5))
        none = net(x[:1], t[:1])
    for i in range(5):
        for j in range(i):
            assert (each[i] - each[j]).abs().max() > 1e-4
    torch.testing.assert_close(none[0], each[4])


def test_parameters_of_an_augmentation() -> None:
    """Numbers about what was done change the output, zeros and nothing are the same, and none may be ignored."""
    net, x, told = _net(augment=9), _x(), torch.zeros(3, 9)
    with torch.no_grad():
        plain = net(x, T)
        torch.testing.assert_close(net(x, T, augment=told), plain)
        told[0, 4] = 1.0
        changed = net(x, T, augment=told)
    assert (changed[0] - plain[0]).abs().max() > 1e-4
    torch.testing.assert_close(changed[1:], plain[1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="parameters of an augmentation") as caught:
        _net()(x, T, augment=told)
    assert caught.value.code == "DK041"


def test_condition_dropout_mixes_null_and_real_labels_in_one_batch() -> None:
    net = _net(Shape(2, 3, (8, 8), classes=4))
    x = _x()
    with torch.no_grad():
        mixed = net(x, T, torch.tensor([1, 4, 2]))
        torch.testing.assert_close(mixed[1], net(x, T)[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed[0], net(x, T, torch.tensor([1, 1, 1]))[0], rtol=1e-5, atol=1e-5)


def test_an_example_does_not_depend_on_its_batch() -> None:
    """pains 16"""
    net, x, t = _net().double(), _x(7).double(), torch.linspace(0, 999, 7)
    with torch.no_grad():
        together = net(x, t)
        for i in range(7):
            torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)


def test_deterministic_in_evaluation() -> None:
    net = _net(dropout=0.3)
    with torch.no_grad():
        assert torch.equal(net(_x(), T), net(_x(), T))


def test_the_noise_level_matters() -> None:
    with torch.no_grad():
        out = _net()(_x(1).expand(2, -1, -1, -1), torch.tensor([3.0, 4.0]))
    assert (out[0] - out[1]).abs().max() > 1e-4


def test_channels_last_is_the_same_function() -> None:
    net = _net().double()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = _x().double()
    with torch.no_grad():
        out = last(x.contiguous(memory_format=torch.channels_last), T)
        torch.testing.assert_close(out, net(x, T), rtol=1e-10, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_holds_for_one_channel() -> None:
    """One channel is both layouts at once, so that here the weights alone say which is meant."""
    net = _net(Shape(1, 1, (8, 8))).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen: list[bool] = []
    for block in net.modules():
        if isinstance(block, ResidualBlock):
            block.register_forward_hook(
                lambda _m, _i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    net(_x(channels=1), T)
    assert len(seen) == 8
    assert all(seen)


def test_bf16_autocast_stays_close() -> None:
    """pains 8"""
    net = _net(Shape(2, 3, (8, 8), classes=2)).train()
    label = torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        low = net(_x(), T, label)
    assert low.dtype == torch.bfloat16
    low.float().square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    high = net(_x(), T, label)
    assert (low - high).abs().max() < 0.1 * high.abs().max()


def test_whole_network_in_bf16() -> None:
    assert _net().bfloat16()(_x().bfloat16(), T).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    """No control flow depends on data, which would also stall a GPU (pains 7)."""
    net = _net(Shape(2, 3, (8, 8), classes=2))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    label = torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(compiled(_x(), T, label), net(_x(), T, label))


@pytest.mark.parametrize("size", [(16,), (4, 8, 4)])
@pytest.mark.parametrize(
    ("down", "up"), [("conv-asymmetric", "nearest"), ("average", "bilinear"), ("conv", "transposed")]
)
def test_series_and_volumes(size: tuple[int, ...], down: Any, up: Any) -> None:
    """The same network with convolutions of one and three dimensions."""
    shape = Shape(2, 4, size, 3, conditions={"text": (5, 6)}, extra_channels=1)
    net = UNet(shape, 8, (1, 2), 1, attention=(), downsample=down, upsample=up, initialisation="torch").eval()
    x, c_noise, label = torch.randn(2, 2, *size), torch.tensor([3.0, 500.0]), torch.tensor([0, 3])
    cond = {"text": torch.randn(2, 5, 6), "concat": torch.randn(2, 1, *size)}
    with torch.no_grad():
        y = net(x, c_noise, label, **cond)
        assert y.shape == (2, 4, *size)
        for name, value in cond.items():
            assert not torch.equal(net(x, c_noise, label, **{**cond, name: value + 1.0}), y)
    with pytest.raises(UsageError, match="network unet takes x"):
        net(torch.randn(2, 2, 8, 8), c_noise)


def test_conditions_that_are_absent_are_null() -> None:
    """No text is read, no channels are zeros, no vector adds nothing."""
    shape = Shape(1, 1, (8, 8), conditions={"text": (5, 6), "size": (3,), "age": ()}, extra_channels=2)
    net = UNet(shape, 8, (1, 2), 1, attention=(4,), initialisation="torch").eval()
    x, c_noise = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    null = {"size": torch.zeros(2, 3), "age": torch.zeros(2), "concat": torch.zeros(2, 2, 8, 8)}
    nothing = {"text": torch.randn(2, 5, 6), "text_mask": torch.zeros(2, 5, dtype=torch.bool)}
    with torch.no_grad():
        torch.testing.assert_close(net(x, c_noise, **null), net(x, c_noise))
        ages = net(x, c_noise, age=torch.tensor([3.0, 7.0]))
        assert not torch.equal(ages, net(x, c_noise))
        bias = sum(m.out.bias.abs().max() for m in net.modules() if isinstance(m, CrossAttention))
        assert bias > 0
        assert torch.isfinite(net(x, c_noise, **nothing)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": torch.zeros(2, 5, 7)}, r"`text` must be \(2, L, 6\)"),
        ({"text": torch.zeros(2, 5, 6), "text_mask": torch.zeros(2, 4, dtype=torch.bool)}, "`text_mask` must be bool"),
        ({"text_mask": torch.zeros(2, 5, dtype=torch.bool)}, "given without `text`"),
        ({"size": torch.zeros(2, 4)}, r"`size` must be \(2, 3\)"),
        ({"colour": torch.zeros(2, 3)}, "without the condition colour"),
        ({"concat": torch.zeros(2, 1, 8, 8)}, "`concat` must have the shape"),
    ],
)
def test_conditions_that_do_not_fit(given: dict[str, torch.Tensor], message: str) -> None:
    shape = Shape(1, 1, (8, 8), conditions={"text": (5, 6), "size": (3,)}, extra_channels=2)
    net = UNet(shape, 8, (1, 2), 1, attention=(4,))
    with pytest.raises(UsageError, match=message) as caught:
        net(torch.randn(2, 1, 8, 8), torch.zeros(2), **given)
    assert caught.value.code == "DK041"
    with pytest.raises(UsageError, match="without text"):
        UNet(Shape(1, 1, (8, 8)), 8, (1, 2), 1, attention=(4,))(
            torch.zeros(2, 1, 8, 8), torch.zeros(2), text=torch.zeros(2, 5, 6)
        )
