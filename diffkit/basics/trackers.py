"""Trackers that send the numbers, the recipe and the pictures of a run to Weights & Biases or MLflow."""

from __future__ import annotations

import importlib
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from diffkit.callback import Tracker, TrainResult
from diffkit.denoiser import Model

from .extra import missing

MAX_PARAM_CHARACTERS = 250
"""Longest value of a parameter that every version of MLflow stores."""


@dataclass
class RunTracker(Tracker):
    """Base of trackers with runs of their own; a resumed training continues the run whose id is in the directory."""

    _directory: Path | None = field(default=None, init=False, repr=False)
    _run: Any = field(default=None, init=False, repr=False)  # an object of the package, which may be absent
    _id: str = field(default="", init=False, repr=False)

    @abstractmethod
    def start(self, directory: Path, run_id: str | None, config: Mapping[str, Any]) -> tuple[Any, str]:
        """Open a run.

        Args:
            directory: the run directory.
            run_id: the id of the run to continue; None for a new run.
            config: the effective recipe.

        Returns:
            The run and its id.
        """

    @abstractmethod
    def picture(self, path: Path, step: int) -> None:
        """Record the picture of samples at `path`, drawn after `step` steps."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """Close the run."""

    def on_start(self, directory: Path) -> None:
        file = directory / f"{type(self).__name__.lower()}-run.txt"
        known = file.read_text("utf-8").strip() if file.is_file() else None
        recipe = directory / "effective.yaml"
        config = yaml.safe_load(recipe.read_text("utf-8")) if recipe.is_file() else {}
        self._directory = directory
        self._run, self._id = self.start(directory, known, config)
        file.write_text(self._id + "\n", "utf-8")

    def on_preview(self, step: int, model: Model) -> None:
        assert self._directory is not None
        path = self._directory / "samples" / f"step-{step:08d}.png"
        if path.is_file():
            self.picture(path, step)

    def on_end(self, result: TrainResult | None) -> None:
        if self._run is not None:
            self.finish(failed=result is None)
            self._run = None


@dataclass
class WandB(RunTracker):
    """Scalars, recipe and previews for Weights & Biases, in the folder wandb of the run directory.

    Nothing is sent unless `mode` is online: send an offline run with `wandb sync runs/NAME/wandb/offline-run-*`.
    Raises PluginError DK290 without the package wandb.
    """

    project: str = "diffkit"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"

    def start(self, directory: Path, run_id: str | None, config: Mapping[str, Any]) -> tuple[Any, str]:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise missing("wandb", "wandb", "tracker `wandb`") from error
        run_id = run_id or uuid.uuid4().hex[:12]
        resume = "allow" if self.mode == "online" else None  # an offline run is joined when it is sent
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(directory),
            id=run_id,
            name=directory.name,
            config=dict(config),
            mode=self.mode,
            resume=resume,
        )
        # a resumed training repeats steps, which the own step of wandb would drop
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run, run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, path: Path, step: int) -> None:
        image = importlib.import_module("wandb").Image(str(path))
        self._run.log({"step": step, "samples": image})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@dataclass
class MLflow(RunTracker):
    """Scalars, recipe and previews for MLflow; look at them with `mlflow ui`.

    `uri` is the tracking server; None writes mlflow/mlflow.db and mlflow/artifacts in the run directory and uses no
    network. Raises PluginError DK290 without the package mlflow.
    """

    experiment: str = "diffkit"
    uri: str | None = None

    def start(self, directory: Path, run_id: str | None, config: Mapping[str, Any]) -> tuple[Any, str]:
        try:
            mlflow = importlib.import_module("mlflow")
        except ImportError as error:
            raise missing("mlflow", "mlflow", "tracker `mlflow`") from error
        folder = directory.resolve() / "mlflow"
        if self.uri is None:
            folder.mkdir(exist_ok=True)
        client = mlflow.MlflowClient(tracking_uri=self.uri or f"sqlite:///{folder / 'mlflow.db'}")
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            return client, run_id
        known = client.get_experiment_by_name(self.experiment)
        artifacts = None if self.uri else (folder / "artifacts").as_uri()
        experiment = known.experiment_id if known else client.create_experiment(self.experiment, artifacts)
        made = str(client.create_run(experiment, run_name=directory.name).info.run_id)
        for name, value in _flat(config):
            client.log_param(made, name, str(value)[:MAX_PARAM_CHARACTERS])
        return client, made

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._run.log_metric(self._id, name, value, step=step)

    def picture(self, path: Path, step: int) -> None:
        self._run.log_artifact(self._id, str(path), artifact_path="samples")

    def finish(self, failed: bool) -> None:
        self._run.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under names such as train.steps."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
