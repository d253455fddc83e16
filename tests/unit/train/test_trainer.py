"""The training loop: exact resume, evaluation that disturbs nothing, stopping, diverging, logging."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from diffkit.basics.data.digits import Digits
from diffkit.basics.optimizers import Adam
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.unet import UNet
from diffkit.denoiser import Model
from diffkit.errors import DataError, DivergedError, ResourceError, UsageError
from diffkit.network import Shape
from diffkit.noise import RandomStreams
from diffkit.objective import Loss
from diffkit.storage.checkpoint import CheckpointStore
from diffkit.train import engine
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.tasks import TrainingProblem
from diffkit.train.trainer import Trainer


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize("k", [1, 5, 7, 11])
def test_a_resumed_run_is_bit_identical(toys: ModuleType, tmp_path: Path, workers: int | None, k: int) -> None:
    """pains 6: N steps = k + save + load + N - k, with accumulation, three averages, importance sampling, dropout,
    label dropout, augmentation and workers; weights, averages, optimizer, history and metrics."""
    data = toys.Whole() if workers is None else toys.OneByOne()
    whole, parts = toys.Recorder(), toys.Recorder()
    straight, _ = toys.trained(toys.task(data), whole, workers=workers)

    first = toys.trainer(toys.task(data), workers=workers)
    store = CheckpointStore(tmp_path)
    parts.save = lambda step: toys.save(store, first)
    outcome = first.run((parts,), stop=lambda: first.step == k)
    assert (outcome.stopped, outcome.step) == (True, k)

    second = toys.trainer(toys.task(data), workers=workers)
    assert toys.load(store, second) == []
    assert second.run((toys.Recorder(parts.records),)).step == 12

    toys.assert_same(straight.tensors(), second.tensors())
    assert toys.comparable(whole.records) == toys.comparable(parts.records)
    assert [record["step"] for record in whole.records] == [5, 10, 12]


@pytest.mark.parametrize(
    ("channels_last", "precision"),
    [(False, "fp32"), pytest.param(True, "fp32", marks=pytest.mark.slow), (False, "bf16")],
)
def test_a_resumed_unet_is_bit_identical(toys: ModuleType, channels_last: bool, precision: str) -> None:
    """pains 6, with convolutions, attention and dropout, in both layouts and in half precision."""

    def trainer() -> Trainer:
        torch.manual_seed(0)
        network = UNet(Shape(1, 1, (8, 8), 10), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.1)
        task = TrainingProblem(Model(network, Eps(), Linear()), Simple(), Digits(), condition_dropout=0.1)
        options = {"channels_last": channels_last, "precision": precision}
        config = TrainConfig(steps=6, batch_size=8, accumulate=2, ema=(EmaConfig(decay=0.9),), **options)
        return Trainer(task, config, Adam())

    whole, first, second = trainer(), trainer(), trainer()
    whole.run()
    first.run(stop=lambda: first.step == 2)
    second.load(toys.copied(first.tensors()), first.state())
    second.run()
    toys.assert_same(whole.tensors(), second.tensors())


def test_validation_and_previews_never_disturb_training(toys: ModuleType) -> None:
    """pains 16 and the LR runner-up: evaluation has random streams and iterators of its own."""

    def preview(step: int, model: Model) -> None:
        assert not model.network.training
        assert not torch.is_grad_enabled()
        torch.manual_seed(step)
        model.network(torch.randn(2, 4), torch.rand(2))

    quiet, _ = toys.trained(toys.task())
    busy, _ = toys.trained(toys.task(), toys.Recorder(preview=preview), validate_every=2, sample_every=1, log_every=1)
    toys.assert_same(quiet.tensors(), busy.tensors())


def test_accumulation_is_the_whole_batch_in_parts(toys: ModuleType) -> None:
    """The same noise and times reach every example whatever the parts; only the order of sums differs."""
    whole, _ = toys.trained(toys.plain(), accumulate=1)
    parts, _ = toys.trained(toys.plain(), accumulate=3)
    for name, value in whole.tensors()["network"].items():
        if value.is_floating_point() and name != "mean":
            torch.testing.assert_close(parts.tensors()["network"][name], value, rtol=1e-5, atol=1e-6)


def test_the_global_generator_is_left_as_it_was(toys: ModuleType) -> None:
    made = toys.trainer(toys.task())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_step_and_every_part_of_a_batch_has_its_own_dropout(toys: ModuleType) -> None:
    masks: list[tuple[bool, ...]] = []
    made = toys.trainer(toys.task(dropout=0.5), batch_size=9, steps=4)

    def keep(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        masks.append(tuple((output == 0).flatten().tolist()))

    made.engine.network.dropout.register_forward_hook(keep)
    source = made.engine.batch_source(0)
    for step in range(4):
        made.engine.gradient(step, source, made.engine.parts)
    assert len(masks) == 4 * 3
    assert len(set(masks)) == len(masks)


def test_seeds_change_everything(toys: ModuleType) -> None:
    a, _ = toys.trained(toys.task(seed=1))
    b, _ = toys.trained(toys.task(seed=2))
    assert not torch.equal(a.tensors()["network"]["first.weight"], b.tensors()["network"]["first.weight"])


def test_records_say_what_happened(toys: ModuleType) -> None:
    journal = toys.Recorder()
    _, outcome = toys.trained(toys.task(), journal, log_every=4, validate_every=6)
    assert [record["step"] for record in journal.records] == [4, 6, 8, 12]
    first, second = journal.records[:2]
    assert set(first) == {"step", "loss", "grad_norm", "lr", "images_per_second", "memory"}
    assert {"held_out_loss", "held_out_loss_ema"} <= set(second)
    assert first["lr"] == pytest.approx(2e-4)
    assert all(record["images_per_second"] > 0 and record["memory"] > 1e6 for record in journal.records)
    assert outcome.held_out is not None
    assert outcome.held_out.loss == pytest.approx(journal.records[-1]["held_out_loss_ema"], rel=0.3)
    assert sum(outcome.held_out.count) == 4 * 23


def test_the_logged_loss_is_the_mean_of_the_interval(toys: ModuleType) -> None:
    every, some = toys.Recorder(), toys.Recorder()
    toys.trained(toys.task(), every, log_every=1)
    toys.trained(toys.task(), some, log_every=4)
    for k, record in enumerate(some.records):
        part = every.records[4 * k : 4 * k + 4]
        assert record["loss"] == pytest.approx(sum(r["loss"] for r in part) / 4)
        assert record["grad_norm"] == pytest.approx(sum(r["grad_norm"] for r in part) / 4)


def test_checkpoints_at_intervals_and_once_at_the_end(toys: ModuleType) -> None:
    journal = toys.Recorder()
    made, _ = toys.trained(toys.task(), journal, checkpoint_every=4)
    assert journal.saved == [4, 8, 12]
    assert made.run((journal,)).stopped is False
    assert journal.saved == [4, 8, 12]


def test_zero_steps_save_the_untrained_network(toys: ModuleType) -> None:
    journal = toys.Recorder()
    _, outcome = toys.trained(toys.task(), journal, steps=0)
    assert (outcome.step, outcome.stopped, journal.saved) == (0, False, [0])


@dataclass(frozen=True)
class Failing(Simple):
    """The loss, multiplied by `value` at one step."""

    at: int = 6
    value: float = float("nan")
    error: BaseException | None = None

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        loss = super().__call__(model, x0, noise, ema=ema, **cond)
        if noise.step != self.at:
            return loss
        if self.error is not None:
            raise self.error
        return replace(loss, mean=loss.mean * self.value)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_weights_or_averages(
    toys: ModuleType, monkeypatch: pytest.MonkeyPatch, deferred: bool, value: float
) -> None:
    """Stops before the optimizer step; on a GPU (`deferred`) the updates are no-ops until the next log point, while
    averages move on towards the last good weights."""
    journal = toys.Recorder()
    good, _ = toys.trained(toys.task(objective=Simple()), steps=6)
    monkeypatch.setattr(engine, "defers", lambda device: deferred)
    bad = toys.trainer(toys.task(objective=Failing(value=value)), log_every=10)
    with pytest.raises(DivergedError, match="at step 7") as caught:
        bad.run((journal,))
    assert caught.value.exit_code == 7
    assert journal.saved == []
    for average in good.engine.averages:
        for n in range(7, 11 if deferred else 7):
            average.update(n)
    for group, named in good.tensors().items():
        for name, tensor in named.items():
            if name not in ("seen", "mean"):  # buffers of the network: the checkpoint before has the good ones
                assert torch.equal(tensor, bad.tensors()[group][name]), (group, name)


def test_a_gradient_that_is_not_finite_stops_too(toys: ModuleType) -> None:
    made = toys.trainer(toys.task())
    made.engine.network.second.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(DivergedError, match="at step 1"):
        made.run()


def test_nothing_is_saved_after_divergence_is_seen_at_a_checkpoint(
    toys: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = toys.Recorder()
    monkeypatch.setattr(engine, "defers", lambda device: True)
    bad = toys.trainer(toys.task(objective=Failing(at=5)), log_every=50, checkpoint_every=4)
    with pytest.raises(DivergedError):
        bad.run((journal,))
    assert journal.saved == [4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_exhausted_memory_names_three_knobs(toys: ModuleType, error: Exception) -> None:
    with pytest.raises(ResourceError) as caught:
        toys.trained(toys.task(objective=Failing(error=error)))
    text = caught.value.render()
    assert all(knob in text for knob in ("train.accumulate", "train.precision", "network"))
    assert "MB" in text


def test_other_errors_pass_as_they_are(toys: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        toys.trained(toys.task(objective=Failing(error=RuntimeError("something else"))))


def test_changed_examples_are_refused(toys: ModuleType) -> None:
    made, _ = toys.trained(toys.task())
    other = toys.trainer(toys.task(toys.Whole(count=24)))
    with pytest.raises(DataError, match="changed"):
        other.load(made.tensors(), made.state())


def test_what_makes_bits_differ_is_listed(toys: ModuleType) -> None:
    made, _ = toys.trained(toys.task())
    state = replace(made.state(), threads=99, precision="bf16")
    assert toys.trainer(toys.task()).load(made.tensors(), state) == [
        "precision was bf16, is fp32",
        f"threads was 99, is {torch.get_num_threads()}",
    ]


def test_a_batch_smaller_than_its_parts_is_refused(toys: ModuleType) -> None:
    with pytest.raises(UsageError, match="cannot be split") as caught:
        toys.trainer(toys.task(), batch_size=2, accumulate=3)
    assert caught.value.code == "DK052"


def test_a_data_set_smaller_than_a_batch_is_repeated(toys: ModuleType) -> None:
    """reliability 28: no silent loop without batches."""
    made, outcome = toys.trained(toys.task(toys.Whole(count=3)), batch_size=10)
    assert outcome.step == 12
    assert made.engine.examples == 3
    assert int(made.tensors()["network"]["seen"]) == 120


def test_objectives_see_the_average_and_learn_along(toys: ModuleType) -> None:
    seen: list[float] = []

    class Learned(torch.nn.Module, Simple):
        """An objective with a parameter, which is trained, and which asks the average."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.log_scale = torch.nn.Parameter(torch.zeros(()))

        weighting, times, reduction = None, Simple().times, "mean"

        def __call__(
            self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
        ) -> Loss:
            assert ema is not None
            assert not ema.network.training
            seen.append(float(ema.output(x0, model.schedule.level(torch.ones(len(x0)))).abs().sum()))
            loss = Simple.__call__(self, model, x0, noise, **cond)
            return replace(loss, mean=loss.mean * self.log_scale.exp() - self.log_scale)

        def update(self, t: Tensor, each: Tensor) -> None:
            assert len(t) == len(each) == 10

    made, _ = toys.trained(toys.task(objective=Learned()), ema=(EmaConfig(decay=0.5),))
    assert float(made.tensors()["components"]["objective.log_scale"].detach()) != 0.0
    assert len(set(seen)) > 10
    assert "/objective.log_scale.exp_avg" in made.tensors()["optimizer"]
