"""Errors by their code: what scripts, searches and the pages of the documentation rely on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffkit import DiffkitError, Estimate, Level, Model, build, errors
from diffkit.chart import SIGMA
from diffkit.train.data_loading import ShuffledOrder
from diffkit.train.precision import choose

from .conftest import Diffkit

PLUGIN = """
from diffkit import hookimpl

{line}


@hookimpl
def diffkit_components():
    return []
"""


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["ls", "nothing"], "DK013", 2),
        (["cp", "nothing", "out.yaml"], "DK014", 2),
        (["cp", "digits", "RECIPE"], "DK015", 2),
        (["sample", "RUN", "--sampler", "ddim,eta"], "DK017", 2),
        (["sample", "RUN", "--condition", "label"], "DK017", 2),
        (["sample", "RUN", "--weights", "other"], "DK018", 2),
        (["new", "1st"], "DK024", 2),
        (["run", "RECIPE", "--hosts", "2"], "DK029", 2),
        (["run", "RECIPE", "--meet", "here:29500"], "DK029", 2),
        (["run", "RECIPE", "--set", "train.precision=fp16", "--device", "cpu"], "DK051", 2),
        (["run", "RECIPE", "--set", "train.init=absent", "--device", "cpu"], "DK055", 2),
        (["validate", "RECIPE", "--set", "requires={diffkit-none: '>=1'}"], "DK108", 4),
        (["validate", "RECIPE", "--set", "seed"], "DK103", 3),
        (["evaluate", "RUN", "--metric", "accuracy"], "DK124", 2),
        (["check", "nothing"], "DK710", 2),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else str(one),
)
def test_a_command_names_its_error(
    arguments: list[str],
    code: str,
    exit_code: int,
    diffkit: Diffkit,
    recipe: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(recipe.parent)
    places = {"RECIPE": str(recipe), "RUN": str(finished)}
    said = diffkit(*(places.get(one, one) for one in arguments))
    assert f"error[{code}]" in said.err
    assert said.code == exit_code


@pytest.mark.parametrize(("line", "code"), [("DIFFKIT_API = 99", "DK204"), ("1 / 0", "DK201")])
def test_a_file_that_is_no_plugin(line: str, code: str, diffkit: Diffkit, tmp_path: Path) -> None:
    file = tmp_path / f"{code.lower()}.py"
    file.write_text(PLUGIN.format(line=line))
    assert f"error[{code}]" in diffkit("check", "-P", file).err


def test_a_damaged_checkpoint(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = sorted(run.glob("checkpoints/*/network.safetensors"))[-1]
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "error[DK601]" in diffkit("checkpoints", run, "--verify").err


class Half(nn.Module):
    """A network with an output in half precision."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


SCHEDULE = build("schedule", "linear")
CALLS: dict[str, Callable[[], object]] = {
    "DK010": lambda: build("schedule", "linear", steps=object()),
    "DK050": lambda: choose("bf16", torch.device("cpu"), "mu", nn.Linear(1, 1)),
    "DK313": lambda: build("data", "dataset", dataset={"train": [], "rest": []}),
    "DK320": lambda: ShuffledOrder(0, 4, seed=0),
    "DK503": lambda: Estimate(Level(1.0, 0.0), torch.zeros(1), torch.zeros(1)).score,
    "DK504": lambda: Level(0.6, 0.8).remaining_std(0.9),
    "DK505": lambda: Model(Half(), build("parameterization", "mu", schedule=SCHEDULE), SCHEDULE)(
        torch.zeros(1, 1), SCHEDULE.level(500)
    ),
    "DK507": lambda: SIGMA.check(Level(0.0, 1.0)),
    "DK508": lambda: build("grid", "karras", sigma_min=1.0, sigma_max=0.5).levels(SCHEDULE, 4),
}


@pytest.mark.parametrize("code", CALLS)
def test_a_call_names_its_error(code: str) -> None:
    with pytest.raises(DiffkitError) as caught:
        CALLS[code]()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "code", "exit_code"),
    [
        (errors.UsageError, "DK010", 2),
        (errors.RecipeError, "DK100", 3),
        (errors.PluginError, "DK200", 4),
        (errors.DataError, "DK300", 5),
        (errors.ResourceError, "DK400", 6),
        (errors.LevelError, "DK500", 3),
        (errors.DivergedError, "DK510", 7),
        (errors.CheckpointError, "DK600", 8),
        (errors.LockedError, "DK610", 9),
        (errors.PeerError, "DK630", 11),
        (errors.ViolationError, "DK700", 10),
        (errors.StoppedError, "DK620", 75),
    ],
)
def test_an_error_without_code_has_that_of_its_class(kind: type[DiffkitError], code: str, exit_code: int) -> None:
    assert (kind("what").code, kind("what").exit_code) == (code, exit_code)
