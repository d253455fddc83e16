"""A run from weights that were trained elsewhere: everything that sampling, evaluation and fine-tuning need of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import UsageError
from ..recipe import Recipe, assemble
from ..recipe.effective import recipe_hash
from ..storage.checkpoint import CheckpointStore
from ..storage.jsonl import EventLog
from ..train.fine_tune import refuse_misfit
from .pipeline import open_directory
from .stage_status import StageStatus
from .trained import Run


def adopt(recipe: Recipe, out: str | Path, weights: Mapping[str, Tensor], source: str) -> Run:
    """Begin the run directory `out` with `weights`, the state dict of the network of `recipe`, as its last step.

    Training counts as done, so the recipe must say `train: {steps: 0, ema: []}`; `source` is noted in the journal.
    Raises UsageError where it says otherwise or `out` is a run already, CheckpointError where a weight is missing, left
    over, or of another shape.
    """
    if recipe.train.steps or recipe.train.ema:
        raise UsageError(
            "weights from elsewhere come with neither steps nor averages of this run",
            code="DK056",
            fix="write train: {steps: 0, ema: []}",
        )
    own = assemble(recipe).network.state_dict()
    refuse_misfit(weights, own, source)
    fitting = {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
    opened = open_directory(Path(out), recipe, torch.device("cpu"))
    with opened, EventLog(opened.directory.path) as journal:
        if opened.resumed:
            raise UsageError(f"{out} is a run already", code="DK056", fix="choose another directory")
        store = CheckpointStore(opened.directory.checkpoints, on_event=journal.event)
        store.preflight({"network": fitting})
        meta = {"recipe": recipe_hash(recipe), "diffkit": __version__, "torch": torch.__version__, "source": source}
        store.save(0, {"network": fitting}, {"step": 0, "averages": []}, meta)
        StageStatus(opened.directory).write("train", 0, 0.0)
        journal.event("adopt", {"from": source})
    return Run(opened.directory, torch.device("cpu"))
