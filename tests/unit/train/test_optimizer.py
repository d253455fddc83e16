"""The update: clipping, numbers that are not finite, loss scaling, the state of any optimizer as named tensors."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from diffkit.basics.optimizers import Adam, AdamW
from diffkit.errors import CheckpointError, DivergedError
from diffkit.optimizer import NamedParameters, Optimizer
from diffkit.train.config import EmaConfig
from diffkit.train.optimizer import GROWTH_INTERVAL, Update

ADAM = Adam(lr=1e-2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 7), nn.Linear(7, 2))


def update_of(module: nn.Module, optimizer: Optimizer = ADAM, **options: Any) -> Update:
    return Update(optimizer, None, dict(module.named_parameters()), **options)


def loss(module: nn.Module, step: int) -> Tensor:
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    return 3 * module(x).square().mean()  # type: ignore[no-any-return]


def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize(
    "optimizer", [Adam(lr=1e-2), Adam(lr=1e-2, weight_decay=0.1), AdamW(lr=1e-2, weight_decay=0.1)]
)
def test_the_update_is_clip_and_adam(deferred: bool, clip: float | None, optimizer: Adam) -> None:
    """The same weights as clip_grad_norm_ and the plain loops of torch."""
    ours, theirs = network(), network()
    update = update_of(ours, optimizer, clip=clip, deferred=deferred)
    kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    reference = kind(theirs.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay, foreach=False)
    for step in range(6):
        (loss(ours, step) * update.factor(torch.zeros(()), 1.0)).backward()
        norm = update(step, 6)
        reference.zero_grad()
        loss(theirs, step).backward()
        total = nn.utils.clip_grad_norm_(theirs.parameters(), math.inf if clip is None else clip)
        reference.step()
        torch.testing.assert_close(norm, total)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert a.grad is None


def test_the_host_refuses_a_bad_gradient_before_anything_changes() -> None:
    module = network()
    update = update_of(module, clip=1.0)
    loss(module, 0).backward()
    update(0, 10)
    before, state = weights(module), {name: value.clone() for name, value in update.tensors().items()}
    fill(module, math.inf)
    with pytest.raises(DivergedError, match="at step 2"):
        update(1, 10)
    assert same(weights(module), before)
    assert all(torch.equal(value, state[name]) for name, value in update.tensors().items())


class Plain(Optimizer):
    """Gradient descent, which knows no flag on the device."""

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for _, p in named_parameters], lr=1e-2, momentum=0.9, foreach=False)


@pytest.mark.parametrize("optimizer", [Adam(lr=1e-2), Plain()])
def test_the_device_skips_all_after_a_bad_gradient(optimizer: Optimizer) -> None:
    module = network()
    update = update_of(module, optimizer, clip=1.0, deferred=True)
    (loss(module, 0) * update.factor(torch.zeros(()), 1.0)).backward()
    update(0, 10)
    update.check(1)
    before, state = weights(module), {name: value.clone() for name, value in update.tensors().items()}
    fill(module, math.nan)
    update(1, 10)
    for step in (2, 3):
        (loss(module, step) * update.factor(torch.zeros(()), 1.0)).backward()
        update(step, 10)
    assert same(weights(module), before)
    assert all(torch.equal(value, state[name]) for name, value in update.tensors().items())
    with pytest.raises(DivergedError, match="at step 2"):
        update.check(4)


@pytest.mark.parametrize("deferred", [False, True])
def test_gradients_and_weights_of_any_strides_are_updated_alike(deferred: bool) -> None:
    """A fused kernel runs over memory: where strides differ it is wrong on the CPU, and an error on a GPU."""
    torch.manual_seed(0)
    start = {"swapped": torch.randn(4, 5), "single": torch.randn(2, 1, 6), "slice": torch.randn(4, 9)[:, :5]}
    ours = {name: nn.Parameter(value.clone(memory_format=torch.preserve_format)) for name, value in start.items()}
    ours["slice"] = nn.Parameter(torch.zeros(4, 9)[:, :5].copy_(start["slice"]))
    theirs = [nn.Parameter(value.clone().contiguous()) for value in start.values()]
    update = Update(ADAM, None, ours, deferred=deferred)
    reference = torch.optim.Adam(theirs, lr=ADAM.lr, foreach=False)
    for step in range(3):
        gradients = [torch.randn(5, 4).t(), torch.randn(2, 6, 1).transpose(1, 2), torch.randn(4, 5)]
        for a, b, gradient in zip(ours.values(), theirs, gradients, strict=True):
            a.grad, b.grad = gradient, gradient.contiguous()
        update.factor(torch.zeros(()), 1.0)
        update(step, 3)
        reference.step()
    assert not ours["slice"].is_contiguous()
    torch.testing.assert_close(list(ours.values()), theirs)


def test_a_loss_that_is_not_finite_makes_the_gradient_so() -> None:
    update = update_of(network())
    assert float(update.factor(torch.tensor(3.0), 0.25)) == 0.25
    assert math.isnan(float(update.factor(torch.tensor(math.inf), 0.25)))


def test_loss_scaling_skips_overflow_and_recovers() -> None:
    module, plain = network(), network()
    update, reference = update_of(module, clip=1.0, scaling=True, deferred=True), update_of(plain, clip=1.0)
    for step in range(3):
        (loss(module, step) * update.factor(torch.zeros(()), 1.0)).backward()
        norm = update(step, 10)
        loss(plain, step).backward()
        torch.testing.assert_close(norm, reference(step, 10))
    torch.testing.assert_close(weights(module), weights(plain))
    scale, before = update.numbers()["/scale"], weights(module)
    fill(module, math.inf)
    update(3, 10)
    assert update.numbers() == {"/scale": scale / 2, "/growth": 0.0}
    update.check(4)
    assert same(weights(module), before)
    update.load({}, {"/scale": scale / 2, "/growth": GROWTH_INTERVAL - 1})
    fill(module, 1.0)
    update(4, 10)
    assert update.numbers()["/scale"] == scale
    for step in range(40):
        fill(module, math.inf)
        update(step, 100)
    with pytest.raises(DivergedError):
        update.check(45)


class Counting(Optimizer):
    """An optimizer with state of every sort: tensors, numbers, and a number of its group."""

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        class Inner(torch.optim.Optimizer):
            def step(self, closure: Any = None) -> None:
                for group in self.param_groups:
                    group["seen"] += 1
                    for parameter in group["params"]:
                        state = self.state[parameter]
                        state["times"] = state.get("times", 0) + 1
                        state["half"] = state.get("half", 0.0) + 0.5
                        state["scale"] = torch.tensor([1.0 / group["seen"]])
                        state["sum"] = state.get("sum", torch.zeros_like(parameter)) + parameter.grad
                        rate = group["lr"] / (group["seen"] + state["times"] + state["half"])
                        parameter.data.sub_(rate * state["scale"] * state["sum"])

        return Inner([p for _, p in named_parameters], {"lr": 0.1, "seen": 0, "fixed": 3})


@pytest.mark.parametrize("optimizer", [Adam(lr=1e-2), AdamW(lr=1e-2, weight_decay=0.1), Plain(), Counting()])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_state_goes_through_a_file(optimizer: Optimizer, channels_last: bool) -> None:
    """3 updates, state as safetensors and numbers, 3 more: the same bits as 6."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    whole, part, rest = (network().to(memory_format=layout) for _ in range(3))  # type: ignore[call-overload]
    straight, first, second = update_of(whole, optimizer), update_of(part, optimizer), update_of(rest, optimizer)

    def run(module: nn.Module, update: Update, steps: range) -> None:
        for step in steps:
            loss(module, step).backward()
            update(step, 6)

    run(whole, straight, range(6))
    run(part, first, range(3))
    rest.load_state_dict(part.state_dict())
    second.load(load(save({n: t.contiguous() for n, t in first.tensors().items()})), first.numbers())
    run(rest, second, range(3, 6))
    assert same(weights(whole), weights(rest))
    assert straight.numbers() == second.numbers()
    assert straight.tensors().keys() == second.tensors().keys()
    assert all(torch.equal(value, second.tensors()[name]) for name, value in straight.tensors().items())


def test_the_state_is_named_by_parameter() -> None:
    module = network()
    update = update_of(module, Counting())
    assert (update.tensors(), update.numbers()) == ({}, {})
    fill(module, 1.0)
    update(0, 1)
    names = [name for name, _ in module.named_parameters()]
    assert update.tensors().keys() == {f"{name}.{key}" for name in names for key in ("scale", "sum")}
    assert update.numbers() == {f"{n}.{k}": v for n in names for k, v in (("times", 1), ("half", 0.5))} | {
        "/group.0.seen": 1.0
    }


def test_the_state_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="earlier version") as caught:
        update_of(network()).load({"0.weight.exp_avg": torch.zeros(5, 3, 3, 3), "step": torch.zeros(())}, {})
    assert caught.value.code == "DK604"


def test_rates_of_groups_are_multiplied() -> None:
    class Two(Optimizer):
        def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
            (_, first), *rest = named_parameters
            return torch.optim.SGD([{"params": [first], "lr": 3.0}, {"params": [p for _, p in rest]}], lr=0.5)

    module = network()
    update = Update(Two(), lambda step, steps: step / steps, dict(module.named_parameters()))  # type: ignore[arg-type]
    fill(module, 0.0)
    update(2, 8)
    assert update.optimizer is not None
    assert [group["lr"] for group in update.optimizer.param_groups] == [0.75, 0.125]
    assert update.lr(4, 8) == 1.5


def test_nothing_to_train_is_no_error() -> None:
    update = Update(Adam(), None, {})
    assert float(update(0, 1)) == 0.0
    assert (update.tensors(), update.numbers(), update.lr(0, 1)) == ({}, {}, 0.0)


def test_averages_that_contradict_themselves_are_refused(toys: ModuleType) -> None:
    with pytest.raises(ValueError, match="decay, power"):
        toys.trainer(ema=(EmaConfig(decay=0.9, power=2.0),))
    with pytest.raises(ValueError, match="nothing"):
        toys.trainer(ema=(EmaConfig(),))
    with pytest.raises(ValueError, match="same name"):
        toys.trainer(ema=(EmaConfig(decay=0.9), EmaConfig(decay=0.99)))


def test_no_parameters_without_a_gradient_move(toys: ModuleType) -> None:
    """Labels are never given, so their embedding gets no gradient and stays."""
    made, _ = toys.trained(toys.task(toys.Whole(labels=False), condition_dropout=0.0))
    torch.manual_seed(11)
    assert torch.equal(made.engine.network.label.weight, toys.Net().label.weight)


def test_half_weights_become_float32_and_float64_stays(toys: ModuleType) -> None:
    for given, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        task = toys.task()
        task.model.network.to(given)
        assert toys.trainer(task).engine.network.first.weight.dtype == kept
