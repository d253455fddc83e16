"""What the first-party plugins register, so that a name that is not installed can say how to install it.

Whoever adds a plugin to plugins/ adds its line here; tests/unit/host/test_known.py holds the two together.
A distribution `diffkit-edm` has the entry point `edm`.
"""

from __future__ import annotations

FIRST_PARTY: dict[str, dict[str, tuple[str, ...]]] = {
    "diffkit-ddim": {"sampler": ("ddim",)},
    "diffkit-diffusers": {
        "network": ("diffusers", "diffusers-unet", "scaled-time"),
        "sampler": ("diffusers",),
        "data": ("shape-only",),
    },
    "diffkit-dpmsolver": {
        "sampler": ("dpmpp-2m", "dpmpp-3m", "dpmpp-2s", "unipc", "adams"),
        "grid": ("angle", "uniform-logsnr"),
    },
    "diffkit-edm": {
        "schedule": ("edm",),
        "parameterization": ("edm",),
        "times": ("lognormal",),
        "weighting": ("edm",),
        "grid": ("karras",),
        "sampler": ("euler", "heun"),
        "augmentation": ("edm",),
    },
    "diffkit-improved-ddpm": {
        "schedule": ("cosine",),
        "parameterization": ("learned-range",),
        "objective": ("hybrid",),
        "times": ("importance",),
    },
    "diffkit-flow": {
        "schedule": ("rectified",),
        "parameterization": ("flow", "v"),
        "times": ("logit-normal",),
        "grid": ("shifted",),
        "objective": ("flow-matching",),
        "sampler": ("straight",),
        "data": ("pairs",),
    },
    "diffkit-p2": {"weighting": ("p2", "min-snr", "soft-min-snr")},
    "diffkit-score-sde": {
        "schedule": ("vp", "sub-vp", "ve"),
        "parameterization": ("score",),
        "weighting": ("likelihood",),
        "sampler": ("euler-maruyama", "reverse-diffusion", "predictor-corrector", "probability-flow"),
    },
    "diffkit-zero-snr": {"schedule": ("zero-snr",), "guidance": ("rescale",)},
}


RECIPES: dict[str, tuple[str, ...]] = {
    "diffkit-ddim": ("digits-ddim",),
    "diffkit-diffusers": ("digits-diffusers",),
    "diffkit-dpmsolver": ("digits-adams", "digits-dpmpp", "digits-unipc"),
    "diffkit-edm": ("digits-edm",),
    "diffkit-flow": ("digits-flow",),
    "diffkit-improved-ddpm": ("digits-improved-ddpm", "digits-vlb"),
    "diffkit-p2": ("digits-min-snr",),
    "diffkit-score-sde": ("digits-probability-flow", "digits-score-sde", "digits-ve"),
    "diffkit-zero-snr": ("digits-zero-snr",),
}


def holders(kind: str, name: str) -> list[str]:
    """The first-party distributions that register `name`."""
    return [distribution for distribution, kinds in FIRST_PARTY.items() if name in kinds.get(kind, ())]


def names(kind: str) -> list[str]:
    """All names of a kind that first-party plugins register."""
    return [name for kinds in FIRST_PARTY.values() for name in kinds.get(kind, ())]


def recipe_holder(recipe: str) -> str | None:
    """The first-party distribution that comes with a built-in recipe, if there is one."""
    return next((distribution for distribution, names in RECIPES.items() if recipe in names), None)
