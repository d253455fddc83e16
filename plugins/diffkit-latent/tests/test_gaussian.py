"""The network `gaussian-start`: what it learns before a run, what the run stores of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_latent.gaussian import EXACT, EXAMPLES, principal

from diffkit import RecipeError, Shape, build, load_recipe, open_run, run


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "start",
        "data": {"name": "digits", "labels": False},
        "schedule": "linear",
        "parameterization": "v",
        "network": {
            "name": "gaussian-start",
            "components": 8,
            "inner": {"name": "unet", "channels": 4, "multipliers": [1]},
        },
        "objective": "simple",
        "train": {"steps": 2, "batch_size": 4, "optimizer": "adam", "ema": 0.5, "checkpoint_every": 1},
        "sample": {"sampler": "ancestral", "steps": 2, "count": 1},
        **changes,
    }


def test_a_run_fits_the_network_once_and_stores_what_it_learned(tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run")
    network = {weights: open_run(tmp_path / "run").trained(weights).network for weights in ("raw", "ema")}
    data = open_run(tmp_path / "run").trained().data
    split = data.split("train")
    x0 = torch.stack([data.to_model_range(split[i][0]) for i in range(len(split))]).flatten(1)
    for one in network.values():
        torch.testing.assert_close(one.mean[0], x0.mean(0))
        variances = torch.linalg.eigvalsh(torch.cov(x0.T, correction=0)).flip(0)
        torch.testing.assert_close(one.variances[0], variances[:8], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.rest[0], variances[8:].mean(), rtol=1e-4, atol=1e-5)
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count(f"8 principal components of {EXAMPLES // len(split) * len(split):,} examples") == 1


def test_components_of_examples_of_many_values() -> None:
    source = torch.Generator().manual_seed(0)
    x = (
        torch.randn(60, 20, generator=source)
        @ torch.diag(0.7 ** torch.arange(20.0))
        @ torch.randn(20, EXACT + 1, generator=source)
    )
    x = x - x.mean(0)
    variances, axes = principal(x / 60**0.5, 8)
    _, lengths, _ = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(variances, lengths[:8].square() / 60, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((x @ axes).var(0, correction=0), variances, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(axes.T @ axes, torch.eye(8), rtol=0, atol=1e-5)


def test_few_examples_leave_components_unused() -> None:
    network = build(
        "network",
        "gaussian-start",
        inner={"name": "unet", "channels": 4, "multipliers": [1], "attention": []},
        shape=Shape(1, 1, (4, 4)),
        schedule=build("schedule", "linear"),
        parameterization=build("parameterization", "eps"),
    )
    x0 = torch.randn(3, 1, 4, 4)
    assert network.fit(x0) == "3 principal components of 3 examples hold 1.0000 of the variance"
    assert network.variances[0, 3:].abs().max() == 0
    assert network(x0, torch.full((3,), 500.0)).isfinite().all()


@pytest.mark.parametrize(("side", "examples"), [(16, 5000), (64, 5000), (256, 341), (1024, 256)])
def test_large_examples_are_fewer(side: int, examples: int) -> None:
    """2^26 values, 256 MiB, as far as there are 256 examples."""
    given = {"schedule": build("schedule", "linear"), "parameterization": build("parameterization", "eps")}
    shape, inner = Shape(3, 3, (side, side)), {"name": "unet", "channels": 4, "multipliers": [1], "attention": []}
    with torch.device("meta"):
        made = build("network", "gaussian-start", inner=inner, shape=shape, components=1, **given)
    assert made.examples_to_fit == examples


def test_a_schedule_that_is_trained_is_refused() -> None:
    changes = {"schedule": "learned-vp", "parameterization": "eps", "objective": "continuous-vlb"}
    with pytest.raises(RecipeError, match="needs a schedule that is not trained"):
        load_recipe(recipe(**changes))
