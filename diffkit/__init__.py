"""diffkit: an extensible plugin framework for diffusion variants.

Importing this package does not import torch: each public name is loaded from its module on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "callback": "Callback Tracker TrainingStepInfo TrainResult",
    "chart": "ANGLE CHARTS FLOW SIGMA Chart",
    "codec": "Codec Identity",
    "data": "Augmentation Cond Data DataSpec InMemorySplit Part Split",
    "denoiser": "Denoiser Model",
    "errors": "ArgumentError CheckpointError DataError DiffkitError DivergedError LevelError RecipeError UsageError",
    "estimate": "Estimate",
    "grid": "Grid",
    "guidance": "Guidance guide",
    "host": "Entry Kind hookimpl",
    "interface": "attribute",
    "level": "Level broadcast weighted_sum",
    "metric": "Evaluation Metric",
    "network": "Network Shape",
    "noise": "RandomStreams SampleNoise",
    "optimizer": "LRSchedule NamedParameters Optimizer",
    "objective": "Loss Objective Weighting",
    "parameterization": "Parameterization",
    "recipe": "assemble build entries load_recipe",
    "sampler": "Noise Sampler StepInfo sample",
    "scalar": "Scalar",
    "schedule": "Discrete Schedule",
    "runs": "Run open_run run",
    "strategy": "Strategy",
    "times": "UNIFORM_TIMES Times UniformTimes at_fraction nearest_time normal_quantile",
}
_SUBMODULES = ("bound", "errors", "scalar", "testing", "transition")
_WHERE = {name: f"diffkit.{module}" for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"diffkit.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'diffkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from .callback import Callback as Callback
    from .callback import Tracker as Tracker
    from .callback import TrainingStepInfo as TrainingStepInfo
    from .callback import TrainResult as TrainResult
    from .chart import ANGLE as ANGLE
    from .chart import CHARTS as CHARTS
    from .chart import FLOW as FLOW
    from .chart import SIGMA as SIGMA
    from .chart import Chart as Chart
    from .codec import Codec as Codec
    from .codec import Identity as Identity
    from .data import Augmentation as Augmentation
    from .data import Cond as Cond
    from .data import Data as Data
    from .data import DataSpec as DataSpec
    from .data import InMemorySplit as InMemorySplit
    from .data import Part as Part
    from .data import Split as Split
    from .denoiser import Denoiser as Denoiser
    from .denoiser import Model as Model
    from .errors import ArgumentError as ArgumentError
    from .errors import CheckpointError as CheckpointError
    from .errors import DataError as DataError
    from .errors import DiffkitError as DiffkitError
    from .errors import DivergedError as DivergedError
    from .errors import LevelError as LevelError
    from .errors import RecipeError as RecipeError
    from .errors import UsageError as UsageError
    from .estimate import Estimate as Estimate
    from .grid import Grid as Grid
    from .guidance import Guidance as Guidance
    from .guidance import guide as guide
    from .host import Entry as Entry
    from .host import Kind as Kind
    from .host import hookimpl as hookimpl
    from .interface import attribute as attribute
    from .level import Level as Level
    from .level import broadcast as broadcast
    from .level import weighted_sum as weighted_sum
    from .metric import Evaluation as Evaluation
    from .metric import Metric as Metric
    from .network import Network as Network
    from .network import Shape as Shape
    from .noise import RandomStreams as RandomStreams
    from .noise import SampleNoise as SampleNoise
    from .objective import Loss as Loss
    from .objective import Objective as Objective
    from .objective import Weighting as Weighting
    from .optimizer import LRSchedule as LRSchedule
    from .optimizer import NamedParameters as NamedParameters
    from .optimizer import Optimizer as Optimizer
    from .parameterization import Parameterization as Parameterization
    from .recipe import assemble as assemble
    from .recipe import build as build
    from .recipe import entries as entries
    from .recipe import load_recipe as load_recipe
    from .runs import Run as Run
    from .runs import open_run as open_run
    from .runs import run as run
    from .sampler import Noise as Noise
    from .sampler import Sampler as Sampler
    from .sampler import StepInfo as StepInfo
    from .sampler import sample as sample
    from .scalar import Scalar as Scalar
    from .schedule import Discrete as Discrete
    from .schedule import Schedule as Schedule
    from .strategy import Strategy as Strategy
    from .times import UNIFORM_TIMES as UNIFORM_TIMES
    from .times import Times as Times
    from .times import UniformTimes as UniformTimes
    from .times import at_fraction as at_fraction
    from .times import nearest_time as nearest_time
    from .times import normal_quantile as normal_quantile
