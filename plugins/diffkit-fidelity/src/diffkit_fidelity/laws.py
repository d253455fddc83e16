"""Laws of extractors, and of the distances of this package between normal distributions."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import torch
from torch import Tensor

from diffkit import DataSpec, Evaluation
from diffkit.testing import Case, LawResult, NotApplicable, law

from .efficientnet import LITE0, EfficientNetLite0
from .extractor import Values

PICTURES = DataSpec(3, (24, 20), bounded=True, bins=256)


def pictures(case: Case, count: int = 2) -> Tensor:
    """Return pictures (N, 3, 24, 20) in [-1, 1], the values of files."""
    x = case.normal(count, 3, 24, 20, stream="pictures").mul(0.4).clamp(-1, 1).float()
    return (x.add(1).mul(127.5).round() / 127.5 - 1).float()


@law(
    "extractor",
    statement="features of an example are finite, and do not depend on the rest of the batch",
    source="the definition of Extractor",
    tolerance=1e-5,
)
def examples_are_separate(case: Case, result: LawResult) -> None:
    """Statistics of a batch would make every metric depend on the number of examples at a time."""
    extractor = _runnable(case)
    prepared = extractor.prepared(pictures(case), PICTURES)
    whole = extractor(prepared)
    alone = extractor(prepared[:1])
    for title, many, one in zip(("features", "scores"), whole, alone, strict=True):
        result.holds(bool(torch.isfinite(many).all()) and many.ndim == 2, f"{title}: {many.shape}", "finite, (B, D)")
        result.compare(one / many.abs().max(), many[:1] / many.abs().max(), title)


@law(
    "extractor",
    statement="examples that are equal after rounding have equal features, other examples have others",
    source="the definition of Extractor",
    tolerance=0.0,
)
def rounding_is_stated(case: Case, result: LawResult) -> None:
    """A record that states rounding to uint8 describes the features of files of the samples."""
    extractor, x = _runnable(case), pictures(case)
    own, moved = (extractor.prepared(one, PICTURES) for one in (x, x + 0.2 / 127.5))
    rounds = extractor.protocol()["rounding"] != "none"
    result.holds(torch.equal(moved, own) == rounds, f"a fifth of a grey level changes: {not rounds}", "as stated")
    bright, dark = extractor(extractor.prepared(torch.stack([x[0], 0.5 * x[0] - 0.5]), PICTURES))[0]
    result.holds(not torch.equal(bright, dark), "darker pictures have the same features", "others")


@law(
    "metric",
    statement="the distance of N(0, 1) and N(m, s^2) is m^2 + (1 - s)^2 in each dimension",
    source="Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X, eq. 4",
    tolerance=1e-6,
    only=("fid",),
)
def distance_of_normals(case: Case, result: LawResult) -> None:
    """Points that are moved and stretched have these moments exactly."""
    x = case.normal(400, 3, stream="points")
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    move, scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 1.0, 3.0], dtype=x.dtype)
    evaluation = Evaluation(DataSpec(3), (x * scale + move).float(), x.float(), x.float(), seed=case.seed)
    found = replace(case.component, features=Values(), limit=400)(evaluation)["fid"]
    result.compare(found / float(move.square().sum() + (1 - scale).square().sum()), 1.0, "relative distance")


@law(
    "metric",
    statement="K classes predicted with certainty, equally often, score K; equal predictions score 1",
    source="Salimans et al. 2016 (arXiv:1606.03498), sec. 4",
    tolerance=1e-6,
    only=("inception-score",),
)
def score_of_certain_classes(case: Case, result: LawResult) -> None:
    """The score counts the classes."""
    metric = replace(case.component, features=Values(), splits=1)
    for classes in (1, 2, 5):
        scores = torch.full((60, 5), -200.0)
        scores[torch.arange(60), torch.arange(60) % classes] = 200.0
        found = metric(Evaluation(DataSpec(5), scores, scores, scores))["inception_score"]
        result.compare(math.log(found), math.log(classes), f"{classes} classes")


def _runnable(case: Case) -> EfficientNetLite0:
    if isinstance(case.component, EfficientNetLite0) and importlib.util.find_spec(LITE0) is None:
        raise NotApplicable("efficientnet-lite-pytorch is not installed")
    found: EfficientNetLite0 = case.component
    return found
