"""Make a run from weights that were trained elsewhere, to sample from it, measure it or fine-tune it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import UsageError
from ..recipe.assembly import assemble
from ..recipe.effective import recipe_hash
from ..recipe.spec import Recipe
from ..storage.checkpoint import CheckpointStore
from ..storage.jsonl import EventLog
from ..train.fine_tune import refuse_misfit
from .pipeline import open_directory
from .stage_status import StageRecord, StageStatus
from .trained import Run
from .training import problem_of


def run_from_weights(
    recipe: Recipe,
    out: str | Path,
    weights: Mapping[str, Tensor],
    source: str,
    components: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Run:
    """Make a run directory in which training is done and the network has these weights.

    Args:
        recipe: The recipe, with `train: {steps: 0, ema: []}`.
        out: The run directory, which must not be a run yet.
        weights: The state dict of the network of `recipe`.
        source: A description of the origin of the weights, for events.jsonl and the manifest.
        components: The state dicts of further modules by their path, such as `codec` and `conditions/text`; all that
            the recipe has must be given.

    Returns:
        The run.

    Raises:
        UsageError: The recipe trains, or `out` is a run.
        CheckpointError: A weight or a component is missing, unknown, or of another shape.
    """
    if recipe.train.steps or recipe.train.ema:
        fix = "write train: {steps: 0, ema: []} in the recipe"
        raise UsageError("imported weights require a recipe without training steps and averages", code="DK056", fix=fix)
    assembly = assemble(recipe)
    parts = {path: {f"{path}.{name}": one for name, one in part.items()} for path, part in (components or {}).items()}
    given = {"network": weights, "components": {name: one for part in parts.values() for name, one in part.items()}}
    own = {"network": assembly.network.state_dict(), "components": problem_of(assembly).learned().state_dict()}
    fitting = {}
    for group, tensors in given.items():
        refuse_misfit(tensors, own[group], source)
        if tensors:
            fitting[group] = {name: tensor.to(own[group][name].dtype) for name, tensor in tensors.items()}
    opened = open_directory(Path(out), assembly, torch.device("cpu"))
    with opened, EventLog(opened.directory.path) as events:
        if opened.resumed:
            raise UsageError(f"{out} already contains a run", code="DK056", fix="choose another directory")
        store = CheckpointStore(opened.directory.checkpoints, on_event=events.event)
        store.preflight(fitting)
        meta = {"recipe": recipe_hash(recipe), "diffkit": __version__, "torch": torch.__version__, "source": source}
        store.save(0, fitting, {"step": 0, "averages": []}, meta)
        StageStatus(opened.directory).write("train", StageRecord(step=0))
        events.event("import", {"from": source})
    return Run(opened.directory, torch.device("cpu"))
