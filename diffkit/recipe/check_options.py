"""Fields that contradict each other, or that nothing would read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import DiffkitError, Mark, RecipeError
from .view import View


def _dead(message: str, where: Mark, fix: str) -> RecipeError:
    return RecipeError(message, code="DK117", where=where, fix=fix)


def _contradiction(message: str, where: Mark, fix: str) -> RecipeError:
    return RecipeError(message, code="DK118", where=where, fix=fix)


def _warmup(view: View) -> Iterator[DiffkitError]:
    steps, warmup = view.value("train.steps"), view.value("train.warmup", 0)
    if steps and warmup > steps:
        yield _contradiction(
            f"train.warmup is {warmup}, longer than the {steps} steps of the training",
            view.mark("train.warmup"),
            f"warmup: {steps // 10}",
        )


def _decay(view: View) -> Iterator[DiffkitError]:
    if view.value("train.schedule.end", 0.0) and view.value("train.schedule.name") == "constant":
        fix = "remove it, or name: linear or cosine"
        yield _dead("train.schedule.end is not read by a constant schedule", view.mark("train.schedule.end"), fix)


def _accumulate(view: View) -> Iterator[DiffkitError]:
    batch, parts = view.value("train.batch_size"), view.value("train.accumulate")
    if batch and parts and batch % parts:
        yield _contradiction(
            f"train.accumulate is {parts}, which does not divide the batch of {batch}",
            view.mark("train.accumulate"),
            f"accumulate: {max(d for d in range(1, parts) if batch % d == 0)}",
        )


def _ema(view: View) -> Iterator[DiffkitError]:
    averages = view.value("train.ema", ())
    many = len(averages) > 1
    for index, ema in enumerate(averages):
        where = view.mark(f"train.ema.{index}" if many else "train.ema")
        said = [key for key in ("decay", "half_life", "power") if getattr(ema, key) is not None]
        if len(said) != 1:
            told = f"train.ema gives {' and '.join(said)}" if said else "train.ema says nothing of how long it averages"
            yield _contradiction(told, where, "give one of decay, half_life, power")
        elif ema.warmup and ema.power is not None:
            yield _dead(
                "train.ema.warmup is not read by a power-law average, which starts at the start", where, "remove it"
            )
    names = [ema.name for ema in averages]
    for index, name in enumerate(names):
        if name in (*names[:index], "raw"):
            where = view.mark(f"train.ema.{index}" if many else "train.ema")
            fix = "give each a name of its own, other than raw"
            yield _contradiction(f'train.ema: the name "{name}" is taken', where, fix)


def _precision(view: View) -> Iterator[DiffkitError]:
    precision = view.value("train.precision", "auto")
    if precision in ("bf16", "fp16") and getattr(view.built("parameterization"), "full_precision", False):
        yield _contradiction(
            f"parameterization {view.name('parameterization')} cannot be decoded from outputs in {precision}",
            view.mark("train.precision"),
            "precision: fp32, or parameterization eps",
        )


def _channels_last(view: View) -> Iterator[DiffkitError]:
    size = getattr(view.shape, "size", None)
    if view.value("train.channels_last") is True and size is not None and len(size) != 2:
        yield _dead("train.channels_last is for images only", view.mark("train.channels_last"), "remove it")


def _evaluate(view: View) -> Iterator[DiffkitError]:
    if view.value("evaluate.metrics", ()):
        return
    for key in ("sampler", "grid", "steps", "count", "batch_size"):
        if view.value(f"evaluate.{key}") is not None:
            yield _dead(f"evaluate.{key} without metrics", view.mark(f"evaluate.{key}"), "metrics: [frechet]")


OPTION_CHECKS: tuple[Callable[[View], Iterator[DiffkitError]], ...] = (
    _warmup,
    _decay,
    _accumulate,
    _ema,
    _precision,
    _channels_last,
    _evaluate,
)
