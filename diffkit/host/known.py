"""What the first-party plugins register, so that a name that is not installed can say how to install it.

A plugin `diffkit-edm` has the entry point `edm`. tests/unit/host/test_known.py holds this against plugins/.
"""

from __future__ import annotations

FIRST_PARTY: dict[str, dict[str, tuple[str, ...]]] = {
    "diffkit-consistency": {"sampler": ("consistency",)},
    "diffkit-ddim": {"sampler": ("ddim",)},
    "diffkit-distillation": {"parameterization": ("v",)},
    "diffkit-dpmsolver": {"sampler": ("dpmpp-2m", "dpmpp-2s", "dpmpp-3m"), "grid": ("uniform-logsnr",)},
    "diffkit-edm": {
        "parameterization": ("edm",),
        "sampler": ("euler", "heun"),
        "grid": ("karras",),
        "times": ("lognormal",),
        "weighting": ("edm",),
        "augmentation": ("edm",),
    },
    "diffkit-flow": {"schedule": ("rectified",), "parameterization": ("flow",), "times": ("logit-normal",)},
    "diffkit-improved-ddpm": {
        "schedule": ("cosine",),
        "parameterization": ("learned-range",),
        "objective": ("hybrid",),
        "times": ("importance",),
    },
    "diffkit-p2": {"weighting": ("p2", "min-snr", "soft-min-snr")},
    "diffkit-score-sde": {
        "schedule": ("vp", "sub-vp", "ve"),
        "parameterization": ("score",),
        "sampler": ("predictor-corrector",),
    },
    "diffkit-unipc": {"sampler": ("unipc",)},
}


def holders(kind: str, name: str) -> list[str]:
    """The first-party distributions that register `name`."""
    return [distribution for distribution, kinds in FIRST_PARTY.items() if name in kinds.get(kind, ())]


def names(kind: str) -> list[str]:
    """All names of a kind that first-party plugins register."""
    return [name for kinds in FIRST_PARTY.values() for name in kinds.get(kind, ())]
