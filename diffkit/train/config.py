"""The configuration of a training: the section `train` of a recipe. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..config import ComponentField, ComponentSpec, Config, Count, Interval, Name

PrecisionName = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
CompileMode = Literal["auto", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class EmaConfig(Config):
    """An exponential moving average of the weights. Give one of: `decay` per optimizer step; `half_life` in images;
    `power`, the exponent of a power-law profile (1 - 1/step)^(power + 1).

    `warmup` for decay: min(decay, (1 + step) / (10 + step)); for half_life: at most 5 % of the images seen so far.
    """

    shorthand: ClassVar[str | None] = "decay"
    name: Name = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    half_life: Annotated[float, Field(gt=0)] | None = None
    power: Annotated[float, Field(gt=0)] | None = None
    warmup: bool = False


class ProfileConfig(Config):
    """A window of steps that torch.profiler records: `steps` steps after the first `start` steps of the training."""

    shorthand: ClassVar[str | None] = "steps"
    start: Interval = 10
    steps: Count = 3


class TrainConfig(Config):
    """Training, counted in optimizer steps of `batch_size` examples over all devices. An interval of 0 turns the action
    off.

    `optimizer`, `lr_schedule` and `strategy` name components; a `Trainer` receives the built components beside its
    configuration. `clip` bounds the global norm of the gradient; `accumulate` splits a batch into that many parts,
    computed one after the other; `workers` are the processes that load data (null: the number that the data set
    prefers). `init` starts from the weights of another run, as far as they fit; `strict_init` refuses weights that do
    not fit as a whole. `checkpointing` stores the inputs of the blocks of the network only, and computes each block
    once more in the backward pass. `timeout` is the time in seconds that one collective call of the processes may take.
    With `auto`, `precision` is bf16 if the hardware has it and it is faster; `compile` applies to runs of 5,000 steps
    and more, `channels_last` to images, both on a CUDA device. `compile` may also be a mode of torch.compile; true is
    the mode `default`. `precision: tf32` computes float32 products on a CUDA device in TF32. Each worker reads
    `prefetch` batches ahead. `profile` writes a Chrome trace of a few steps, profile-STEP.json, to the run directory.
    """

    steps: Interval
    batch_size: Count = 128
    optimizer: Annotated[ComponentSpec, ComponentField("optimizer")] = ComponentSpec("optimizer", "adam")
    lr_schedule: Annotated[ComponentSpec, ComponentField("lr-schedule")] = ComponentSpec("lr-schedule", "constant")
    strategy: Annotated[ComponentSpec, ComponentField("strategy")] = ComponentSpec("strategy", "auto")
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    ema: tuple[EmaConfig, ...] = (EmaConfig(decay=0.9999, warmup=True),)
    precision: PrecisionName = "auto"
    accumulate: Count = 1
    init: str | None = None
    strict_init: bool = False
    validate_every: Interval = 0
    log_every: Count = 50
    checkpoint_every: Interval = 1000
    sample_every: Interval = 0
    keep: Annotated[int, Field(ge=2, le=10000)] = 3
    checkpointing: bool = False
    compile: bool | CompileMode = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    prefetch: Annotated[int, Field(ge=1, le=1024)] = 2
    profile: ProfileConfig | None = None
    timeout: Annotated[float, Field(ge=1)] = 600.0
