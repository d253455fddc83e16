"""Trackers of optional packages: with the packages if they are installed, and with their signatures."""

from __future__ import annotations

import sqlite3
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from diffkit.basics.trackers import MLflow, RunTracker, WandB
from diffkit.callback import TrainResult
from diffkit.errors import PluginError


class WandBRun:
    """The methods of wandb.Run that the tracker calls, with the signatures of wandb 0.17 to 0.22."""

    def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, goal=None): ...
    def log(self, data, step=None, commit=None): ...
    def finish(self, exit_code=None, quiet=None): ...


def wandb_init(
    entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
    config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None, mode=None,
    force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None, tensorboard=None,
    sync_tensorboard=None, monitor_gym=None, settings=None,
): ...  # fmt: skip


class MlflowClient:
    """The methods of mlflow.MlflowClient that the tracker calls, with the signatures of mlflow 2 and 3."""

    def __init__(self, tracking_uri=None, registry_uri=None): ...
    def get_experiment_by_name(self, name): ...
    def create_experiment(self, name, artifact_location=None, tags=None): ...
    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None): ...
    def update_run(self, run_id, status=None, name=None): ...
    def log_param(self, run_id, key, value, synchronous=None): ...
    def log_metric(self, run_id, key, value, timestamp=None, step=None, synchronous=None): ...
    def log_artifact(self, run_id, local_path, artifact_path=None): ...
    def set_terminated(self, run_id, status=None, end_time=None): ...


def train(tracker: RunTracker, directory: Path, steps: range, result: TrainResult | None) -> None:
    """Call a tracker as a training does, with one preview."""
    (directory / "samples").mkdir(exist_ok=True)
    (directory / "effective.yaml").write_text("name: tiny\ntrain: {steps: 5, optimizer: {lr: 0.1}}\n")
    (directory / f"samples/step-{steps[0]:08d}.png").write_bytes(_PNG)
    tracker.on_start(directory)
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step})
    tracker.on_preview(steps[0], None)  # type: ignore[arg-type]
    tracker.on_preview(10**6, None)  # type: ignore[arg-type]
    tracker.on_end(result)
    tracker.on_end(result)


_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501012718e366"
    "0000000049454e44ae426082"
)


def test_wandb_is_called_as_its_signatures_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("wandb")
    module.init, run = create_autospec(wandb_init), create_autospec(WandBRun, instance=True)
    module.init.return_value, module.Image = run, lambda data_or_path: ("image", data_or_path)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(WandB(), tmp_path, range(1, 4), None)
    train(WandB(mode="online"), tmp_path, range(3, 6), TrainResult(5, False))
    first, second = (call.kwargs for call in module.init.call_args_list)
    assert (first["mode"], first["resume"], first["dir"]) == ("offline", None, str(tmp_path))
    assert (second["mode"], second["resume"]) == ("online", "allow")
    assert first["id"] == second["id"]
    assert first["config"]["train"]["optimizer"] == {"lr": 0.1}
    logged = [call.args[0] for call in run.log.call_args_list]
    assert [data["step"] for data in logged if "loss" in data] == [1, 2, 3, 3, 4, 5]
    assert [data["samples"][1][-8:] for data in logged if "samples" in data] == ["0001.png", "0003.png"]
    assert [call.kwargs for call in run.finish.call_args_list] == [{"exit_code": 1}, {"exit_code": 0}]


def test_mlflow_is_called_as_its_signatures_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("mlflow")
    module.MlflowClient = create_autospec(MlflowClient)
    client = module.MlflowClient.return_value
    client.get_experiment_by_name.return_value = None
    client.create_run.return_value.info.run_id = "abc"
    monkeypatch.setitem(sys.modules, "mlflow", module)
    train(MLflow(), tmp_path, range(1, 4), None)
    train(MLflow(), tmp_path, range(3, 6), TrainResult(5, False))
    assert client.create_run.call_count == 1
    client.update_run.assert_called_once_with("abc", status="RUNNING")
    params = {call.args[1]: call.args[2] for call in client.log_param.call_args_list}
    assert params == {"name": "tiny", "train.steps": "5", "train.optimizer.lr": "0.1"}
    assert [call.kwargs["step"] for call in client.log_metric.call_args_list] == [1, 2, 3, 3, 4, 5]
    assert [Path(call.args[1]).name[-8:] for call in client.log_artifact.call_args_list] == ["0001.png", "0003.png"]
    assert [call.kwargs["status"] for call in client.set_terminated.call_args_list] == ["FAILED", "FINISHED"]
    assert module.MlflowClient.call_args.kwargs["tracking_uri"] == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"


@pytest.mark.slow
def test_wandb_writes_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    train(WandB(), tmp_path, range(1, 4), TrainResult(3, False))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the database library of mlflow
def test_mlflow_writes_its_database(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    train(MLflow(), tmp_path, range(1, 4), None)
    train(MLflow(), tmp_path, range(3, 6), TrainResult(5, False))
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as database:
        steps = [row[0] for row in database.execute("select step from metrics where key = 'loss' order by step")]
        assert steps == [1, 2, 3, 3, 4, 5]
        assert dict(database.execute("select key, value from params"))["train.optimizer.lr"] == "0.1"
        assert [row[0] for row in database.execute("select status from runs")] == ["FINISHED"]
    assert len(list(tmp_path.glob("mlflow/artifacts/**/step-*.png"))) == 2


@pytest.mark.parametrize(("tracker", "name"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_the_extra_is_named(
    tracker: type[RunTracker], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=rf'pip install "diffkit\[{name}\]"') as raised:
        tracker().on_start(tmp_path)
    assert raised.value.code == "DK290"
