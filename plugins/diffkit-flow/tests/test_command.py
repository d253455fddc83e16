"""`diffkit reflow`, from a run to training on its pairs."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner
from diffkit_flow.command import reflow
from diffkit_flow.pairs import Pairs

import diffkit


def recipe(name: str, data: str, coupling: str) -> str:
    return f"""
name: {name}
data: {data}
schedule: rectified
parameterization: flow
network: {{name: mlp, width: 16}}
objective: {{name: flow-matching, coupling: {coupling}}}
train: {{steps: 3, batch_size: 16, optimizer: {{name: adam, lr: 1.0e-3}}, ema: 0.9}}
sample: {{sampler: straight, grid: trailing, steps: 4, count: 4}}
"""


def test_reflow(tmp_path: Path) -> None:
    first = tmp_path / "first.yaml"
    first.write_text(recipe("first", "{name: gaussian, mean: [1.0, 0.0], count: 64, held_out: 16}", "independent"))
    run = diffkit.run(diffkit.load_recipe(first), out=tmp_path / "first")
    file = tmp_path / "made" / "pairs.safetensors"
    result = CliRunner().invoke(reflow, [str(tmp_path / "first"), str(file), "--count", "40", "--steps", "3"])
    assert result.exit_code == 0, result.output
    assert "40 pairs" in result.output
    x, _ = Pairs(str(file))._pairs
    assert x.shape == (40, 2)
    torch.testing.assert_close(x[:4], run.sample(4, steps=3), rtol=1e-4, atol=1e-4)
    second = tmp_path / "second.yaml"
    second.write_text(recipe("second", f"{{name: pairs, path: {file}}}", "pairs"))
    again = diffkit.run(diffkit.load_recipe(second), out=tmp_path / "second")
    assert again.sample(3).shape == (3, 2)
