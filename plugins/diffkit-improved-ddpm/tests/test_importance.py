"""Importance sampling of times: its density, its memory, and that the loss stays unbiased."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffkit_improved_ddpm.times import Importance
from hypothesis import given, strategies as st
from torch import Tensor

from diffkit import Discrete
from diffkit.ddpm.schedule import Linear
from diffkit.testing.fixtures import EXPLODING, TRIG

GOLDEN = json.loads((Path(__file__).parent / "golden" / "improved-diffusion.json").read_text(encoding="utf-8"))


def four() -> Discrete:
    return Discrete([0.1, 0.2, 0.3, 0.4])


def learned(steps: int = 4, history: int = 3) -> Importance:
    times = Importance(Discrete([0.1] * steps), history=history)
    for _ in range(history):
        t = torch.arange(1, steps + 1)
        times.update(t, t.double())
    return times


def test_probabilities_are_those_of_the_authors() -> None:
    """The same losses in the same order; the authors' code loops over the batch on the host."""
    times = Importance(four(), history=3, uniform=0.1)
    for (t, losses), want in zip(GOLDEN["updates"], GOLDEN["probabilities"], strict=True):
        times.update(torch.tensor(t), torch.tensor(losses, dtype=torch.float64))
        torch.testing.assert_close(times.probabilities(), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)


def test_uniform_until_every_time_has_a_full_history() -> None:
    times = Importance(four(), history=2)
    for t in (1, 2, 3, 1, 2, 3, 4):
        times.update(torch.tensor([t]), torch.tensor([float(t)]))
        torch.testing.assert_close(times.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    times.update(torch.tensor([4]), torch.tensor([4.0]))
    torch.testing.assert_close(times.probabilities(), 0.999 * torch.arange(1, 5).double() / 10 + 0.001 / 4)


def test_a_batch_with_more_losses_than_the_history_keeps_the_last() -> None:
    times = Importance(four(), history=3)
    t = torch.tensor([1, 2, 1, 1, 3, 1, 1, 2, 4])
    times.update(t, torch.arange(9.0))
    assert sorted(times.memory[0, :3].tolist()) == [3.0, 5.0, 6.0]
    assert sorted(times.memory[1, :3].tolist()) == [0.0, 1.0, 7.0]
    assert times.seen.tolist() == [5, 2, 1, 1]


@given(st.lists(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 9)), min_size=1, max_size=12), max_size=8))
def test_the_memory_is_that_of_one_loss_at_a_time(batches: list[list[tuple[int, float]]]) -> None:
    at_once, in_turn = Importance(four(), history=3), Importance(four(), history=3)
    for batch in batches:
        t, loss = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch))
        at_once.update(t.long(), loss)
        for one, value in zip(t.long(), loss):
            in_turn.update(one[None], value[None])
    assert torch.equal(at_once.memory[:, :3], in_turn.memory[:, :3])
    assert torch.equal(at_once.seen, in_turn.seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_not_remembered(bad: float) -> None:
    times = learned()
    before = times.probabilities().clone()
    times.update(torch.tensor([2, 2, 2]), torch.tensor([bad, 2.0, bad]))
    torch.testing.assert_close(times.probabilities(), before)


def test_losses_of_zero_leave_uniform_times() -> None:
    times = Importance(four(), history=1)
    times.update(torch.arange(1, 5), torch.zeros(4))
    torch.testing.assert_close(times.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))


def test_draws_follow_the_density_and_the_correction_is_its_inverse() -> None:
    """Pains 12: E[correction f] is the mean of f over uniform times, exactly."""
    times, u = learned(), (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = times.draw(u, four())
    shares = torch.bincount(t, minlength=5)[1:] / len(t)
    torch.testing.assert_close(shares.double(), times.probabilities(), rtol=0, atol=2e-5)
    every = torch.arange(1, 5)
    torch.testing.assert_close(times.correction(every, four()) * times.probabilities(), torch.full((4,), 0.25).double())
    for power in (0, 1, 2):
        mean = (times.correction(t, four()) * t.double() ** power).mean().item()
        assert mean == pytest.approx((every.double() ** power).mean().item(), rel=1e-3)


@pytest.mark.parametrize("schedule", [TRIG, EXPLODING, Linear(steps=7)], ids=["trig", "edm", "seven"])
def test_any_schedule_may_be_used(schedule: Discrete) -> None:
    """Continuous times in parts, and steps that no part begins with."""
    times, u = learned(20), (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t = times.draw(u, schedule)
    factor = times.correction(t, schedule)
    low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
    assert t.min() > low
    assert t.max() <= schedule.t_noise
    assert factor.mean().item() == pytest.approx(1.0, abs=2e-3)
    if schedule.steps is None:
        assert ((t - low) / span * factor).mean().item() == pytest.approx(0.5, abs=2e-3)


def test_a_continuous_schedule_is_divided_into_parts() -> None:
    times = Importance(TRIG, history=1, parts=10)
    t = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    times.update(t, 10 * t)
    torch.testing.assert_close(times.probabilities(), 0.999 * t / t.sum() + 0.0001)


def test_it_is_saved_restored_and_the_same_on_every_rank() -> None:
    """Pains 6: the history is part of the checkpoint; ranks receive the same losses and exchange nothing."""
    one, other = learned(), Importance(four(), history=3)
    assert set(one.state_dict()) == {"memory", "seen"}
    other.load_state_dict(one.state_dict())
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.draw(u, four()), other.draw(u, four()))
    for times in (one, other):
        times.update(torch.tensor([1, 4]), torch.tensor([9.0, 0.5]))
    assert torch.equal(one.memory, other.memory)


def test_a_resumed_run_draws_the_same_times(tmp_path: Path) -> None:
    """Pains 6: N steps are k steps, a checkpoint, and N - k steps, bit for bit, with the memory in use."""
    from diffkit import assemble, load_recipe
    from diffkit.train.config import TrainConfig
    from diffkit.train.tasks import TrainingProblem
    from diffkit.train.trainer import Trainer

    source = """
name: small
data: {name: gaussian}
schedule: {name: cosine, steps: 8}
parameterization: {name: learned-range, inner: eps}
network: {name: mlp, width: 16}
objective: {name: vlb, variance: learned, times: {name: importance, history: 2}}
train: {steps: 30, batch_size: 16, validate_every: 0}
"""
    (tmp_path / "small.yaml").write_text(source, encoding="utf-8")

    def trainer(steps: int) -> Trainer:
        made = assemble(load_recipe(str(tmp_path / "small.yaml")))
        problem = TrainingProblem(made.model, made.objective, made.data)
        return Trainer(problem, TrainConfig(steps=steps, batch_size=16), made.optimizer)

    whole = trainer(30)
    whole.run()
    first = trainer(12)
    first.run()
    saved = {group: {name: v.clone() for name, v in tensors.items()} for group, tensors in first.tensors().items()}
    second = trainer(30)
    second.load(saved, first.state())
    second.run()

    def state(one: Trainer) -> dict[str, Tensor]:
        return {f"{group}/{name}": v for group, tensors in one.tensors().items() for name, v in tensors.items()}

    for name, value in state(whole).items():
        assert torch.equal(state(second)[name], value), name
    memory = state(whole)["components/objective/times.memory"]
    assert memory.abs().sum() > 0
    assert (state(whole)["components/objective/times.seen"] >= 2).all()


def test_nothing_waits_for_the_device() -> None:
    """Pains 7: tensors on the meta device have no values, so that any operation that needs one on the host raises."""
    times, schedule = learned().to("meta"), four()
    u, t = torch.rand(16, device="meta"), torch.ones(16, dtype=torch.long, device="meta")
    drawn = times.draw(u, schedule)
    assert drawn.device.type == times.correction(drawn, schedule).device.type == "meta"
    times.update(t, u)
    with pytest.raises(RuntimeError):
        drawn.max().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device")
def test_nothing_waits_for_a_gpu() -> None:
    """Pains 7."""
    times, schedule = learned().cuda(), four()
    u, t = torch.rand(16, device="cuda"), torch.randint(1, 5, (16,), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        times.correction(times.draw(u, schedule), schedule)
        times.update(t, u)
    finally:
        torch.cuda.set_sync_debug_mode("default")
