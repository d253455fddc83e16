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

from ..data import as_examples
from ..denoiser import Denoiser
from ..errors import UsageError
from ..grid import Grid
from ..guidance import guide
from ..level import Level
from ..metric import TrainedModel
from ..recipe.assembly import Assembly, assemble
from ..recipe.presets import of_preset
from ..recipe.spec import Recipe
from ..recipe.validate import load_recipe
from ..recipe.yaml import parse
from ..runtime.distributed import SINGLE_PROCESS, Ranks, resolve_device
from ..runtime.memory import enough_memory
from ..runtime.progress import console_progress
from ..sampler import Sampler
from ..storage.run_directory import RunDirectory
from .evaluation import RunStore, chosen_metrics, measure, model_setting, result_names
from .planning import (MAX_SEED, Component, SampleRequest, SamplingPlan, grid_levels, plan_request, plan_sampling, require_whole)
from .plugin_files import require_files
from .reporting import write_report
from .results import EvaluationResult, MetricResult
from .sample_files import PARTS, scratch_folder, shared_draw
from .sampling import SampleBatch, draw_samples
from .stage_status import StageRecord, StageStatus, stage_inputs, stopwatch
from .weights import DataRecord, SourceRecord, TrainedWeights, Turns, digest_of, group_of, load_weights, with_adapters


class Run:
    """A run directory. Weights are loaded when they are first needed; methods may be called from several threads.

    Args:
        directory: The run directory.
        device: Device to compute on.
        assembly: The objects of its recipe, if they are built already.
        overrides: Changes of the section `sample` of its recipe, see `open_run`.
    """

    def __init__(
        self,
        directory: RunDirectory,
        device: torch.device,
        assembly: Assembly | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.directory, self.device = directory, device
        self._given, self._overrides = assembly, overrides
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
        return self._given.recipe if self._given is not None else _effective_recipe(self.directory, self._overrides)

    @cached_property
    def assembly(self) -> Assembly:
        """The objects of the recipe. Their weights are untrained; see `trained`.

        The spec of the data is the recorded one; the data itself is read only if examples are used.
        """
        device = "cpu" if self.recipe.sample.offload else self.device
        return self._given if self._given is not None else assemble(self.recipe, device)

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
            return self._trained(weights).assembly
        plain = self._load(weights) if self.recipe.sample.offload else self._trained(weights)
        return self._placed(with_adapters(plain, adapters)).assembly

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

    def sample(
        self,
        count: int,
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
            count: Number of samples.
            sampler: A sampler, its name, or a mapping of its name and options.
            grid: A grid, its name, or a mapping of its name and options.
            steps: Number of sampling steps.
            seed: Seed of the noise, 0 to 2^63 - 1. Sample i of a seed is the same in every batch.
            weights: "raw", "ema" (the first average), the name of an average, or "width:W".
            labels: Classes by number or name, repeated until there are `count`; by default those of the recipe, else
                all in turn.
            conditions: Conditions by name, each one value or a list that is repeated until there are `count`: a class by
                number or name, a text, numbers or an array, see `read_condition`. If some are given, the others are
                null; by default those of the recipe, else those of held-out examples.
            guidance: Changes of the guidance of the recipe: by name of a guidance its options, or only its `scale`, such
                as {"cfg": 3.0}.
            x: Examples (count, C, *S) to start from instead of noise: image to image, or, for a mixture of two
                examples, interpolation. Floats are in the model's range, uint8 are raw values; see `as_examples`.
            start: The time whose noise is added to `x`.
            levels: The levels that the sampler visits, noisiest first, in place of `grid`, `steps` and `start`.
            prompt: Short for `conditions={"text": prompt}`.
            negative: Short for `guidance={"cfg": {"negative": {"text": negative}}}`.
            scale: Short for `guidance={"cfg": scale}`.
            size: The size of the samples, such as (height, width).
            image: A picture to start from; `strength`: the share of the steps that are made of it.
            strength: 0 to 1; default 0.8, and 1 with a mask.
            mask: What of `image` is repainted (white); the other pixels are those of `image`.
            latents: Start noise before the codec. See `SampleRequest` for the forms of these.
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
        x = None if request.x is None else as_examples(request.x, self.assembly.data, count=request.count)
        assembly, plan = self._planned(request)
        with self._alone(), _enough_for(plan), console_progress("sampling", progress) as shown:
            return draw_samples(assembly.model, plan, assembly.codec, self.device, x=x, progress=shown)

    @contextlib.contextmanager
    def drawing(
        self, request: SampleRequest, path: Path, *, progress: bool = False, ranks: Ranks = SINGLE_PROCESS
    ) -> Iterator[SampleBatch]:
        """Draw as `draw`, by several processes and into a file, so that memory does not grow with the number.

        Args:
            request: The request, without `x`.
            path: The file that the samples are for. Beside it they are kept until the context ends; the same request
                continues a drawing that was stopped.
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
            _enough_for(plan),
            drawing.draw(assembly.model, assembly.codec, self.device, progress=shown) as drawn,
        ):
            yield drawn

    def _alone(self) -> AbstractContextManager[object]:
        """Return a context that other threads wait for while parts take turns on the device."""
        return self._lock if self.recipe.sample.offload else nullcontext()

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
        named = chosen_metrics(self.assembly, metrics, options or {})
        if not named:
            return self.results
        sampled = any(metric.needs == "samples" for _, metric in named)
        if not sampled and (count, steps) != (None, None):
            fix = "leave --count and --steps out; the options of the metric are given by --set, such as --set steps=100"
            raise UsageError(f"{', '.join(name for name, _ in named)}: no sample is drawn", code="DK017", fix=fix)
        usual_count = recipe.evaluate.count or recipe.sample.count
        usual_steps = recipe.evaluate.steps or self.assembly.steps
        usual = usual_count, usual_steps, recipe.seed, group_of(self.assembly, "ema")
        count = usual_count if count is None else count
        steps = usual_steps if steps is None else steps
        seed = recipe.seed if seed is None else seed
        require_whole("count", count, 2)
        require_whole("steps", steps, 1)
        require_whole("seed", seed, 0, MAX_SEED)
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
        measured: dict[str, MetricResult] = {}
        with stopwatch() as spent:
            for needs in ("model", "samples"):  # an interrupted run draws no samples twice for metrics of the model
                part = [(name, metric) for name, metric in named if metric.needs == needs]
                if not part:
                    continue
                with contextlib.ExitStack() as files:
                    drawn = None
                    if needs == "samples":
                        drawing = self._drawing(trained, count, steps, seed, weights, progress, raise_if_stopped, ranks)
                        drawn = files.enter_context(drawing)
                    measured |= measure(
                        part,
                        trained.assembly.data,
                        drawn,
                        settings=settings,
                        seed=seed,
                        model=self._model(trained, ranks),
                        progress=progress,
                        raise_if_stopped=raise_if_stopped,
                        folder=files.enter_context(scratch_folder(self.directory.samples, ranks)),
                        ranks=ranks,
                    )
                    with ranks.together():
                        if ranks.is_main:
                            self.results.updated(measured).write(self.directory)
        if not ranks.is_main:
            return self.results
        # After an evaluation of another kind, `run` still does that of the recipe.
        if own and settings["own"] and set(own) <= measured.keys():
            inputs = stage_inputs(recipe)["evaluate"]
            record = StageRecord(step=trained.step, seconds=spent[0], inputs=inputs)
            StageStatus(self.directory).write("evaluate", record)
        return self.results

    def _drawing(
        self,
        trained: TrainedWeights,
        count: int,
        steps: int,
        seed: int,
        weights: str,
        progress: bool,
        raise_if_stopped: Callable[[], None],
        ranks: Ranks,
    ) -> AbstractContextManager[SampleBatch]:
        """Return a context with the samples of an evaluation, in a file until it ends."""
        assembly = trained.assembly
        plan = plan_sampling(
            assembly,
            count=count,
            seed=seed,
            sampler=assembly.evaluation_sampler,
            levels=grid_levels(assembly, assembly.evaluation_grid, steps),
            batch_size=assembly.recipe.evaluate.batch_size,
        )
        drawing = shared_draw(self.directory.samples / PARTS, plan, assembly.recipe, f"{weights} {trained.step}", ranks)
        return drawing.draw(
            assembly.model,
            assembly.codec,
            self.device,
            progress=console_progress("sampling for metrics", progress),
            on_step=lambda step: raise_if_stopped(),
        )

    def _model(self, trained: TrainedWeights, ranks: Ranks) -> TrainedModel:
        assembly = trained.assembly
        return TrainedModel(
            model_setting(assembly),
            assembly.model,
            assembly.codec,
            device=self.device,
            batch_size=assembly.recipe.evaluate.batch_size or assembly.recipe.sample.batch_size,
            weights=digest_of(assembly),
            store=RunStore(self.directory, writes=ranks.is_main),
        )

    def write_report(self) -> None:
        """Write report.html from the files in the run directory."""
        write_report(self.directory, self.assembly)

    def _trained(self, weights: str) -> TrainedWeights:
        group = group_of(self.assembly, weights)
        with self._lock:
            if group not in self._loaded:
                self._loaded[group] = self._placed(self._load(weights))
            return self._loaded[group]

    def _load(self, weights: str) -> TrainedWeights:
        found = load_weights(self.directory, self.assembly, weights)
        if self.recipe.sample.precision != "float32":
            found.assembly.network.to(getattr(torch, self.recipe.sample.precision))
        return found

    def _placed(self, found: TrainedWeights) -> TrainedWeights:
        """Let the parts take turns on the device if the recipe states it."""
        if self.recipe.sample.offload:
            Turns(found.assembly, self.device)
        return found


def _enough_for(plan: SamplingPlan) -> AbstractContextManager[None]:
    """Return a context that reports exhausted memory as an error of the plan."""
    needs = f"{min(plan.count, plan.batch_size)} samples of shape {plan.shape} at a time"
    fix = "lower sample.batch_size in the recipe, or choose another --device"
    return enough_memory(lambda: needs, "sampling", fix)


def _effective_recipe(directory: RunDirectory, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run; `train.schedule` and `train.warmup` of earlier versions become `train.lr_schedule`,
    and `data.label_dropout` becomes `data.condition_dropout`.
    """
    if other := [text for text in overrides if not text.strip().startswith("sample.")]:
        fix = "set a key of `sample`, such as --set sample.steps=20, or run a recipe with the other value"
        raise UsageError(f"{other[0]!r} cannot be set: the run is trained", code="DK017", fix=fix)
    tree = parse(directory.effective_text(), str(directory.effective)).plain()
    train, data = (tree.get(key) if isinstance(tree, dict) else None for key in ("train", "data"))
    require_files(directory)
    known: dict[str, Any] = {"spec": DataRecord.read(directory).spec, "record": SourceRecord.read(directory).record}
    if not isinstance(tree, dict) or not isinstance(train, dict) or not isinstance(data, dict):
        return load_recipe(directory.effective, overrides, **known)
    overrides = of_preset(tree, overrides)
    earlier = {"schedule", "warmup"} & train.keys(), "label_dropout" in data
    if not any(earlier):
        return load_recipe(directory.effective, overrides, **known)
    if "label_dropout" in data:
        data["condition_dropout"] = data.pop("label_dropout")
    if not earlier[0]:
        return load_recipe(tree, overrides, **known)
    options = train.pop("schedule", {"name": "constant"})
    if options["name"] == "constant":
        options = {"name": "constant"}
    train["lr_schedule"] = {**options, "warmup": train.pop("warmup", 0)}
    return load_recipe(tree, overrides, **known)


def open_run(path: str | Path, *, device: str = "auto", overrides: Sequence[str] = ()) -> Run:
    """Open the run in a directory.

    Args:
        path: The directory.
        device: "auto", "cpu", "cuda" or "cuda:I".
        overrides: Texts "sample.KEY=VALUE" that change the section `sample` of its recipe, such as
            "sample.preset=diffusers"; the directory is not changed.

    Returns:
        The run.

    Raises:
        UsageError: There is no run, no such device, or another section is changed.
    """
    return Run(RunDirectory.open(path), resolve_device(device), overrides=tuple(overrides))
