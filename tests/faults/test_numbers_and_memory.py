"""A loss or a gradient that is not finite, and memory that runs out: clear ends, and nothing bad is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import RECIPE, Server, events, fault, finished, run, steps, trained

PLUGIN = '''\
"""A network whose loss or gradient is NaN at its call number `at` (0: never)."""
from diffkit import Entry, hookimpl


@hookimpl
def diffkit_components():
    yield Entry("network", "fragile", "fragile:Fragile", "breaks once")


def __getattr__(name):
    if name != "Fragile":
        raise AttributeError(name)
    import torch
    from diffkit import Network, Shape

    class Fragile(Network):
        def __init__(self, shape: Shape, at: int = 0, backward: bool = False) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)
            self.at, self.backward, self.calls = at, backward, 0

        def forward(self, x, c_noise, label=None):
            y = self.inner(torch.cat([x, c_noise[:, None] / 10], 1))
            self.calls += self.training
            if not self.training or self.calls != self.at:
                return y
            return y + (self.inner.weight.sum() * 0).sqrt() if self.backward else y * float("nan")

    globals()[name] = Fragile
    return Fragile
'''
NETWORK = "{name: mlp, width: 16, depth: 1, embedding_channels: 8, dropout: 0.1}"


@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
def test_a_number_that_is_not_finite(diffkit: Server, recipe: Path, backward: bool) -> None:
    """Reliability 11: exit 7 before the weights or their averages change; the same command goes on from the last
    checkpoint. The network breaks at its 14th call, which is in step 7, then, counting anew, in steps 12 and 17."""
    (recipe.parent / "fragile.py").write_text(PLUGIN)
    options = ("-P", recipe.parent / "fragile.py")
    for out, at in (("run", 14), ("whole", 0)):
        fragile = f"{{name: fragile, at: {at}, backward: {str(backward).lower()}}}"
        recipe.with_name(f"{out}.yaml").write_text(RECIPE.replace(NETWORK, fragile))
    for step in (5, 10, 15):
        ended = run(diffkit, recipe.with_name("run.yaml"), options=options)
        assert ended.code == 7
        assert f"error[DK510] the loss or its gradient is not finite at step {step + 2}" in ended.err
        assert "fix: lower train.optimizer.lr" in ended.err
        assert steps(recipe.parent / "run")[-1] == step
        assert events(recipe.parent / "run", "error")[-1]["code"] == "DK510"
    assert run(diffkit, recipe.with_name("run.yaml"), options=options).code == 0
    assert run(diffkit, recipe.with_name("whole.yaml"), "whole", options=options).code == 0
    assert finished(recipe.parent / "run") == finished(recipe.parent / "whole")


@pytest.mark.parametrize(
    ("at", "nth", "said", "knob"),
    [
        ("train.engine:Engine.__init__", 1, "memory ran out during training", "train.accumulate"),
        ("train.engine:Engine.advance", 8, "memory ran out during training", "train.accumulate"),
        ("runs.sampling:_Recorder.__call__", 3, "memory ran out during sampling", "sample.batch_size"),
        ("runs.trained:measure", 1, "memory ran out during sampling", "evaluate.count"),
    ],
    ids=["at the start", "in a step", "in sampling", "in a metric"],
)
def test_memory_runs_out(
    diffkit: Server, recipe: Path, uninterrupted: Path, at: str, nth: int, said: str, knob: str
) -> None:
    """Reliability 12: what was needed, three things to turn, and the same command goes on."""
    ended = run(diffkit, recipe, faults=[fault(at, nth, "memory")])
    assert ended.code == 6, ended.err
    assert f"error[DK401] {said}" in ended.err
    after = ended.err.partition("error[DK401]")[2]  # a warning before it has a fix of its own
    fix = next(line for line in after.splitlines() if line.startswith("  fix: "))
    assert knob in fix
    assert len(fix.split(", ")) == 3
    assert "M parameters" in ended.err or " MB" in ended.err
    assert "Tried to allocate 20.00 GiB" in ended.err
    assert run(diffkit, recipe).code == 0
    assert trained(recipe.parent / "run") == trained(uninterrupted)
