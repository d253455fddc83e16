"""In which type the network computes, and what never does."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from diffkit.ddpm.objective import Simple
from diffkit.denoiser import Model
from diffkit.errors import UsageError
from diffkit.noise import RandomStreams
from diffkit.objective import Loss
from diffkit.train.config import PrecisionName
from diffkit.train.precision import BF16, FULL, MIN_WEIGHTS_BF16, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HAS = {"avx512_bf16": True, "amx_bf16": False}
TINY, LARGE = nn.Conv2d(3, 3, 3), nn.Conv2d(250, 250, 3, device="meta")


def test_auto_is_bf16_where_the_processor_has_it_and_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: HAS)
    assert choose("auto", CPU, None, LARGE) is BF16
    assert choose("auto", CPU, None, TINY) is FULL
    assert choose("auto", CPU, None, nn.Linear(MIN_WEIGHTS_BF16, 2, device="meta")) is FULL
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose("auto", CPU, None, LARGE) is FULL
    assert choose("bf16", CPU, None, TINY) is BF16
    assert choose("fp32", CPU, None, LARGE) is FULL


def test_a_parameterization_may_refuse_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: HAS)
    assert choose("auto", CPU, "mu", LARGE) is FULL
    for wanted in ("bf16", "fp16"):
        with pytest.raises(UsageError, match="mu cannot be decoded"):
            choose(wanted, CPU, "mu", TINY)


def test_fp16_is_for_cuda() -> None:
    with pytest.raises(UsageError, match="fp16"):
        choose("fp16", CPU, None, TINY)
    assert choose("fp16", CUDA, None, TINY).scaling


def test_only_the_network_runs_in_low_precision(toys: ModuleType) -> None:
    """pains 8: x, noise, target, decoding and weights stay float32; the network's products are bf16."""
    seen: dict[str, torch.dtype] = {}

    class Spy(Simple):
        def __call__(
            self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
        ) -> Loss:
            eye = torch.eye(4)
            seen["objective"] = (x0 @ eye).dtype
            seen["output"] = model.output(x0, model.schedule.level(torch.ones(len(x0))), **cond).dtype
            return super().__call__(model, x0, noise, ema=ema, **cond)

    made, _ = toys.trained(toys.task(objective=Spy()), precision="bf16")
    made.engine.network.first.register_forward_hook(lambda m, i, y: seen.update(inner=y.dtype))
    made.engine.validate(average=False)
    assert seen == {"objective": torch.float32, "output": torch.float32, "inner": torch.bfloat16}
    assert {p.dtype for p in made.engine.network.parameters()} == {torch.float32}
    assert all(t.dtype in (torch.float32, torch.int64) for named in made.tensors().values() for t in named.values())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_changes_the_result_a_little(toys: ModuleType, precision: PrecisionName) -> None:
    exact, _ = toys.trained(toys.plain(), precision="fp32")
    other, _ = toys.trained(toys.plain(), precision=precision)
    a, b = (made.tensors()["network"]["first.weight"] for made in (exact, other))
    assert torch.equal(a, b) == (precision == "fp32")
    torch.testing.assert_close(a, b, rtol=0.05, atol=5e-3)


def test_whole_numbers_are_still_told_to_networks_that_need_them(toys: ModuleType) -> None:
    told: list[Tensor] = []

    class Table(toys.Net):  # type: ignore[name-defined,misc]
        integer_time = True

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            told.append(c_noise)
            return super().forward(x, c_noise, label)  # type: ignore[no-any-return]

    given = toys.plain()
    given = replace(given, model=replace(given.model, network=Table()))
    toys.trained(given, steps=1)
    assert all(torch.equal(value, value.round()) for value in told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, on its own code
def test_a_compiled_network_trains_alike(toys: ModuleType) -> None:
    plain, _ = toys.trained(toys.plain())
    compiled, _ = toys.trained(toys.plain(), compile=True)
    for group, named in plain.tensors().items():
        assert named.keys() == compiled.tensors()[group].keys()
        for name, value in named.items():
            torch.testing.assert_close(compiled.tensors()[group][name], value, rtol=1e-4, atol=1e-5)
