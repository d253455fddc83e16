"""A finished or stopped run, opened for reading: its recipe, denoisers, samples and results."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classifier import Classifier
from ..data import as_examples
from ..denoiser import Denoiser
from ..errors import UsageError
from ..grid import Grid
from ..guidance import guide
from ..level import Level
from ..metric import Metric
from ..recipe.assembly import Assembly, ClassifierParts, Parts, assemble_parts, require_diffusion
from ..recipe.spec import Recipe
from ..runtime.distributed import SINGLE_PROCESS, Ranks, resolve_device
from ..runtime.progress import console_progress
from ..sampler import Sampler
from ..storage.run_directory import RunDirectory
from .evaluation import Measurement, chosen_metrics, measure, model_setting, refuse_unfit, result_names
from .held_out import measure_held_out
from .planning import (
    MAX_SEED,
    Component,
    SampleRequest,
    count_of,
    evaluation_plan,
    grid_levels,
    plan_request,
    require_whole,
)
from .records import effective_recipe
from .reporting import write_report
from .results import EvaluationResult, MetricResult, StageRecord, StageStatus, stage_inputs, stopwatch
from .sample_files import PARTS, scratch_folder, shared_draw
from .sampling import SampleBatch, SamplingPlan, draw_samples, enough_for
from .weights import (
    TrainedWeights,
    digest_of,
    group_of,
    load_weights,
    offloads,
    trained_model,
    with_adapters,
)

Named = Sequence[tuple[str, Metric]]


class Run:
    """A run directory. Weights are loaded when they are first needed; methods may be called from several threads.

    Args:
        directory: The run directory.
        device: Device to compute on.
        parts: The objects of its recipe, if they are built already.
        overrides: Changes of the section `sample` of its recipe, see `open_run`.
    """

    def __init__(
        self,
        directory: RunDirectory,
        device: torch.device,
        parts: Parts | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.directory, self.device = directory, device
        self._given, self._overrides = parts, overrides
        self._lock = threading.RLock()
        self._loaded: dict[str, TrainedWeights] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.directory.path)!r}, device={str(self.device)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """The whole recipe, with defaults.

        Raises:
            RecipeError: It is no longer valid.
            PluginError: The run was made with a plugin in a file that is not loaded.
        """
        return self._given.recipe if self._given is not None else effective_recipe(self.directory, self._overrides)

    @cached_property
    def parts(self) -> Parts:
        """The objects of the recipe, those of its task. Their weights are untrained; see `trained_parts`.

        The spec of the data is the recorded one; the data itself is read only if examples are used. Those of an opened
        run lie on the CPU, so that the device holds the trained weights alone.
        """
        return self._given if self._given is not None else assemble_parts(self.recipe)

    @property
    def assembly(self) -> Assembly:
        """The objects of the recipe of a diffusion, see `parts`. Raises UsageError for a run of another task."""
        return require_diffusion(self.parts, str(self.directory.path))

    @property
    def results(self) -> EvaluationResult:
        """The results of the metrics, those of the recipe first: `run.results.metrics["frechet"].value`.

        Raises:
            CheckpointError: results.json is damaged.
        """
        return EvaluationResult.read(self.directory).in_order(result_names(self.recipe.evaluate.metrics))

    def trained(self, weights: str = "ema", adapters: Sequence[str] = ()) -> Assembly:
        """Return the objects of the recipe with trained weights, which later calls and other threads do not change.

        Calls that select the same weights without adapters return the same objects.

        Args:
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".
            adapters: Files of adapters, such as LoRA, to merge into a copy of the weights, each FILE or FILE:WEIGHT.

        Returns:
            The objects.

        Raises:
            CheckpointError: No checkpoint can be loaded, or an adapter does not fit the run.
            UsageError: The run does not have these weights, or an adapter cannot be read.
        """
        if not adapters:
            return require_diffusion(self.trained_parts(weights), str(self.directory.path))
        if offloads(self.recipe) or self.assembly.recipe.sample.precision != "float32":
            return load_weights(self.directory, self.parts, self.device, weights, adapters).assembly
        return with_adapters(self._trained(weights), adapters).assembly

    def trained_parts(self, weights: str = "ema") -> Parts:
        """Return the objects of the recipe of any task with trained weights, as `trained` does for a diffusion."""
        return self._trained(weights).parts

    def denoiser(self, weights: str = "ema", *, guidance: bool = True) -> Denoiser:
        """Return the trained model: (x, level, **cond) -> Estimate. It owns its weights.

        Args:
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".
            guidance: Apply the guidance of the recipe.

        Raises:
            CheckpointError: No checkpoint can be loaded.
            UsageError: The run does not have these weights.
        """
        assembly = self.trained(weights)
        return guide(assembly.model, assembly.guidance) if guidance else assembly.model

    def classifier(self, weights: str = "ema") -> Classifier:
        """Return the trained classifier: (x, level) -> logits, (B, K). It owns its weights.

        Args:
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".

        Raises:
            UsageError: The run is of another task, or does not have these weights.
            CheckpointError: No checkpoint can be loaded.
        """
        if not isinstance(self.parts, ClassifierParts):
            message = f"{self.directory.path} trains a {self.recipe.task}, not a classifier"
            raise UsageError(message, code="DK124", fix="name a run of a recipe with task: classifier")
        found = self.trained_parts(weights)
        assert isinstance(found, ClassifierParts)
        return found.classifier

    def sample(
        self,
        count: int | None = None,
        *,
        sampler: Sampler[Any] | Component | None = None,
        grid: Grid | Component | None = None,
        steps: int | None = None,
        seed: int = 0,
        weights: str = "ema",
        labels: Sequence[int | str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: Mapping[str, Any] | None = None,
        x: Tensor | None = None,
        start: float | None = None,
        levels: Sequence[Level] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative: str | None = None,
        scale: float | None = None,
        size: tuple[int, ...] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        latents: Any = None,
        adapters: Sequence[str] = (),
    ) -> Tensor:
        """Draw samples. Each argument that is left out is taken from the recipe.

        Args:
            count: Number of samples; by default as many as `latents` or `x`, or as the recipe or the texts state.
            sampler: A sampler, its name, or a mapping of its name and options.
            grid: A grid, its name, or a mapping of its name and options.
            steps: Number of sampling steps.
            seed: Seed of the noise, 0 to 2^63 - 1. Sample i of a seed is the same in every batch.
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".
            labels: Classes by number or name, repeated until there are `count`; by default those of the recipe, else
                all in turn.
            conditions: Conditions by name, each one value or a list that is repeated until there are `count`: a class
                by number or name, a text, numbers or an array, see `read_condition`. If some are given, the others are
                null; by default those of the recipe, else those of held-out examples.
            guidance: Changes of the guidance of the recipe: by name of a guidance its options, or only its `scale`,
                such as {"cfg": 3.0}.
            x: Examples (count, C, *S) to start from instead of noise: image to image, or, for a mixture of two
                examples, interpolation. Floats are in the model's range, uint8 are raw values; see `as_examples`.
            start: The time whose noise is added to `x`.
            levels: The levels that the sampler visits, noisiest first, in place of `grid`, `steps` and `start`.
            prompt: Short for `conditions={"text": prompt}`.
            negative: Short for `guidance={"cfg": {"negative": {"text": negative}}}`.
            scale: Short for `guidance={"cfg": scale}`.
            size: The size of the samples, such as (height, width).
            image: A picture to start from, for the share `strength` of the steps.
            strength: 0 to 1; default 0.8, and 1 with a mask.
            mask: The part of `image` to repaint (white); the other pixels are those of `image`.
            latents: Start noise before the codec, or a file of it. See `SampleRequest` for the forms of these.
            adapters: Files of adapters, such as LoRA, each FILE or FILE:WEIGHT.

        Returns:
            (count, C, *S) float32 on the CPU, in the model's range.

        Raises:
            ArgumentError: An argument is of the wrong type, out of range, or does not fit the run.
            CheckpointError: No checkpoint can be loaded.
        """
        request = SampleRequest(
            count=count,
            sampler=sampler,
            grid=grid,
            steps=steps,
            seed=seed,
            weights=weights,
            labels=labels,
            conditions=conditions,
            guidance=guidance,
            x=x,
            start=start,
            levels=levels,
            prompt=prompt,
            negative=negative,
            scale=scale,
            size=size,
            image=image,
            strength=strength,
            mask=mask,
            latents=latents,
            adapters=adapters,
        )
        return self.draw(request).x

    def draw(self, request: SampleRequest, *, progress: bool = False) -> SampleBatch:
        """Draw what `request` describes, with labels, number of network calls and time.

        Raises:
            UsageError, RecipeError: The request does not fit the run.
            CheckpointError: No checkpoint can be loaded.
        """
        count = count_of(self.assembly, request)
        x = None if request.x is None else as_examples(request.x, self.assembly.data, count=count)
        assembly, plan = self._planned(request)
        with self._alone(), enough_for(plan), console_progress("sampling", progress) as shown:
            return draw_samples(assembly.model, plan, assembly.codec, self.device, x=x, progress=shown)

    @contextlib.contextmanager
    def drawing(
        self, request: SampleRequest, path: Path, *, progress: bool = False, ranks: Ranks = SINGLE_PROCESS
    ) -> Iterator[SampleBatch]:
        """Draw as `draw`, by several processes and into a file, so that memory does not grow with the number.

        Args:
            request: The request, without `x`.
            path: The file that the samples are for. Beside it they are kept until the context ends; the same request
                continues sampling that was interrupted.
            progress: Show progress on standard error.
            ranks: The processes. Each gets all samples.

        Returns:
            A context manager with the samples.

        Raises:
            DiffkitError: As `draw` raises.
            ResourceError: The samples cannot be written.
        """
        assembly, plan = self._planned(request)
        weights = f"{request.weights} {self._trained(request.weights).step}"
        weights += f" {digest_of(assembly)}" if request.adapters else ""
        parts = path.with_name(f".{path.name}.parts")
        drawing = shared_draw(parts, plan, assembly.recipe, weights, ranks)
        shown = console_progress("sampling", progress and ranks.is_main)
        with (
            self._alone(),
            enough_for(plan),
            drawing.draw(assembly.model, assembly.codec, self.device, progress=shown) as drawn,
        ):
            yield drawn

    def _alone(self) -> AbstractContextManager[object]:
        """Return a context that other threads wait for while parts take turns on the device."""
        return self._lock if offloads(self.recipe) else nullcontext()

    def _planned(self, request: SampleRequest) -> tuple[Assembly, SamplingPlan]:
        """Return the objects with trained weights, and the plan of a request."""
        given = plan_request(self.assembly, request).given  # refuse a request before weights are loaded
        assembly = self.trained(request.weights, request.adapters)
        plan = plan_request(assembly, request, given)
        if any(getattr(one, "negative", None) and getattr(one, "scale", None) == 1.0 for one in plan.guidance):
            warnings.warn("the negative condition of the guidance has no effect at scale 1", stacklevel=3)
        return assembly, plan

    def evaluate(
        self,
        metrics: str | Sequence[str] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        count: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        weights: str = "ema",
        progress: bool = False,
        raise_if_stopped: Callable[[], None] = lambda: None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> EvaluationResult:
        """Measure samples of the run, or its model, and add the results to results.json.

        The results of the recipe's own evaluation stay the headline of the run, whatever else is measured. Samples are
        drawn only for metrics that need them. An interrupted measurement of the model continues.

        Args:
            metrics: Names of metrics; by default those of the recipe.
            options: Options of these metrics; by default those of the recipe, else their own defaults.
            count: Number of samples; by default that of the recipe.
            steps: Number of sampling steps; by default that of the recipe.
            seed: Seed of the samples; by default that of the recipe.
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".
            progress: Show progress on standard error.
            raise_if_stopped: Called after each sampling step and before each metric; an exception that it raises ends
                the evaluation.
            ranks: The processes that draw the samples and measure together. The first one writes the results.

        Returns:
            All results of the run.

        Raises:
            UsageError: `count`, `steps` or `seed` is out of range or has no effect, a metric does not fit the model, or
                the run does not have these weights.
            RecipeError: There is no metric of this name, or it does not have these options.
            CheckpointError: No checkpoint can be loaded.
            DataError: There are too few samples or examples for a metric.
        """
        progress = progress and ranks.is_main
        recipe, own = self.recipe, result_names(self.recipe.evaluate.metrics)
        named = chosen_metrics(self.parts, metrics, options or {})
        if not named:
            return self.results
        seed = recipe.seed if seed is None else seed
        require_whole("seed", seed, 0, MAX_SEED)
        if count is not None:
            require_whole("count", count, 2)
        refuse_unfit(recipe.task, dict(named), str(self.directory.path))
        asked = Measurement(count, steps, seed, weights, progress, raise_if_stopped, ranks)
        measuring = self._of_diffusion if isinstance(self.parts, Assembly) else self._of_examples
        measured: dict[str, MetricResult] = {}
        with stopwatch() as spent:
            for found in measuring(named, asked):
                measured |= found
                with ranks.together():
                    if ranks.is_main:
                        self.results.updated(measured).write(self.directory)
        if not ranks.is_main:
            return self.results
        # After an evaluation of another kind, `run` still does that of the recipe.
        if own and set(own) <= measured.keys() and all(one.own for one in measured.values()):
            step = self._trained(weights).step
            record = StageRecord(step=step, seconds=spent[0], inputs=stage_inputs(recipe)["evaluate"])
            StageStatus(self.directory).write("evaluate", record)
        return self.results

    def _of_diffusion(self, named: Named, asked: Measurement) -> Iterator[dict[str, MetricResult]]:
        """Yield the results of metrics of the model, then of samples, on the first process."""
        recipe, seed, weights, ranks = self.assembly.recipe, asked.seed, asked.weights, asked.ranks
        if all(metric.needs == "model" for _, metric in named) and (asked.count, asked.steps) != (None, None):
            fix = "leave --count and --steps out; the options of the metric are given by --set, such as --set steps=100"
            raise UsageError(f"{', '.join(name for name, _ in named)}: no sample is drawn", code="DK017", fix=fix)
        usual_count = recipe.evaluate.count or recipe.sample.count
        usual_steps = recipe.evaluate.steps or self.assembly.steps
        usual = usual_count, usual_steps, recipe.seed, group_of(self.assembly, "ema")
        count = usual_count if asked.count is None else asked.count
        steps = usual_steps if asked.steps is None else asked.steps
        require_whole("steps", steps, 1)
        for _, metric in named:
            metric.check(model_setting(self.assembly))
        trained = self._trained(weights)
        settings = {
            "sampler": f"{(recipe.evaluate.sampler or recipe.sample.sampler).name}, {steps} steps",
            "steps": steps,
            "weights": weights,
            "step": trained.step,
            "own": (count, steps, seed, group_of(trained.assembly, weights)) == usual,
        }
        for needs in ("model", "samples"):  # an interrupted run draws no samples twice for metrics of the model
            part = [(name, metric) for name, metric in named if metric.needs == needs]
            if not part:
                continue
            with contextlib.ExitStack() as files:
                drawn = None
                if needs == "samples":
                    drawn = files.enter_context(self._drawing(trained, asked, count, steps))
                yield measure(
                    part,
                    trained.assembly.data,
                    drawn,
                    settings=settings,
                    seed=seed,
                    model=trained_model(trained, self.directory, self.device, writes=ranks.is_main),
                    progress=asked.progress,
                    raise_if_stopped=asked.raise_if_stopped,
                    folder=files.enter_context(scratch_folder(self.directory.samples, ranks)),
                    ranks=ranks,
                )

    def _of_examples(self, named: Named, asked: Measurement) -> Iterator[dict[str, MetricResult]]:
        """Yield the results of metrics of a codec or a classifier on held-out examples."""
        if asked.steps is not None:
            raise UsageError(f"a {self.recipe.task} has no sampling steps", code="DK017", fix="leave --steps out")
        weights, trained = asked.weights, self._trained(asked.weights)
        own = group_of(self.parts, weights) == group_of(self.parts, "ema")
        settings, place = {"weights": weights, "step": trained.step, "own": own}, self.directory.samples
        stopped, ranks, size = asked.raise_if_stopped, asked.ranks, (asked.count, asked.seed)
        yield measure_held_out(named, trained.parts, self.device, *size, settings, place, stopped, ranks)

    def _drawing(
        self, trained: TrainedWeights, asked: Measurement, count: int, steps: int
    ) -> AbstractContextManager[SampleBatch]:
        """Return a context with the samples of an evaluation, in a file until it ends."""
        assembly = trained.assembly
        plan = evaluation_plan(
            assembly,
            count=count,
            seed=asked.seed,
            levels=grid_levels(assembly, assembly.evaluation_grid, steps),
            batch_size=assembly.recipe.evaluate.batch_size,
        )
        drawing = shared_draw(
            self.directory.samples / PARTS, plan, assembly.recipe, f"{asked.weights} {trained.step}", asked.ranks
        )
        return drawing.draw(
            assembly.model,
            assembly.codec,
            self.device,
            progress=console_progress("sampling for metrics", asked.progress),
            on_step=lambda step: asked.raise_if_stopped(),
        )

    def write_report(self) -> None:
        """Write report.html from the files in the run directory."""
        write_report(self.directory, self.parts)

    def _trained(self, weights: str) -> TrainedWeights:
        group = group_of(self.parts, weights)
        with self._lock:
            if group not in self._loaded:
                self._loaded[group] = load_weights(self.directory, self.parts, self.device, weights)
            return self._loaded[group]


def open_run(path: str | Path, *, device: str = "auto", overrides: Sequence[str] = ()) -> Run:
    """Open the run in a directory.

    Args:
        path: The directory.
        device: "auto", "cpu", "cuda" or "cuda:I".
        overrides: Texts "sample.KEY=VALUE" that change the section `sample` of its recipe, such as
            "sample.preset=diffusers", or name the present place of a file or run of codec, network or conditions:
            "network.run=DIR". The directory is not changed.

    Returns:
        The run.

    Raises:
        UsageError: There is no run, no such device, or another section is changed.
    """
    return Run(RunDirectory.open(path), resolve_device(device), overrides=tuple(overrides))
