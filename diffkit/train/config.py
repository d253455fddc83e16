"""What training is told: plain values, counted in optimizer steps of `batch_size` examples over all devices."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Optimizer:
    """Adam or AdamW with the learning rate `lr` that the warm-up reaches and the decay leaves."""

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Decay:
    """The learning rate from the end of the warm-up to the last step; `end` is its last value / `lr`."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    end: float = 0.0


@dataclass(frozen=True)
class Ema:
    """A moving average of the weights. Give one of `decay` (per step), `half_life` (in images), `power` (exponent).

    `warmup` for decay: min(decay, (1 + n) / (10 + n)) at update n; for half_life: at most 5 % of the images seen.
    Raises ValueError unless exactly one form is given.
    """

    name: str = "ema"
    decay: float | None = None
    half_life: float | None = None
    power: float | None = None
    warmup: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.decay, self.half_life, self.power) if value is not None]
        if len(given) != 1:
            raise ValueError(f"average {self.name!r} needs one of decay, half_life and power, not {len(given)} of them")


@dataclass(frozen=True)
class Settings:
    """The `train` section of a recipe as plain values; an interval of 0 is never.

    `clip` bounds the global norm of the gradient; `accumulate` splits the batch into so many parts, one after the
    other; `workers` None leaves their number to the data; what is `auto` is decided by the device.
    Raises ValueError for averages of the same name.
    """

    steps: int
    batch_size: int = 128
    optimizer: Optimizer = Optimizer()
    schedule: Decay = Decay()
    warmup: int = 0
    clip: float | None = 1.0
    ema: tuple[Ema, ...] = (Ema(decay=0.9999),)
    precision: Precision = "auto"
    accumulate: int = 1
    init: str | None = None
    validate_every: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    sample_every: int = 0
    keep: int = 3
    compile: bool | Literal["auto"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        names = [average.name for average in self.ema]
        if len(set(names)) != len(names):
            raise ValueError(f"two averages have the same name: {', '.join(names)}")

    @classmethod
    def of(cls, section: object) -> Settings:
        """The settings in any object with these attributes, such as the `train` section of a recipe."""
        given = _attributes(section, cls)
        return cls(
            **given
            | {
                "optimizer": Optimizer(**_attributes(given["optimizer"], Optimizer)),
                "schedule": Decay(**_attributes(given["schedule"], Decay)),
                "ema": tuple(Ema(**_attributes(average, Ema)) for average in given["ema"]),
            }
        )


def _attributes(source: object, cls: Any) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in fields(cls)}
