"""improved-diffusion's and guided-diffusion's U-Nets as `unet`: golden outputs, and checkpoints through the worker."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_diffusers.convert_worker import tensors_of
from diffkit_diffusers.openai import Heads, Training, import_checkpoint, openai_weights, read_architecture
from diffkit_diffusers.pickled import WORKER, read_pickled
from torch import Tensor

from diffkit import CheckpointError, Shape, UsageError, build

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("formulas", GOLDEN / "formulas.py")
assert _spec is not None
assert _spec.loader is not None
formulas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(formulas)
CASES: dict[str, Any] = json.loads((GOLDEN / "openai.json").read_text())
HEADS = {"improved": Heads(4), "improved-labels": Heads(2), "guided": Heads(1, 16, new_order=True)}


def state_dict(case: str) -> dict[str, Tensor]:
    """The reference's weights: those of the golden file, and a bias for each but the table of labels."""
    shapes = dict(CASES[case]["weights"])
    for name, shape in CASES[case]["weights"].items():
        if name != "label_emb.weight":
            shapes[name.replace(".weight", ".bias")] = shape[:1]
    made: dict[str, Tensor] = formulas.weights(shapes)
    return made


def answer(case: str, heads: Heads) -> Tensor:
    weights = state_dict(case)
    found = read_architecture(weights, 8, heads)
    shape = Shape(*found.channels, (8, 8), found.labels)
    network = build("network", "unet", shape=shape, **found.options).eval()
    network.load_state_dict(openai_weights(weights, found.layout, heads))
    x, t, label = formulas.inputs(3, 8)
    with torch.no_grad():
        y: Tensor = network(x, t, label if found.labels else None)
    return y.flatten()[:: CASES[case]["every"]]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_authors_code(case: str) -> None:
    """Both ways to add time, to resample, to order q, k and v and to count heads; with labels and without."""
    torch.testing.assert_close(answer(case, HEADS[case]), torch.tensor(CASES[case]["output"]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("case", "wrong"), [("improved", Heads(2)), ("guided", Heads(1, 16)), ("guided", Heads(2, None, True))]
)
def test_the_golden_numbers_depend_on_the_heads(case: str, wrong: Heads) -> None:
    gap = (answer(case, wrong) - torch.tensor(CASES[case]["output"])).abs().max()
    assert gap > 1e-3


def test_what_the_weights_show() -> None:
    found = read_architecture(state_dict("guided"), 8, HEADS["guided"])
    assert found.channels == (3, 6)
    assert found.labels == 3
    assert found.options["multipliers"] == [1, 2]
    assert found.options["attention"] == [4]
    assert (found.options["downsample"], found.options["time"]) == ("resblock", "scale-shift")
    plain = read_architecture(state_dict("improved-labels"), 16, Heads(2)).options
    assert (plain["downsample"], plain["upsample"], plain["time"], plain["attention"]) == (
        "conv",
        "nearest",
        "add",
        [8],
    )


def test_the_null_class_is_a_row_of_zeros() -> None:
    weights = state_dict("guided")
    table = openai_weights(weights, read_architecture(weights, 8, HEADS["guided"]).layout, HEADS["guided"])[
        "embedding.table.weight"
    ]
    assert table.shape[0] == 4
    assert torch.equal(table[:3], weights["label_emb.weight"])
    assert not table[3].any()


def test_other_checkpoints_are_refused() -> None:
    weights = state_dict("improved")
    layout = read_architecture(weights, 8, Heads(4)).layout
    for wrong, size in (({"a": torch.zeros(1)}, 8), ({}, 8), (weights, 7)):
        with pytest.raises(UsageError) as caught:
            read_architecture(wrong, size, Heads(4))
        assert caught.value.code == "DK080"
    with pytest.raises(UsageError, match="5 heads"):
        openai_weights(weights, layout, Heads(5))
    with pytest.raises(CheckpointError, match="do not fit"):
        openai_weights(weights | {"more": torch.zeros(1)}, layout, Heads(4))
    with pytest.raises(CheckpointError, match="do not fit"):
        openai_weights({k: v for k, v in weights.items() if k != "out.2.bias"}, layout, Heads(4))
    half = weights | {"time_embed.0.weight": weights["time_embed.0.weight"][:, :16]}
    with pytest.raises(UsageError, match="cannot express widths"):
        read_architecture(half, 8, Heads(4))


def test_a_checkpoint_becomes_a_run(tmp_path: Path) -> None:
    """4000 steps with timesteps up to 1000: c_noise is a quarter of the index, and the variance is learned."""
    weights = state_dict("improved")
    torch.save(weights, tmp_path / "model.pt")
    run = import_checkpoint(
        tmp_path / "model.pt",
        tmp_path / "run",
        size=8,
        heads=Heads(4),
        training=Training(4000, "cosine"),
    )
    assert run.recipe.parameterization.name == "learned-range"
    assert run.assembly.schedule.steps == 4000
    x, t, _ = formulas.inputs(3, 8)
    with torch.no_grad():
        y = run.trained().network(x, 4.0 * t).flatten()[:: CASES["improved"]["every"]]
    torch.testing.assert_close(y, torch.tensor(CASES["improved"]["output"]), rtol=2e-5, atol=2e-5)
    assert torch.isfinite(run.sample(2, steps=2)).all()


def test_options_of_the_training_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffkit_diffusers.openai.read_pickled", lambda path: state_dict("improved-labels"))
    run = import_checkpoint(
        tmp_path / "model.pt",
        tmp_path / "run",
        size=8,
        heads=Heads(2),
        training=Training(500, "linear", "x0", rescaled_time=False),
        overrides=["sample.count=3"],
    )
    recipe = run.recipe
    assert (recipe.parameterization.name, recipe.network.name, recipe.sample.count) == ("x0", "unet", 3)
    assert recipe.schedule.options == {"steps": 500, "beta_start": 2e-4, "beta_end": 0.04}
    assert recipe.sample.sampler.options == {"variance": "large"}
    assert run.assembly.shape == Shape(3, 3, (8, 8), 3)


class Evil:
    """What a hostile checkpoint holds: unpickling it would call os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_hostile_checkpoints_are_refused_and_do_nothing(tmp_path: Path) -> None:
    """No call, no memory beyond the limit, no other content than tensors, and the reason in one line."""
    mark = tmp_path / "called"
    hostile: dict[str, Any] = {
        "call.pt": {"a": Evil(f"touch {mark}")},
        "bomb.pt": {"a": torch.zeros(1).expand(1 << 40)},
    }
    for name, content in hostile.items():
        torch.save(content, tmp_path / name)
    messages = {}
    for name in (*hostile, "absent.pt"):
        with pytest.raises(UsageError) as caught:
            read_pickled(tmp_path / name)
        assert caught.value.code == "DK082"
        assert "\n" not in caught.value.message
        messages[name] = caught.value.message
    assert not mark.exists()
    assert "Weights only" in messages["call.pt"]
    assert "memory" in messages["bomb.pt"]
    with pytest.raises(UsageError, match="more than the 10 allowed"):
        read_pickled(tmp_path / "bomb.pt", max_bytes=10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_the_worker_may_start_no_process_and_use_no_more_memory(tmp_path: Path) -> None:
    """Its limits hold even if weights_only did not."""
    import subprocess

    code = (
        f"import importlib.util as u, resource, torch; s = u.spec_from_file_location('w', {str(WORKER)!r});"
        "w = u.module_from_spec(s); s.loader.exec_module(w); w.limit(1 << 26)\n"
        "assert resource.getrlimit(resource.RLIMIT_NPROC) == (0, 0)\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
        "assert resource.getrlimit(resource.RLIMIT_FSIZE) == (1 << 26, 1 << 26)\n"
        "torch.zeros(1 << 22)\n"
        "try:\n    torch.zeros(1 << 26)\nexcept RuntimeError: print('held')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "held", done.stderr


def test_only_plain_tensors_pass() -> None:
    source = torch.arange(6.0).reshape(2, 3).T
    found = tensors_of({"a": source})
    assert found["a"].is_contiguous()
    assert torch.equal(found["a"], source)
    for wrong in (
        {"a": torch.nn.Parameter(torch.zeros(1))},
        {"a": torch.zeros(2, 2).to_sparse()},
        {"a": torch.zeros(1, dtype=torch.int64)},
        {"a" * 300: torch.zeros(1)},
        {"state": {}},
        {1: torch.zeros(1)},
        {},
        torch.zeros(1),
    ):
        with pytest.raises(ValueError):
            tensors_of(wrong)
