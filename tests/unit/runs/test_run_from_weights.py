"""A run that begins with weights from elsewhere: it samples, another starts from it, and misfits begin nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffkit import Recipe, assemble, load_recipe, open_run, run, run_from_weights
from diffkit.errors import CheckpointError, ResourceError, UsageError
from diffkit.storage.checkpoint import CheckpointStore

TEXT = """
name: elsewhere
data: gaussian
schedule: {name: linear, steps: 10}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 0, ema: []}
sample: {count: 4}
"""


def recipe(*overrides: str) -> Recipe:
    return load_recipe(TEXT, overrides)


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: scale + value for name, value in assemble(recipe()).network.state_dict().items()}


def test_the_run_has_the_weights_and_draws_samples(tmp_path: Path) -> None:
    given = weights()
    run_from_weights(recipe(), tmp_path / "run", given, "a friend")
    opened = open_run(tmp_path / "run", device="cpu")
    for choice in ("ema", "raw"):
        found = opened.trained(choice).network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in given.items())
    assert torch.isfinite(opened.sample(3)).all()
    assert "a friend" in (tmp_path / "run" / "events.jsonl").read_text()
    with pytest.raises(UsageError, match="no weights"):
        opened.denoiser("other")


def test_numbers_take_the_type_of_the_network(tmp_path: Path) -> None:
    given = {name: value.half() for name, value in weights().items()}
    opened = run_from_weights(recipe(), tmp_path / "run", given, "half")
    assert all(value.dtype == torch.float32 for value in opened.trained().network.state_dict().values())


def test_another_run_starts_from_it(tmp_path: Path) -> None:
    run_from_weights(recipe(), tmp_path / "run", weights(), "a friend")
    tuned = run(
        recipe("train.steps=1", "train.optimizer.lr=1e-9", f"train.init={tmp_path / 'run'}"), tmp_path / "tuned"
    )
    for name, value in tuned.trained("raw").network.state_dict().items():
        torch.testing.assert_close(value, weights()[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("overrides", [["train.steps=5"], ["train.ema=0.9"]])
def test_the_recipe_says_that_nothing_is_trained(tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        run_from_weights(recipe(*overrides), tmp_path / "run", weights(), "a friend")
    assert caught.value.code == "DK056"
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_begin_nothing(tmp_path: Path) -> None:
    given = weights()
    name = sorted(given)[0]
    for wrong in (
        {**given, name: given[name][:1]},
        {**given, "more": given[name]},
        {k: given[k] for k in given if k != name},
    ):
        with pytest.raises(CheckpointError) as caught:
            run_from_weights(recipe(), tmp_path / "run", wrong, "a stranger")
        assert caught.value.code == "DK603"
    assert not (tmp_path / "run").exists()


def test_an_import_that_ran_out_of_space_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("no space is left", code="DK411", fix="free some space")

    with monkeypatch.context() as once:
        once.setattr(CheckpointStore, "preflight", full)
        with pytest.raises(ResourceError):
            run_from_weights(recipe(), tmp_path / "run", weights(), "a friend")
    opened = run_from_weights(recipe(), tmp_path / "run", weights(), "a friend")
    assert torch.isfinite(opened.sample(2)).all()


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    run_from_weights(recipe(), tmp_path / "run", weights(), "a friend")
    with pytest.raises(UsageError, match="already contains a run"):
        run_from_weights(recipe(), tmp_path / "run", weights(2.0), "another")
    opened = open_run(tmp_path / "run", device="cpu")
    assert torch.equal(next(iter(opened.trained().network.state_dict().values())), next(iter(weights().values())))
