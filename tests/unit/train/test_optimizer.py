"""Flat parameters, the update, the learning rate, settings."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffkit.train.config import DecayConfig, EmaConfig, OptimizerConfig, TrainConfig
from diffkit.train.optimizer import ALIGN, Flat, Update, rate

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 7), nn.Linear(7, 2))


def flat(module: nn.Module, channels_last: bool = False) -> Flat:
    return Flat(dict(module.named_parameters()), CPU, channels_last=channels_last)


def loss(module: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    return 3 * module(x).square().mean()  # type: ignore[no-any-return]


def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("channels_last", [False, True])
def test_parameters_become_views(channels_last: bool) -> None:
    module, same = network(), network()
    made = flat(module, channels_last)
    for a, b in zip(module.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.untyped_storage().data_ptr() == made.values.untyped_storage().data_ptr()
        assert a.storage_offset() % ALIGN == 0
    weight = module[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    made.values.zero_()
    assert all(not p.any() for p in module.parameters())


def test_gathering_takes_gradients_and_counts_missing_ones_as_zero() -> None:
    module = network()
    made = flat(module)
    assert made.gathered
    for _ in range(2):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 9.0)
        made.take()
        module[0].weight.grad = torch.ones_like(module[0].weight)
        (gradient,), chosen = made.take()
        assert chosen is None
        views = made.views(gradient)
        assert torch.equal(views["0.weight"], torch.ones(5, 3, 3, 3))
        assert not any(view.any() for name, view in views.items() if name != "0.weight")
        assert module[0].weight.grad is None


def test_large_parameters_are_not_gathered() -> None:
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300, bias=False))
    made = flat(module)
    assert not made.gathered
    assert flat(nn.Sequential(nn.Conv2d(300, 300, 1)), channels_last=True).gathered
    gradient = module[1].weight.grad = torch.ones(300, 300)
    assert made.take() == ([gradient], [2])
    assert made.take() == ([], [])


def test_half_weights_become_float32_and_float64_stays() -> None:
    assert flat(network().half()).values.dtype == torch.float32
    assert flat(network().double()).values.dtype == torch.float64


def test_the_end_of_the_first_parameters() -> None:
    made = flat(network())
    assert made.end(0) == 0
    assert list(made.views(made.values[: made.end(2)])) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(lr=1e-2),
        OptimizerConfig(lr=1e-2, weight_decay=0.1),
        OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
    ],
)
def test_the_update_is_clip_and_adam(gathered: bool, clip: float | None, optimizer: OptimizerConfig) -> None:
    """The same weights as torch's own clip_grad_norm_ and Adam, one pass each over flat memory."""
    ours, theirs = network(), network()
    made = Flat(dict(ours.named_parameters()), CPU, gathered=gathered)
    update = Update(optimizer, clip, made)
    kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.Adam
    reference = kind(theirs.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    for step in range(6):
        loss(ours, step).backward()
        norm = update(optimizer.lr)
        reference.zero_grad()
        loss(theirs, step).backward()
        total = nn.utils.clip_grad_norm_(theirs.parameters(), math.inf if clip is None else clip)
        reference.step()
        torch.testing.assert_close(norm, total)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert update.done == 6


def test_a_bad_gradient_changes_nothing_ever_after() -> None:
    module = network()
    made = flat(module)
    update = Update(OptimizerConfig(lr=1e-2), 1.0, made)
    loss(module, 0).backward()
    update(1e-2)
    before = {name: value.clone() for name, value in update.tensors().items()} | {"values": made.values.clone()}
    for value in (float("nan"), 1.0):
        fill(module, value)
        update(1e-2)
        assert float(update.bad) == 1.0
        assert torch.equal(made.values, before["values"])
        assert all(torch.equal(value, before[name]) for name, value in update.tensors().items())
    assert update.done == 1


def test_loss_scaling_skips_overflow_and_recovers() -> None:
    module, plain = network(), network()
    made, other = flat(module), flat(plain)
    update, reference = (
        Update(OptimizerConfig(lr=1e-2), 1.0, made, scaling=True),
        Update(OptimizerConfig(lr=1e-2), 1.0, other),
    )
    for step in range(3):
        (loss(module, step) * update.scale).backward()
        norm = update(1e-2)
        loss(plain, step).backward()
        torch.testing.assert_close(norm, reference(1e-2))
    torch.testing.assert_close(made.values, other.values)
    scale, before = float(update.scale), made.values.clone()
    fill(module, float("inf"))
    update(1e-2)
    assert float(update.scale) == scale / 2
    assert float(update.bad) == 0.0
    assert torch.equal(made.values, before)
    update.tensors()["good"].fill_(Update.GROWTH - 1)
    fill(module, 1.0)
    update(1e-2)
    assert float(update.scale) == scale
    for _ in range(40):
        fill(module, float("inf"))
        update(1e-2)
    assert float(update.bad) == 1.0


def test_the_moments_are_named_by_parameter() -> None:
    module = network()
    update = Update(OptimizerConfig(), 1.0, flat(module))
    names = {f"{name}.{moment}" for name, _ in module.named_parameters() for moment in ("exp_avg", "exp_avg_sq")}
    assert update.tensors().keys() == names | {"step"}
    for name, parameter in module.named_parameters():
        assert update.tensors()[f"{name}.exp_avg"].shape == parameter.shape


@given(
    warmup=st.integers(0, 30), steps=st.integers(1, 60), end=st.floats(0, 1), name=st.sampled_from(["linear", "cosine"])
)
def test_the_learning_rate_rises_then_falls_to_its_end(warmup: int, steps: int, end: float, name: str) -> None:
    """pains 20: in optimizer steps, whatever the world size."""
    settings = TrainConfig(
        steps=steps, warmup=warmup, optimizer=OptimizerConfig(lr=2.0), schedule=DecayConfig(name=name, end=end)
    )  # type: ignore[arg-type]
    rates = [rate(settings, step) for step in range(steps)]
    top = max(0, min(warmup, steps) - 1)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= value <= 2.0 * (1 + 1e-12) for value in rates)
    if warmup < steps:
        assert rates[-1] == pytest.approx(2.0 * end, abs=1e-12)
    if 0 < warmup <= steps:
        assert rates[warmup - 1] == pytest.approx(2.0)
        assert rates[0] == pytest.approx(2.0 / warmup)


def test_a_constant_rate_and_the_middle_of_the_decays() -> None:
    def at(name: str, step: int) -> float:
        return rate(
            TrainConfig(steps=10, optimizer=OptimizerConfig(lr=1.0), schedule=DecayConfig(name=name, end=0.2)), step
        )  # type: ignore[arg-type]

    assert [at("constant", k) for k in (0, 5, 9)] == [1.0, 1.0, 1.0]
    assert at("linear", 4) == pytest.approx(0.6)
    assert at("cosine", 4) == pytest.approx(0.6)
    assert at("cosine", 1) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(0.2 * math.pi)))


def test_averages_that_contradict_themselves_are_refused(toys: ModuleType) -> None:
    with pytest.raises(ValueError, match="decay, power"):
        toys.trainer(ema=(EmaConfig(decay=0.9, power=2.0),))
    with pytest.raises(ValueError, match="nothing"):
        toys.trainer(ema=(EmaConfig(),))
    with pytest.raises(ValueError, match="same name"):
        toys.trainer(ema=(EmaConfig(decay=0.9), EmaConfig(decay=0.99)))


def test_no_parameters_without_a_gradient_move(toys: ModuleType) -> None:
    """Labels are never given, so their embedding gets no gradient and stays."""
    made, _ = toys.trained(toys.task(toys.Whole(labels=False), label_dropout=0.0))
    torch.manual_seed(11)
    assert torch.equal(made.engine.network.label.weight, toys.Net().label.weight)
