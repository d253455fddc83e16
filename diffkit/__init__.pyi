"""The public names of diffkit, each with the module that defines it; `__init__.py` loads a name on first use."""

from . import errors as errors, likelihood as likelihood, scalar as scalar, testing as testing, transition as transition
from .blending import Around as Around
from .callback import (
    Callback as Callback,
    Tracker as Tracker,
    TrainingStepInfo as TrainingStepInfo,
    TrainResult as TrainResult,
)
from .chart import ANGLE as ANGLE, CHARTS as CHARTS, FLOW as FLOW, SIGMA as SIGMA, Chart as Chart
from .classifier import Classifier as Classifier
from .cli.stated import stated_conditions as stated_conditions
from .codec import (
    Codec as Codec,
    CodecRecord as CodecRecord,
    Identity as Identity,
    Posterior as Posterior,
    Reconstruction as Reconstruction,
    TrainableCodec as TrainableCodec,
    weights_hash as weights_hash,
)
from .conditioner import (
    Conditioner as Conditioner,
    Conditions as Conditions,
    Unchanged as Unchanged,
    read_condition as read_condition,
    shown_conditions as shown_conditions,
)
from .config import FilePath as FilePath
from .data import (
    Augmentation as Augmentation,
    Cond as Cond,
    ConditionSpec as ConditionSpec,
    Data as Data,
    DataSpec as DataSpec,
    FiniteAugmentation as FiniteAugmentation,
    InMemorySplit as InMemorySplit,
    MapDataset as MapDataset,
    Part as Part,
    Split as Split,
    as_bytes as as_bytes,
    as_examples as as_examples,
    as_texts as as_texts,
    summarize as summarize,
)
from .denoiser import Denoiser as Denoiser, Model as Model
from .errors import (
    ArgumentError as ArgumentError,
    CheckpointError as CheckpointError,
    DataError as DataError,
    DiffkitError as DiffkitError,
    DivergedError as DivergedError,
    LevelError as LevelError,
    RecipeError as RecipeError,
    UsageError as UsageError,
    plain as plain,
)
from .estimate import Estimate as Estimate
from .grid import Grid as Grid, Rounding as Rounding
from .guidance import Guidance as Guidance, evaluate as evaluate, guide as guide
from .host import Entry as Entry, Kind as Kind, hookimpl as hookimpl
from .interface import attribute as attribute
from .level import Level as Level, broadcast as broadcast, weighted_sum as weighted_sum
from .metric import (
    Evaluation as Evaluation,
    Metric as Metric,
    ModelSetting as ModelSetting,
    Peers as Peers,
    Store as Store,
    TrainedModel as TrainedModel,
)
from .network import Network as Network, Shape as Shape, conditions_of as conditions_of
from .noise import RandomStreams as RandomStreams, SampleNoise as SampleNoise
from .objective import Loss as Loss, Objective as Objective, Weighting as Weighting
from .optimizer import LRSchedule as LRSchedule, NamedParameters as NamedParameters, Optimizer as Optimizer
from .parameterization import Parameterization as Parameterization
from .recipe.assembly import (
    Assembly as Assembly,
    ClassifierParts as ClassifierParts,
    CodecParts as CodecParts,
    Parts as Parts,
    assemble as assemble,
    build as build,
)
from .recipe.contents import entries as entries
from .recipe.spec import Recipe as Recipe
from .recipe.validate import load_recipe as load_recipe
from .reconstruction import ReconstructionLoss as ReconstructionLoss
from .runs.pipeline import run as run, run_from_weights as run_from_weights
from .runs.trained import Run as Run, open_run as open_run
from .runtime.progress import Progress as Progress, console_progress as console_progress
from .sampler import Noise as Noise, Sampler as Sampler, StepInfo as StepInfo, sample as sample
from .scalar import Scalar as Scalar
from .schedule import Discrete as Discrete, Schedule as Schedule
from .strategy import Strategy as Strategy
from .times import (
    UNIFORM_TIMES as UNIFORM_TIMES,
    Times as Times,
    UniformTimes as UniformTimes,
    at_fraction as at_fraction,
    nearest_time as nearest_time,
    normal_quantile as normal_quantile,
)

__version__: str
__all__: list[str]
