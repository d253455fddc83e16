"""Contracts of the open kinds of training: optimizers, learning-rate schedules, strategies, callbacks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from diffkit import assemble, build, load_recipe, run
from diffkit.basics.lr_schedules import WSD, Constant, Cosine, InverseSqrt, Linear
from diffkit.basics.strategies import DDP, Auto
from diffkit.callback import Callback, Tracker, TrainingStepInfo, TrainResult
from diffkit.errors import UsageError
from diffkit.host import configure, load_file, registry
from diffkit.optimizer import LRSchedule
from diffkit.runs.training import make_trainer
from diffkit.runtime.distributed import Ranks
from diffkit.strategy import SingleProcess
from diffkit.train.trainer import Trainer

MUON = Path(__file__).with_name("muon_plugin.py")
RECIPE = """
name: small
data: {name: digits, labels: false}
schedule: linear
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention: [4]}
objective: simple
train: {steps: 6, batch_size: 8, optimizer: {name: muon, lr: 0.01}, ema: 0.9}
sample: {sampler: ancestral}
"""


@pytest.fixture
def muon() -> Iterator[None]:
    """The plugin is loaded as `-P muon_plugin.py` loads it."""
    load_file(MUON)
    yield
    configure()


def names(kind: str) -> list[str]:
    return [one.name for one in registry().entries(kind)]


@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers_lower_a_loss_and_have_a_rate_in_each_group(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 3)
    optimizer = build("optimizer", name, lr=1e-2)(list(network.named_parameters()))
    losses = []
    for _ in range(50):
        loss = (network(x).squeeze(1) - x[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(group["lr"] == 1e-2 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", names("lr-schedule"))
@given(warmup=st.integers(0, 40), steps=st.integers(1, 80))
def test_schedules_rise_in_the_warm_up_and_fall_after_it(name: str, warmup: int, steps: int) -> None:
    """pains 20: in optimizer steps, whatever the number of processes."""
    factors = [build("lr-schedule", name, warmup=warmup)(step, steps) for step in range(steps)]
    top = max(0, min(warmup, steps) - 1)
    assert factors[:top] == pytest.approx([n / warmup for n in range(1, top + 1)])
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if 0 < warmup < steps:
        assert build("lr-schedule", name, warmup=warmup)(warmup - 1, 10 * steps) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), {0: 1.0, 9: 1.0}),
        (Constant(warmup=4), {0: 0.25, 2: 0.75, 3: 1.0, 9: 1.0}),
        (Linear(end=0.2), {0: 0.92, 4: 0.6, 9: 0.2}),
        (Linear(warmup=2, end=0.0), {0: 0.5, 1: 1.0, 5: 0.5, 9: 0.0}),
        (Cosine(end=0.2), {1: 0.2 + 0.4 * (1 + math.cos(0.2 * math.pi)), 4: 0.6, 9: 0.2}),
        (WSD(decay=0.4), {0: 1.0, 5: 1.0, 6: 0.75, 7: 0.5, 9: 0.0}),
        (WSD(warmup=2, decay=0.5, end=0.5), {0: 0.5, 4: 1.0, 6: 0.8, 9: 0.5}),
        (WSD(decay=0.0), {0: 1.0, 9: 1.0}),
        (InverseSqrt(), {0: 1.0, 3: 0.5, 8: 1 / 3}),
        (InverseSqrt(warmup=4), {0: 0.25, 3: 1.0, 8: 2 / 3}),
        (InverseSqrt(reference=9), {0: 1.0, 8: 1.0, 9: math.sqrt(0.9)}),
    ],
)
def test_schedules_are_their_closed_forms(schedule: LRSchedule, expected: dict[int, float]) -> None:
    assert {step: schedule(step, 10) for step in expected} == pytest.approx(expected)


@given(count=st.integers(1, 100))
def test_one_process_has_all_rows(count: int) -> None:
    for strategy in (SingleProcess(), DDP(), Auto()):
        assert (strategy.rank, strategy.size) == (0, 1)
        assert strategy.shard(count) == range(count)
        rows, module = torch.randn(count), nn.Linear(1, 1)
        assert strategy.gather(rows, count) is rows
        assert strategy.wrap(module) is module
        with strategy.gradient_sync(module, last=False):
            pass


@given(count=st.integers(1, 100), size=st.integers(1, 9))
def test_shards_cover_the_rows_in_order(count: int, size: int) -> None:
    class Of(SingleProcess):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, size

    shards = [Of(rank).shard(count) for rank in range(size)]
    assert [row for shard in shards for row in shard] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_strategy_that_does_not_fit_is_refused(toys: ModuleType) -> None:
    """Two processes that each train alone would give two different networks without a word."""
    with pytest.raises(UsageError, match="SingleProcess") as caught:
        Trainer(toys.task(), toys.CONFIG, toys.ADAM, strategy=SingleProcess(), ranks=Ranks(0, 2))
    assert caught.value.code == "DK057"


class Curious(Callback):
    """Notes each call, reads everything, and draws from the global generator."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.infos: list[TrainingStepInfo] = []

    def on_start(self, directory: Path) -> None:
        self.calls.append(f"start {directory}")

    def on_step(self, info: TrainingStepInfo) -> None:
        torch.randn(3)
        assert math.isfinite(float(info.values["loss"]))
        self.infos.append(info)

    def on_save(self, step: int) -> None:
        self.calls.append(f"save {step}")

    def on_end(self, result: TrainResult | None) -> None:
        self.calls.append(f"end {result.step if result else None}")


def test_callbacks_see_each_step_and_change_nothing(toys: ModuleType) -> None:
    curious = Curious()
    made = toys.trainer(toys.task(), checkpoint_every=5)
    result = made.run((curious,), directory=Path("run"))
    assert curious.calls == ["start run", "save 5", "save 10", "save 12", "end 12"]
    assert [info.step for info in curious.infos] == list(range(1, 13))
    assert [info.step for info in curious.infos if info.record] == [5, 10, 12]
    assert curious.infos[0].lr == pytest.approx(0.25 * 2e-4)
    assert (result.step, result.stopped) == (12, False)
    with pytest.raises(TypeError):
        curious.infos[0].values["loss"] = torch.zeros(())  # type: ignore[index]
    alone, _ = toys.trained(toys.task(), checkpoint_every=5)
    toys.assert_same(made.tensors(), alone.tensors())


def test_callbacks_end_after_an_error(toys: ModuleType) -> None:
    curious = Curious()

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toys.trainer().run((curious,), stop=stop)
    assert curious.calls == ["start .", "end None"]


def test_trackers_log_the_records(toys: ModuleType) -> None:
    class Numbers(Tracker):
        def __init__(self) -> None:
            self.rows: dict[int, dict[str, float]] = {}

        def log(self, step: int, values: dict[str, float]) -> None:  # type: ignore[override]
            self.rows[step] = dict(values)

    numbers, recorder = Numbers(), toys.Recorder()
    toys.trained(toys.task(), numbers, recorder)
    assert [{"step": step, **row} for step, row in numbers.rows.items()] == recorder.records


@pytest.mark.usefixtures("muon")
def test_an_optimizer_of_a_stranger_trains_and_resumes_bit_for_bit() -> None:
    """Muon in one file: convolutions as matrices, vectors and outer layers by AdamW, state by names of parameters."""

    def trainer(steps: int = 6) -> Trainer:
        return make_trainer(assemble(load_recipe(RECIPE, [f"train.steps={steps}"])), torch.device("cpu"))

    whole, first, second = trainer(), trainer(), trainer()
    whole.run()
    first.run(stop=lambda: first.step == 3)
    tensors = {group: {n: t.clone() for n, t in named.items()} for group, named in first.tensors().items()}
    second.load(tensors, first.state())
    second.run()
    for group, named in whole.tensors().items():
        for name, tensor in named.items():
            assert torch.equal(tensor, second.tensors()[group][name]), (group, name)
    state = whole.tensors()["optimizer"].keys()
    assert {"down.0.block.conv1.weight.momentum", "enter.weight.exp_avg", "down.0.block.conv1.bias.exp_avg"} <= state
    assert not {"enter.weight.momentum", "down.0.block.conv1.weight.exp_avg"} & state


@pytest.mark.usefixtures("muon")
def test_newton_schulz_makes_singular_values_about_one() -> None:
    from muon_plugin import orthogonalised  # type: ignore[import-not-found]

    for shape in ((20, 50), (50, 20), (30, 30)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_weight_norms_are_those_of_the_weights_at_each_interval(tmp_path: Path) -> None:
    """A real run of six steps: two lines, of all parameters, and the last equals the weights that were trained."""
    recipe = load_recipe(
        RECIPE.replace("muon, lr: 0.01", "adam, lr: 0.01"),
        ["callbacks=[{name: weight-norms, every: 3}]", "sample.steps=2", "sample.count=1"],
    )
    diffkit_run = run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "weight-norms.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    network = diffkit_run.trained("raw").model.network
    want = {name: float(weight.detach().norm()) for name, weight in network.named_parameters()}
    got = {name.removeprefix("network."): norm for name, norm in lines[-1]["norms"].items()}
    assert got == pytest.approx(want, rel=1e-6)
    assert lines[0]["norms"] != lines[1]["norms"]
