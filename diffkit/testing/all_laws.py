"""Imports every module of laws, so that they are registered."""

from __future__ import annotations

import importlib

MODULES = (
    "schedule",
    "schedule_known",
    "grid",
    "grid_known",
    "times",
    "parameterization",
    "parameterization_model",
    "parameterization_known",
    "sampler",
    "sampler_symmetry",
    "sampler_accuracy",
    "sampler_known",
    "sampler_sde",
    "weighting",
    "objective",
    "guidance",
    "network",
    "codec",
    "augmentation",
    "data",
    "metric",
    "ema",
)


def load() -> None:
    """Idempotent."""
    for name in MODULES:
        importlib.import_module(f"diffkit.testing.by_kind.{name}")
