"""Starting from another run, progress, averages of the log."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from diffkit.errors import CheckpointError, UsageError
from diffkit.runtime.progress import Progress
from diffkit.storage.checkpoint import CheckpointStore
from diffkit.train.fine_tune import InitialWeights, common_classes, load_initial
from diffkit.train.state import MetricAccumulator


def finished(toys: ModuleType, directory: Path, **changes: Any) -> Any:
    made, _ = toys.trained(toys.task(), **changes)
    CheckpointStore(directory / "checkpoints").save(made.step, made.tensors(), made.state().to_json(), {})
    return made


def test_fine_tuning_starts_from_the_average(toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = finished(toys, tmp_path / "runs" / "old")
    new = toys.trainer(toys.task(seed=9))
    monkeypatch.chdir(tmp_path)
    assert load_initial(new, "old") == InitialWeights(12)
    assert new.step == 0
    for name, value in old.tensors()["ema-ema"].items():
        assert torch.equal(new.tensors()["network"][name], value)
        assert torch.equal(new.tensors()["ema-power"][name], value)
    assert new.tensors()["optimizer"] == {}


def test_fine_tuning_from_a_run_without_averages(toys: ModuleType, tmp_path: Path) -> None:
    old = finished(toys, tmp_path / "old", ema=())
    new = toys.trainer(toys.task(seed=9))
    load_initial(new, tmp_path / "old")
    assert torch.equal(new.tensors()["network"]["first.weight"], old.tensors()["network"]["first.weight"])


def test_another_network_is_refused_with_every_difference(toys: ModuleType, tmp_path: Path) -> None:
    finished(toys, tmp_path / "old")
    new = toys.trainer(toys.task())
    new.engine.network.second = torch.nn.Linear(16, 3)
    new.engine.network.third = torch.nn.Linear(2, 2)
    before = new.engine.network.first.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_initial(new, tmp_path / "old", strict=True)
    text = caught.value.render()
    assert "4 tensors differ" in text
    assert "second.bias: shape (4,) in the weights, (3,) here" in text
    assert "third.weight: absent from the weights, shape (2, 2) here" in text
    assert torch.equal(new.engine.network.first.weight, before)


def test_what_fits_is_kept_and_what_does_not_is_named(toys: ModuleType, tmp_path: Path) -> None:
    """Another number of outputs: the other layers are taken, the last one keeps its initial values."""
    old = finished(toys, tmp_path / "old", ema=())
    new = toys.trainer(toys.task(seed=9))
    new.engine.network.second = torch.nn.Linear(16, 3)
    before = new.engine.network.second.weight.clone()
    found = load_initial(new, tmp_path / "old")
    assert found.differences == (
        "second.bias: shape (4,) in the weights, (3,) here",
        "second.weight: shape (4, 16) in the weights, (3, 16) here",
    )
    assert torch.equal(new.engine.network.second.weight, before)
    assert torch.equal(new.tensors()["network"]["first.weight"], old.tensors()["network"]["first.weight"])
    new.engine.network.first = torch.nn.Linear(5, 200)
    with pytest.raises(CheckpointError, match="do not fit"):  # less than half of the numbers would be taken
        load_initial(new, tmp_path / "old")


@pytest.mark.parametrize("null", [0, 1])
def test_rows_of_classes_are_taken_by_name(null: int) -> None:
    """New classes keep their initial row, the null class stays the last one; any axis may count the classes."""
    before, now = ["cat", "dog", "hat"], ["ant", "hat", "cat", "dog"]
    old, new = torch.arange(3.0 + null)[:, None].repeat(1, 2), torch.full((4 + null, 2), -1.0)
    want = [-1.0, 2.0, 0.0, 1.0, 3.0][: 4 + null]
    for axis in (0, 1):
        taken, count = common_classes(old.transpose(0, axis), new.transpose(0, axis), before, now)
        assert taken.transpose(0, axis)[:, 0].tolist() == want
        assert count == 2 * (3 + null)
    assert common_classes(old, torch.full((7, 2), -1.0), before, now)[1] == 0
    assert common_classes(old, torch.full((4 + null, 3), -1.0), before, now)[1] == 0
    assert common_classes(old, new, None, now)[1] == 0


def test_a_run_that_is_not_there(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        load_initial(toys.trainer(), tmp_path / "nothing")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError):
        load_initial(toys.trainer(), tmp_path / "empty")


def test_training_as_a_library_shows_nothing(toys: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    toys.trained(toys.task())
    assert capsys.readouterr() == ("", "")


def test_progress_is_closed_whatever_happens(toys: ModuleType) -> None:
    calls: list[str] = []

    class Told(Progress):
        def start(self, step: int, steps: int) -> None:
            calls.append(f"start {step}/{steps}")

        def advance(self, step: int) -> None:
            if step == 3:
                raise KeyboardInterrupt

        def close(self) -> None:
            calls.append("close")

    with pytest.raises(KeyboardInterrupt):
        toys.trained(toys.task(), progress=Told())
    assert calls == ["start 0/12", "close"]


def test_windows_survive_a_checkpoint() -> None:
    cpu = torch.device("cpu")
    whole, first, second = MetricAccumulator(cpu), MetricAccumulator(cpu), MetricAccumulator(cpu)
    values = [{"loss": torch.tensor(0.1 * k), "grad_norm": torch.tensor(1.0 / (k + 1))} for k in range(7)]
    for k, value in enumerate(values):
        whole.add(value)
        if k == 3:
            second.load(first.state())
        (first if k < 3 else second).add(value)
    assert second.means() == whole.means()
    whole.clear()
    assert whole.means() == {}
