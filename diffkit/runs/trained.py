"""A run as a library sees it: its recipe, its denoiser, its samples and its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
import torch
from torch import Tensor
from ..denoiser import Denoiser
from ..errors import UsageError
from ..grid import Grid
from ..recipe import Assembly, Recipe, assemble, build, load_recipe
from ..schedule import default_steps, sampled
from ..sampler import Sampler
from ..runtime.distributed import resolve_device
from .sampling import Drawn, draw
from .evaluation import measure
from .stage_status import StageStatus, stopwatch
from ..runtime.progress import batches
from ..storage.run_directory import RunDirectory
from .sampling import guided, plan
from .weights import load_weights


Component = str | Mapping[str, Any]


@dataclass
class Run:
    """One run directory, opened for reading. Weights are loaded on first use."""

    directory: RunDirectory
    device: torch.device
    _loaded: str | None = field(default=None, repr=False)
    _step: int = field(default=0, repr=False)

    @cached_property
    def recipe(self) -> Recipe:
        """The whole recipe, with defaults. Raises RecipeError where it is no longer valid, say for a lost plugin."""
        return load_recipe(self.directory.effective)

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of the recipe."""
        return assemble(self.recipe, self.device)

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json; empty before the first evaluation."""
        return self.directory.read_json("results.json")

    def denoiser(self, weights: str = "ema", *, guidance: bool = True) -> Denoiser:
        """The trained model, under the guidance of the recipe or without; `weights`: as `load_weights` takes.

        Raises CheckpointError where no checkpoint loads.
        """
        self._load(weights)
        return guided(self.assembly, self.assembly.model) if guidance else self.assembly.model

    def sample(
        self,
        count: int,
        *,
        sampler: Sampler[Any] | Component | None = None,
        grid: Grid | Component | None = None,
        steps: int | None = None,
        seed: int = 0,
        weights: str = "ema",
        labels: Sequence[int] | None = None,
        x: Tensor | None = None,
        start: float | None = None,
    ) -> Tensor:
        """`count` samples (N, C, *S), decoded; sample i of a seed is the same whatever the batch size.

        `x` starts from given examples (N, C, *S) at time `start` instead of from noise: image to image; interpolation
        is a mixture of two such x. Everything else is as the recipe says unless it is given.
        """
        return self.draw(
            count,
            sampler=sampler,
            grid=grid,
            steps=steps,
            seed=seed,
            weights=weights,
            labels=labels,
            x=x,
            start=start,
        ).x

    def draw(
        self,
        count: int,
        *,
        sampler: Sampler[Any] | Component | None = None,
        grid: Grid | Component | None = None,
        steps: int | None = None,
        seed: int = 0,
        weights: str = "ema",
        labels: Sequence[int] | None = None,
        x: Tensor | None = None,
        start: float | None = None,
        progress: bool = False,
    ) -> Drawn:
        """What `sample` draws, with labels, the number of evaluations and the time it took."""
        if x is not None and len(x) != count:
            raise UsageError(f"{len(x)} examples were given for {count} samples", code="DK019", fix="give one for each")
        if x is not None and start is None:
            raise UsageError("x needs start, the time whose noise is added to it", code="DK019", fix="pass start=")
        assembly = self.assembly
        chosen = plan(
            assembly,
            count=count,
            seed=seed,
            sampler=self._component("sampler", sampler) or assembly.sampler,
            levels=self._levels(self._component("grid", grid) or assembly.grid, steps, start),
            labels=labels,
        )
        with batches("sampling", count, progress) as on_batch:
            return draw(self.denoiser(weights), chosen, assembly.codec, self.device, given=x, on_batch=on_batch)

    def evaluate(
        self,
        metrics: Sequence[str] | None = None,
        *,
        count: int | None = None,
        steps: int | None = None,
        weights: str = "ema",
        progress: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Measure the run and write results.json; the metrics of the recipe unless others are named.

        `check` is called after each sampling step and before each metric; what it raises ends this.
        """
        recipe, assembly = self.recipe, self.assembly
        as_told = (metrics, count, steps, weights) == (None, None, None, "ema")
        named = (
            list(zip([one.name for one in recipe.evaluate.metrics], assembly.metrics))
            if metrics is None
            else [(name, build("metric", name)) for name in metrics]
        )
        if not named:
            return self.results
        steps = steps or recipe.evaluate.steps or assembly.steps
        chosen = plan(
            assembly,
            count=count or recipe.evaluate.count or recipe.sample.count,
            seed=recipe.seed,
            sampler=assembly.evaluation_sampler,
            levels=self._levels(assembly.evaluation_grid, steps, None),
            batch_size=recipe.evaluate.batch_size,
        )
        with stopwatch() as spent:
            denoise = self.denoiser(weights)
            with batches("sampling for metrics", chosen.count, progress) as on_batch:
                drawn = draw(
                    denoise, chosen, assembly.codec, self.device, on_batch=on_batch, on_step=lambda step: check()
                )
            sampler = recipe.evaluate.sampler or recipe.sample.sampler
            records = measure(named, assembly.data, drawn, f"{sampler.name}, {steps} steps", recipe.seed, check)
        results = self.results
        results["metrics"] = {**results.get("metrics", {}), **records}
        self.directory.write_json("results.json", results)
        if as_told:  # anything else is not what `run` would do at the end
            StageStatus(self.directory).write("evaluate", self._step, spent[0])
        return results

    def write_report(self) -> None:
        """Write report.html from what lies in the directory."""
        from .reporting import write_report

        write_report(self.directory, self.assembly)

    def _load(self, weights: str) -> None:
        if self._loaded != weights:
            self._step = load_weights(self.directory, self.assembly, weights, self.device)
            self._loaded = weights

    def _levels(self, grid: Grid, steps: int | None, start: float | None) -> list[Any]:
        recipe = self.recipe
        part = sampled(self.assembly.schedule, start if start is not None else recipe.sample.start)
        wanted = steps or recipe.sample.steps or default_steps(part)
        return grid.levels(part, min(wanted, part.steps) if part.steps and steps is None else wanted)

    def _component(self, kind: str, given: Any) -> Any:
        if given is None or not isinstance(given, str | Mapping):
            return given
        options = {"name": given} if isinstance(given, str) else dict(given)
        return build(kind, options.pop("name"), **options)


def open_run(path: str | Path, *, device: str = "auto") -> Run:
    """The run in the directory `path`. Raises UsageError where there is none."""
    return Run(RunDirectory.open(path), resolve_device(device))
