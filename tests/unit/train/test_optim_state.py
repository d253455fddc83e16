"""Optimizers through tensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffkit.errors import CheckpointError
from diffkit.train.checkpoint import CheckpointStore
from diffkit.train.optim_state import flatten_optimizer, restore_optimizer

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.8, 0.95)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=2e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))


def advance(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.param_groups[0]["lr"] *= 0.99
        optimizer.step()


def groups(net: nn.Module) -> list[dict[str, Any]]:
    named = dict(net.named_parameters())
    return [{"params": [named["2.bias"], named["0.weight"]]}, {"params": [named["2.weight"]], "lr": 1e-4}]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("several", [False, True], ids=["one group", "two groups"])
def test_resuming_is_exact(tmp_path: Path, kind: str, several: bool) -> None:
    """pains 6: ten steps equal four steps, a checkpoint, and six steps, bit for bit."""
    whole, half, rest = network(), network(), network(1)
    make = lambda net: MAKERS[kind](groups(net) if several else net.parameters())  # noqa: E731
    optimizer = make(whole)
    advance(whole, optimizer, 0, 10)
    first = make(half)
    advance(half, first, 0, 4)
    tensors, state = flatten_optimizer(first, half.named_parameters())
    CheckpointStore(tmp_path).save(4, {"network": half.state_dict(), "optimizer": tensors}, {"optimizer": state}, {})

    loaded = CheckpointStore(tmp_path).load({"network": rest.state_dict(), "optimizer": None})
    assert loaded is not None
    rest.load_state_dict(loaded.tensors["network"])
    second = make(rest)
    restore_optimizer(second, rest.named_parameters(), loaded.tensors["optimizer"], loaded.state["optimizer"])
    advance(rest, second, 4, 10)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    for own, other in zip(optimizer.param_groups, second.param_groups, strict=True):
        assert {k: v for k, v in own.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        assert {k: type(v) for k, v in own.items()} == {k: type(v) for k, v in other.items()}


def test_names_not_positions() -> None:
    net = network()
    optimizer = MAKERS["adam"](net.parameters())
    advance(net, optimizer, 0, 1)
    tensors, state = flatten_optimizer(optimizer, net.named_parameters())
    assert set(tensors) == {
        f"{name}.{key}" for name, _ in net.named_parameters() for key in ("exp_avg", "exp_avg_sq", "step")
    }
    assert json.loads(json.dumps(state)) == state
    assert state["groups"][0]["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert state["groups"][0]["options"]["betas"] == [0.8, 0.95]


def test_a_parameter_without_a_name_is_a_mistake() -> None:
    net = network()
    with pytest.raises(ValueError, match="no name"):
        flatten_optimizer(MAKERS["sgd"](net.parameters()), list(net.named_parameters())[:-1])


def test_options_of_another_version_of_torch_keep_their_defaults() -> None:
    net = network()
    optimizer = MAKERS["adam"](net.parameters())
    tensors, state = flatten_optimizer(optimizer, net.named_parameters())
    options = state["groups"][0]["options"]
    del options["capturable"]
    options |= {"retired": 3, "lr": 0.5}
    restore_optimizer(optimizer, net.named_parameters(), tensors, state)
    assert optimizer.param_groups[0]["capturable"] is False
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert "retired" not in optimizer.param_groups[0]


def hostile(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    net = network()
    optimizer = MAKERS["adam"](net.parameters())
    advance(net, optimizer, 0, 1)
    tensors, state = flatten_optimizer(optimizer, net.named_parameters())
    state = json.loads(json.dumps(state))
    change(tensors, state)
    return tensors, state


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no groups": lambda tensors, state: state.pop("groups"),
    "groups are text": lambda tensors, state: state.update(groups="x"),
    "a group is text": lambda tensors, state: state.update(groups=["x"]),
    "two groups": lambda tensors, state: state["groups"].append(state["groups"][0]),
    "no options": lambda tensors, state: state["groups"][0].pop("options"),
    "options are a list": lambda tensors, state: state["groups"][0].update(options=[1]),
    "lr is text": lambda tensors, state: state["groups"][0]["options"].update(lr="os.system"),
    "lr is a mapping": lambda tensors, state: state["groups"][0]["options"].update(lr={"a": 1}),
    "one beta": lambda tensors, state: state["groups"][0]["options"].update(betas=[0.9]),
    "betas are text": lambda tensors, state: state["groups"][0]["options"].update(betas=["a", "b"]),
    "foreach is a list": lambda tensors, state: state["groups"][0]["options"].update(foreach=[1]),
    "other parameters": lambda tensors, state: state["groups"][0]["parameters"].reverse(),
    "a tensor of nobody": lambda tensors, state: tensors.update({"7.weight.exp_avg": torch.zeros(1)}),
    "a tensor without a key": lambda tensors, state: tensors.update(x=torch.zeros(1)),
    "a wrong shape": lambda tensors, state: tensors.update({"0.weight.exp_avg": torch.zeros(3, 4)}),
    "scalars are text": lambda tensors, state: state.update(scalars="x"),
    "scalars of nobody": lambda tensors, state: state["scalars"].update({"7.weight": {"step": 1}}),
    "a scalar is a list": lambda tensors, state: state["scalars"].update({"0.weight": {"step": [1]}}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_hostile_state_is_refused_and_changes_nothing(kind: str) -> None:
    tensors, state = hostile(lambda tensors, state: CHANGES[kind](tensors, state) and None)
    net = network(2)
    optimizer = MAKERS["adam"](net.parameters())
    with pytest.raises(CheckpointError):
        restore_optimizer(optimizer, net.named_parameters(), tensors, state)
    assert optimizer.state == {}
    assert optimizer.param_groups[0]["lr"] == 2e-3
