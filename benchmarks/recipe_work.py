"""Training and sampling steps of a recipe, for together.py.

Only names that every version of diffkit has are used, so that an older checkout can take part.
"""

from __future__ import annotations

from functools import partial

import torch
from turns import Work

from diffkit import assemble, guide, load_recipe, sample
from diffkit.runs.training import make_trainer
from diffkit.runtime.memory import keep_freed_memory


def ours(recipe: str) -> Work:
    """A training step of `recipe`, and 10 sampling steps of 16 examples; the network has its first weights."""
    keep_freed_memory()
    built = assemble(load_recipe(recipe))
    trainer = make_trainer(built, torch.device("cpu"))
    engine = trainer.engine
    source = engine.batch_source(0)

    def train() -> None:
        engine.advance(trainer.step, source)
        trainer.step += 1

    denoise = guide(built.model, built.guidance)
    classes = built.shape.classes
    x = torch.randn(16, built.shape.in_channels, *built.shape.size)
    cond = {} if classes is None else {"label": torch.arange(16) % classes}
    levels = built.levels(10)
    walk = partial(sample, partial(denoise, **cond), built.sampler, levels, x, noise=torch.randn_like)
    return {"training step": train, "10 sampling steps": walk}
