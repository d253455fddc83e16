"""Training on a CUDA device: no wait between log points, exact resume, half precision, deferred divergence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import diffkit
from diffkit.basics.lr_schedules import Constant
from diffkit.basics.optimizers import Adam
from diffkit.callback import Callback, TrainingStepInfo
from diffkit.data import Data, DataSpec, InMemorySplit, Part
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.unet import UNet
from diffkit.denoiser import Model
from diffkit.errors import DivergedError
from diffkit.network import Shape
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.tasks import TrainingProblem
from diffkit.train.trainer import Trainer

pytestmark = pytest.mark.gpu

CONFIG = TrainConfig(
    steps=8,
    batch_size=16,
    accumulate=2,
    ema=(EmaConfig(decay=0.9, warmup=True), EmaConfig(name="power", power=6.94)),
    log_every=4,
    checkpoint_every=0,
)


class Pictures(Data):
    """Random uint8 pictures with labels, on the device whole."""

    @property
    def spec(self) -> DataSpec:
        return DataSpec(3, (16, 16), classes=4, bounded=True, bins=256)

    def split(self, part: Part) -> InMemorySplit:
        generator = torch.Generator().manual_seed(len(part))
        x = torch.randint(0, 256, (50, 3, 16, 16), generator=generator, dtype=torch.uint8)
        return InMemorySplit(x, {"label": torch.arange(50) % 4})


class Records(Callback):
    """Keeps the numbers of log points."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def on_step(self, info: TrainingStepInfo) -> None:
        if info.record is not None:
            self.seen.append(info.record)


def trainer(**changes: Any) -> Trainer:
    torch.manual_seed(0)
    network = UNet(Shape(3, 3, (16, 16), 4), channels=32, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.1)
    task = TrainingProblem(Model(network, Eps(), Linear()), Simple(), Pictures(), condition_dropout=0.2, seed=1)
    return Trainer(task, CONFIG.model_copy(update=changes), Adam(), Constant(warmup=2), device="cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any wait of the host for the device is an error inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_host_never_waits_between_log_points(precision: str, channels_last: bool) -> None:
    """pains 7; several epochs, accumulation and averages included."""
    made = trainer(precision=precision, channels_last=channels_last)
    source = made.engine.batch_source(0)
    made._window.add(made.engine.advance(0, source))
    with no_waiting():
        for step in range(1, 9):
            made._window.add(made.engine.advance(step, source))
    made.engine.check(9)
    assert made._window.means()["loss"] > 0


def test_a_resumed_run_is_bit_identical() -> None:
    """pains 6, on one device: kernels that are not deterministic are switched off for the comparison."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = trainer()
        whole.run()
        first = trainer()
        first.run(stop=lambda: first.step == 5)
        second = trainer()
        second.load(first.tensors(), first.state())
        second.run()
    finally:
        torch.use_deterministic_algorithms(False)
    for group, named in whole.tensors().items():
        for name, value in named.items():
            assert torch.equal(value, second.tensors()[group][name]), (group, name)


def test_divergence_freezes_the_weights_until_it_is_seen() -> None:
    made = trainer(log_every=8)
    source = made.engine.batch_source(0)
    for step in range(3):
        made.engine.advance(step, source)
    before = [parameter.detach().clone() for parameter in made.engine.network.parameters()]
    handle = next(made.engine.network.parameters()).register_hook(lambda g: g * float("nan"))
    made.engine.advance(3, source)
    handle.remove()
    made.engine.advance(4, source)
    assert all(torch.equal(a, b) for a, b in zip(made.engine.network.parameters(), before, strict=True))
    assert all(bool(a.isfinite().all()) for a in made.engine.averages[0].network.parameters())
    with pytest.raises(DivergedError, match="at step 4"):
        made.engine.check(5)


def test_auto_is_bf16_and_its_loss_is_that_of_fp32() -> None:
    records: dict[str, list[Any]] = {"auto": [], "fp32": [], "fp16": []}
    for precision, seen in records.items():
        made = trainer(precision=precision, steps=40, log_every=40)
        made.run((Records(seen),))
        assert made.engine.precision.name == ("bf16" if precision == "auto" else precision)
    assert records["auto"][0]["loss"] == pytest.approx(records["fp32"][0]["loss"], rel=0.05)
    assert records["fp16"][0]["loss"] == pytest.approx(records["fp32"][0]["loss"], rel=0.05)


@pytest.mark.parametrize("mode", [True, "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_compiled_training_is_the_same_within_rounding(mode: bool | str) -> None:
    plain, compiled = trainer(precision="fp32"), trainer(precision="fp32", compile=mode)
    losses: list[list[float]] = [[], []]
    for made, seen in zip((plain, compiled), losses, strict=True):
        source = made.engine.batch_source(0)
        made.engine.network.eval()  # dropout draws in another order when compiled
        seen += [float(made.engine.advance(step, source)["loss"]) for step in range(4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_tf32_changes_products_in_training_only() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    records: dict[str, list[Any]] = {"fp32": [], "tf32": []}
    for precision, seen in records.items():
        trainer(precision=precision, steps=8, log_every=8).run((Records(seen),))
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert records["tf32"][0]["loss"] != records["fp32"][0]["loss"]
    assert records["tf32"][0]["loss"] == pytest.approx(records["fp32"][0]["loss"], rel=0.02)


def test_a_profile_contains_the_kernels_of_the_device(tmp_path: Path) -> None:
    """`train.profile`: the trace of two steps names what the device computed in them."""
    recipe = {
        "name": "profiled",
        "data": {"name": "mixture", "layout": "ring", "count": 32, "held_out": 8},
        "schedule": {"name": "linear", "steps": 10, "beta_start": 0.1, "beta_end": 0.9},
        "parameterization": "eps",
        "network": {"name": "mlp", "width": 16, "depth": 1},
        "objective": "simple",
        "train": {"steps": 5, "batch_size": 8, "ema": [], "profile": {"start": 2, "steps": 2}},
        "sample": {"sampler": "ancestral", "count": 2},
        "evaluate": {"metrics": []},
    }
    diffkit.run(recipe, tmp_path / "run", device="cuda")
    trace = json.loads((tmp_path / "run" / "profile-00000002.json").read_text("utf-8"))
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])
