"""The command line in this process, and one small finished run that tests read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffkit.cli.main import main
from diffkit.host import configure

RECIPE = """\
# A ring of points, trained for a moment
name: ring
data: {name: mixture, layout: ring, count: 256, held_out: 64}
schedule: {name: linear, steps: 50}
parameterization: eps
network: {name: mlp, width: 16, depth: 1}
objective: simple
train: {steps: 20, batch_size: 32, optimizer: {name: adam, lr: 1.0e-3}, log_every: 10, checkpoint_every: 10, ema: 0.9}
sample: {sampler: ancestral, count: 8, steps: 5}
evaluate: {metrics: [sliced-wasserstein], steps: 3, count: 16}
"""


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Diffkit = Callable[..., Said]


@pytest.fixture
def diffkit(capsys: pytest.CaptureFixture[str]) -> Iterator[Diffkit]:
    """Calls the command line as the console script does. Plugins in files are forgotten at the end."""
    words = list[str]()

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        words.extend(map(str, arguments))
        code = main([str(a) for a in arguments])
        return Said(code, *capsys.readouterr())

    yield call
    if any(word.startswith("-P") for word in words):
        configure()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "ring.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; tests leave it as it is, or copy it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "ring.yaml").write_text(RECIPE)
    assert main(["run", str(folder / "ring.yaml"), "--out", str(folder / "ring"), "-q", "--device", "cpu"]) == 0
    return folder / "ring"
