"""What people write when they mean something else: the nearest valid name, and the usual synonyms."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    "accumulation": ("accumulate",),
    "accumulation_steps": ("accumulate",),
    "gradient_accumulation": ("accumulate",),
    "amp": ("precision",),
    "augmentation": ("augment",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "beta1": ("betas",),
    "beta2": ("betas",),
    "cfg": ("guidance",),
    "dataset": ("data",),
    "denoiser": ("network",),
    "dtype": ("precision",),
    "ema_decay": ("ema",),
    "epochs": ("steps",),
    "experiment": ("name",),
    "grad_clip": ("clip",),
    "gradient_clip": ("clip",),
    "max_grad_norm": ("clip",),
    "iterations": ("steps",),
    "learning_rate": ("lr",),
    "logger": ("trackers",),
    "loggers": ("trackers",),
    "loss": ("objective",),
    "lr_schedule": ("schedule",),
    "max_steps": ("steps",),
    "metric": ("evaluate", "metrics"),
    "metrics": ("evaluate",),
    "mixed_precision": ("precision",),
    "model": ("network",),
    "n_samples": ("count",),
    "num_samples": ("count",),
    "noise_schedule": ("schedule",),
    "num_inference_steps": ("steps",),
    "num_steps": ("steps",),
    "num_train_timesteps": ("steps",),
    "num_workers": ("workers",),
    "timesteps": ("steps",),
    "diffusion_steps": ("steps",),
    "optim": ("optimizer",),
    "optimiser": ("optimizer",),
    "parametrization": ("parameterization",),
    "plugins": ("requires",),
    "prediction": ("parameterization",),
    "prediction_type": ("parameterization",),
    "random_seed": ("seed",),
    "sampling": ("sample",),
    "save_every": ("checkpoint_every",),
    "scheduler": ("schedule", "sampler"),
    "tracker": ("trackers",),
    "training": ("train",),
    "unet": ("network",),
    **dict.fromkeys(("type", "kind", "class", "_target_", "target", "id"), ("name",)),
    "warmup_steps": ("warmup",),
    "wd": ("weight_decay",),
    "channel_mult": ("multipliers",),
    "ch_mult": ("multipliers",),
    "dim_mults": ("multipliers",),
    "num_channels": ("channels",),
    "model_channels": ("channels",),
    "num_res_blocks": ("blocks",),
    "attention_resolutions": ("attention",),
    "num_heads": ("heads",),
}

VALUES = {
    **dict.fromkeys(("half", "float16", "16", "mixed"), "fp16"),
    **dict.fromkeys(("float", "float32", "32", "full"), "fp32"),
    **dict.fromkeys(("bfloat16", "bfloat"), "bf16"),
    **dict.fromkeys(("fixedsmall", "fixed_small", "beta_tilde"), "small"),
    **dict.fromkeys(("fixedlarge", "fixed_large", "beta"), "large"),
    **dict.fromkeys(("learned_range", "learned_interpolation"), "learned"),
}
"""What other tools call some values."""


def nearest_value(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is meant, by a synonym or a slip."""
    choices = tuple(choices)
    synonym = VALUES.get(_form(word))
    return synonym if synonym in choices else nearest(word, choices)


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that `word` is most likely a slip of, None where none is close."""
    by_form = {_form(choice): choice for choice in choices}
    found = difflib.get_close_matches(_form(word), by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def meant(key: str, here: Iterable[str], elsewhere: dict[str, str]) -> str | None:
    """What an unknown key should have been: a name that is valid here, or the path where it is valid.

    `elsewhere` maps valid names to their paths. The same word in another spelling comes first, then the same name in
    another section, a near certain slip, synonyms, and last whatever is close.
    """
    here = tuple(here)
    if near := nearest(key, here, 0.99):
        return near
    if key in elsewhere:
        return elsewhere[key]
    if near := nearest(key, here, 0.8):
        return near
    synonyms = SYNONYMS.get(_form(key), ())
    for synonym in synonyms:
        if synonym in here:
            return synonym
    for synonym in synonyms:
        if synonym in elsewhere:
            return elsewhere[synonym]
    return nearest(key, here) or elsewhere.get(nearest(key, elsewhere, 0.8) or "")


def quote(value: object) -> str:
    """A value as it may be shown on a terminal: bounded, and without control characters."""
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return f'"{text}"' if text.isprintable() else ascii(text)
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "a mapping"
    return repr(value)


def _form(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
