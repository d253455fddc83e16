"""Laws of callbacks and trackers: they run beside a training and change nothing in it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.callback import Callback, TrainingStepInfo, TrainResult
from diffkit.denoiser import Model
from diffkit.network import Network

from .. import fixtures
from ..case import Case
from ..law_registry import Check, LawResult, law

STEPS = 4


class _Linear(Network):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def _model(case: Case) -> Model:
    network = _Linear()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(case.normal(*parameter.shape, stream=name))
    return Model(network.train(), fixtures.EPS, fixtures.discrete())


def _run(
    callback: Callback, folder: Path, model: Model, average: Model, observe: Callable[[str], None] | None = None
) -> None:
    """Call a callback in the order of a training of four steps, with a checkpoint at the second and the last."""

    def done(name: str) -> None:
        if observe is not None:
            observe(name)

    callback.on_start(folder)
    done("on_start")
    for step in range(1, STEPS + 1):
        values = {"loss": torch.tensor(1.0 / step), "grad_norm": torch.tensor(float(step))}
        record = {"loss": 1.0 / step, "lr": 1e-3} if step % 2 == 0 else None
        callback.on_step(TrainingStepInfo(step, STEPS, 1e-3, values, record, model, average))
        done("on_step")
        if step % 2 == 0:
            with torch.no_grad():
                callback.on_preview(step, average)
            done("on_preview")
            callback.on_save(step)
            done("on_save")
    callback.on_end(TrainResult(STEPS, False))
    done("on_end")


def _law(statement: str) -> Callable[[Check], Check]:
    """Register a law of both kinds."""

    def register(check: Check) -> Check:
        for kind in ("callback", "tracker"):
            law(kind, statement=statement, source="the definition of Callback", tolerance=0.0)(check)
        return check

    return register


@_law("no method changes weights, gradients, modes of the network or torch's generator")
def reads_only(case: Case, result: LawResult) -> None:
    """A training with callbacks gives the same weights as one without."""
    model = _model(case)
    average = copy.deepcopy(model)
    average.network.eval().requires_grad_(False)
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    before = torch.random.get_rng_state()

    def observe(name: str) -> None:
        for title, one in (("model", model), ("average", average)):
            same = all(torch.equal(value, weights[key]) for key, value in one.network.state_dict().items())
            result.holds(same, f"{name} changed weights of the {title}", "no change")
        result.holds(torch.equal(before, torch.random.get_rng_state()), f"{name} moved torch's generator", "untouched")
        modes = (model.network.training, average.network.training, torch.is_grad_enabled())
        result.holds(modes == (True, False, True), f"{name} changed a mode: {modes}", "train, eval, gradients on")
        free = all(p.grad is None for p in model.network.parameters())
        result.holds(free, f"{name} left gradients", "none")

    with tempfile.TemporaryDirectory() as folder:
        _run(case.component, Path(folder), model, average, observe)


@_law("one instance can be used for a second training in the same folder, and for one that fails")
def restarts(case: Case, result: LawResult) -> None:
    """A run that is resumed calls on_start again; a training that fails calls on_end with None."""
    model = _model(case)
    average = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            _run(case.component, Path(folder), model, average)
        case.component.on_start(Path(folder))
        case.component.on_end(None)
        result.holds(True, "three trainings, the last one without a result", "")
