"""From raw examples to what diffuses: decoding, augmentation, label dropout, codecs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from diffkit.codec import Codec
from diffkit.data import DataSpec
from diffkit.errors import UsageError
from diffkit.noise import RandomStreams
from diffkit.train.preprocessing import Preprocessing
from diffkit.train.validation import held_out_loss


def test_labels_are_dropped_one_by_one(toys: ModuleType) -> None:
    """pains, runners-up: not for a whole batch at once; from a counted stream, so any cut of the rows agrees."""
    preparation = Preprocessing(toys.task(condition_dropout=0.25))
    label = torch.arange(4000) % toys.CLASSES
    draws = RandomStreams(3, 5, 4000)
    _, cond = preparation.train(torch.zeros(4000, 4), {"label": label}, draws)
    dropped = cond["label"] == toys.CLASSES
    assert abs(float(dropped.float().mean()) - 0.25) < 0.03
    assert torch.equal(cond["label"][~dropped], label[~dropped])
    _, part = preparation.train(torch.zeros(100, 4), {"label": label[300:400]}, draws.rows(300))
    assert torch.equal(part["label"], cond["label"][300:400])
    _, held = preparation.held_out(torch.zeros(4000, 4), {"label": label}, draws.rows(0))
    assert torch.equal(held["label"], label)


def test_condition_dropout_without_labels_is_refused(toys: ModuleType) -> None:
    with pytest.raises(UsageError, match="no labels") as caught:
        Preprocessing(toys.task(toys.Whole(labels=False), condition_dropout=0.1))
    assert caught.value.code == "DK053"


def test_augmentations_are_for_training_only(toys: ModuleType) -> None:
    preparation = Preprocessing(toys.task(augment=(toys.Jitter(), toys.Jitter()), condition_dropout=0.0))
    x = torch.zeros(6, 4)
    draws = RandomStreams(3, 0, 6)
    changed, _ = preparation.train(x, {}, draws)
    again = draws.rows(0)
    expected = sum(0.1 * again.uniform(f"augment-{i}", x, 2).sum(1, keepdim=True) for i in range(2))
    torch.testing.assert_close(changed, expected.expand(6, 4))
    kept, _ = preparation.held_out(x, {}, draws.rows(0))
    assert torch.equal(kept, x)


def test_raw_integers_are_decoded(toys: ModuleType) -> None:
    preparation = Preprocessing(toys.task(augment=(), condition_dropout=0.0))
    x, _ = preparation.train(torch.tensor([[0, 255, 51, 204]], dtype=torch.uint8), {}, RandomStreams(0, 0, 1))
    torch.testing.assert_close(x, torch.tensor([[-1.0, 1.0, -0.6, 0.6]]))


class Half(nn.Module, Codec):
    """Keeps a learned combination of two numbers, with noise of its own shape."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2), requires_grad=learns)
        self.asked: list[bool] = []

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        assert noise.shape == (len(x), 2)
        self.asked.append(torch.is_grad_enabled())
        return x @ self.weight + 0.1 * noise

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def spec(self, data: DataSpec) -> DataSpec:
        return replace(data, channels=2)


@pytest.mark.parametrize("learns", [False, True])
def test_codecs_get_noise_of_their_shape_and_gradients_if_they_learn(toys: ModuleType, learns: bool) -> None:
    codec = Half(learns)
    preparation = Preprocessing(replace(toys.task(), codec=codec))
    z, _ = preparation.train(torch.ones(5, 4), {"label": torch.zeros(5, dtype=torch.long)}, RandomStreams(0, 0, 5))
    assert z.shape == (5, 2)
    assert (z.requires_grad, codec.asked) == (learns, [learns])
    assert ("codec.weight" in replace(toys.task(), codec=codec).learned().state_dict()) is True


def test_learned_parts_are_found_wherever_they_are(toys: ModuleType) -> None:
    @dataclass(frozen=True)
    class Outer:
        parts: tuple[object, ...]

    given = replace(toys.task(), augment=(Outer((1, nn.Linear(2, 2))),))
    assert set(given.learned()) == {"objective/times", "augment0/parts/1"}
    assert not set(toys.plain().learned())
    shared = toys.task()
    object.__setattr__(shared.objective, "weighting", shared.model.network)
    assert set(shared.learned()) == {"objective/times"}


def test_the_held_out_loss_is_the_same_at_every_call_and_by_level(toys: ModuleType) -> None:
    given = toys.plain()
    made = toys.trainer(given)

    def measure(batch_size: int, **options: int) -> object:
        found = held_out_loss(
            made.engine.model, Preprocessing(given), torch.device("cpu"), batch_size=batch_size, **options
        )
        assert found is not None
        return found

    a, b = measure(23), measure(4)
    assert made.engine.model.network.training
    assert a.loss == pytest.approx(b.loss, rel=1e-6)  # type: ignore[attr-defined]
    assert repr(a) == repr(measure(23))
    many = measure(8, rounds=20)
    assert sum(many.count) == 20 * 23  # type: ignore[attr-defined]
    assert many.level == tuple(2.5 * k + 1.25 for k in range(20))  # type: ignore[attr-defined]
    total = sum(n * loss for n, loss in zip(many.count, many.binned, strict=True) if n)  # type: ignore[attr-defined]
    assert total / (20 * 23) == pytest.approx(many.loss, rel=1e-6)  # type: ignore[attr-defined]
    assert sum(measure(8, max_examples=5).count) == 5  # type: ignore[attr-defined]


def test_nothing_held_out_is_no_loss(toys: ModuleType) -> None:
    @dataclass(frozen=True)
    class OnlyTrain(toys.Whole):  # type: ignore[name-defined,misc]
        def split(self, part: str) -> object:
            split = super().split(part)
            return split if part == "train" else type(split)(split.x[:0], {})

    journal = toys.Recorder()
    _, outcome = toys.trained(toys.task(OnlyTrain()), journal, validate_every=6)
    assert outcome.held_out is None
    assert all("held_out_loss" not in record for record in journal.records)
