"""A run directory of an earlier version can be sampled from and reported on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from diffkit import Run, open_run

NOW = re.compile(r"(?m)^  lr_schedule:\n(    .*\n)+  strategy:\n(    .*\n)+")
THEN = """\
  schedule:
    name: {name}
    end: 0.0
  warmup: 5
"""


@pytest.fixture(params=["constant", "cosine"])
def earlier(request: pytest.FixtureRequest, real_runs: dict[str, Run], tmp_path: Path) -> Path:
    """A run as 42ed4cf left it: the learning rate in two keys, dropout of labels, results without intervals."""
    copy = shutil.copytree(real_runs["points"].directory.path, tmp_path / "earlier")
    text = (copy / "effective.yaml").read_text()
    old = NOW.sub(THEN.format(name=request.param), text)
    assert old != text
    old = re.sub(r"(?m)^(callbacks|trackers|conditions): .*\n", "", old).replace("condition_dropout", "label_dropout")
    (copy / "effective.yaml").write_text(old + "trackers: []\n")
    results = json.loads((copy / "results.json").read_text())
    kept = ("definition", "headline", "held_out", "lower_is_better", "nfe", "reference", "sampler", "samples", "values")
    for name, one in results["metrics"].items():
        results["metrics"][name] = {key: one[key] for key in kept} | {"seconds": 0.1}
    (copy / "results.json").write_text(json.dumps(results))
    (copy / "report.html").unlink()
    return copy


def test_it_gives_the_same_samples(earlier: Path, real_runs: dict[str, Run]) -> None:
    assert torch.equal(open_run(earlier, device="cpu").sample(3), real_runs["points"].sample(3))


def test_it_gives_a_report_without_a_verdict(earlier: Path) -> None:
    opened = open_run(earlier, device="cpu")
    opened.write_report()
    page = (earlier / "report.html").read_text()
    assert "these results have no intervals; measure again with `diffkit evaluate`" in page
    assert opened.recipe.train.lr_schedule.options["warmup"] == 5
