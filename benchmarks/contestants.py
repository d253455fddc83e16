"""Who takes part in benchmarks/train_step.py: networks of the same architecture, each in its own loop.

A builder returns two functions: a whole training step, and its update part (clipping, optimizer, average). Every loop
takes uint8 pictures that lie on the device, clips at 1.0, and keeps an Adam and a moving average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.basics.optimizers import Adam
from diffkit.data import Cond, Data, DataSpec, InMemorySplit, Part, Split
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.unet import UNet
from diffkit.denoiser import Model
from diffkit.network import Shape
from diffkit.runtime.memory import keep_freed_memory
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.tasks import TrainingProblem
from diffkit.train.trainer import Trainer

Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """A U-Net and its batch; `inner` steps make one measurement."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    shape: tuple[int, int, int]
    batch: int
    inner: int


@dataclass(frozen=True)
class Switches:
    """How it is run. `checkout`: where the source of a peer lies that is not installed."""

    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    checkout: Path | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of bf16, if that is the precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, net: nn.Module) -> nn.Module:
        """The network on its device, in its layout, compiled or not."""
        net = net.to(self.device)
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            net.compile()
        return net


SIZES = {
    "large": Size(128, (1, 2, 2, 2), 2, (16,), (3, 32, 32), 8, 1),
    "medium": Size(32, (1, 2, 2), 1, (7,), (1, 28, 28), 16, 3),
    "digits": Size(32, (1, 2), 1, (4,), (1, 8, 8), 48, 10),
    "small": Size(32, (1, 2), 1, (4,), (1, 8, 8), 64, 10),
    "overhead": Size(8, (1, 1), 1, (), (1, 8, 8), 4, 100),
}


class Pictures(Data):
    """Random uint8 pictures."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.shape[0], self.shape[1:], bounded=True, bins=256)

    def split(self, part: Part) -> InMemorySplit:
        return InMemorySplit(torch.randint(0, 256, (1024, *self.shape), dtype=torch.uint8))


class Streamed(Pictures):
    """The same, of a part that is not in memory for the trainer."""

    def split(self, part: Part) -> Split:  # type: ignore[override]
        return OneByOne(super().split(part))


class OneByOne(Split):
    """A part that gives one example at a time."""

    def __init__(self, inner: InMemorySplit) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        return self.inner[index]


def network(size: Size) -> UNet:
    """Our U-Net of that size."""
    torch.manual_seed(0)
    channels, *rest = size.shape
    return UNet(
        Shape(channels, channels, tuple(rest)),
        channels=size.channels,
        multipliers=size.multipliers,
        blocks=size.blocks,
        attention=size.attention,
    )


def ours(size: Size, switches: Switches, *, streamed: bool = False, **options: object) -> tuple[Step, Step]:
    """Our trainer; layout and compilation are as it decides by itself.

    Args:
        size: The network and its batch.
        switches: Device and precision.
        streamed: Let workers read the pictures, one by one.
        options: Further keys of the section `train` of a recipe.

    Returns:
        A step, and its update part.
    """
    known = {"steps": 10**9, "batch_size": size.batch, "ema": (EmaConfig(decay=0.9999),)}
    settings = TrainConfig.model_validate(known | {"precision": switches.precision} | options)
    pictures = Streamed(size.shape) if streamed else Pictures(size.shape)
    task = TrainingProblem(Model(network(size), Eps(), Linear()), Simple(), pictures)
    if switches.device == "cpu":
        keep_freed_memory()  # as `diffkit run` does
    trainer = Trainer(task, settings, Adam(), device=switches.device)
    engine = trainer.engine
    source = engine.batch_source(0)

    def step() -> None:
        trainer._window.add(engine.advance(trainer.step, source))
        trainer.step += 1

    return step, update_of(engine.network.parameters(), lambda: engine.apply(1000))


def by_hand(size: Size, switches: Switches) -> tuple[Step, Step]:
    """A lean loop around our network, without any of the framework's promises."""
    net = switches.place(network(size))
    data = Pictures(size.shape).split("train").x.to(switches.device)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha, sigma = (v.float().to(switches.device) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    parameters = list(net.parameters())
    adam = torch.optim.Adam(parameters, lr=2e-4, fused=True)
    average = [p.detach().clone() for p in parameters]

    def finish() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-4)

    def step() -> None:
        x0, t = batch(data, size.batch)
        eps = torch.randn_like(x0)
        x = alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * eps
        with switches.autocast():
            y = net(x, t.float())
        adam.zero_grad()
        (y.float() - eps).square().mean().backward()
        finish()

    return step, update_of(parameters, finish)


def diffusers_example(size: Size, switches: Switches) -> tuple[Step, Step]:
    """diffusers' U-Net of the same architecture, in the loop of its unconditional example."""
    from diffusers import DDPMScheduler, UNet2DModel

    channels, side, _ = size.shape
    attends = [(side >> level) in size.attention for level in range(len(size.multipliers))]
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=size.blocks,
        block_out_channels=tuple(size.channels * m for m in size.multipliers),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None,
        norm_num_groups=min(32, size.channels // 4),
    )
    scheduler = DDPMScheduler(1000)
    return example_loop(size, switches, net, lambda x0, e, t: scheduler.add_noise(x0, e, t), lambda x, t: net(x, t)[0])


def example_loop(
    size: Size,
    switches: Switches,
    net: nn.Module,
    noise: Callable[[Tensor, Tensor, Tensor], Tensor],
    answer: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Step, Step]:
    """The loop of diffusers' unconditional example: AdamW, clip_grad_norm_, EMAModel."""
    from diffusers.training_utils import EMAModel

    net = switches.place(net).train()
    data = Pictures(size.shape).split("train").x.to(switches.device)
    adam = torch.optim.AdamW(net.parameters(), lr=2e-4)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)

    def finish() -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        average.step(net.parameters())

    def step() -> None:
        x0, t = batch(data, size.batch)
        eps = torch.randn_like(x0)
        with switches.autocast():
            y = answer(noise(x0, eps, t), t)
        nn.functional.mse_loss(y.float(), eps).backward()
        finish()
        adam.zero_grad()

    return step, update_of(net.parameters(), finish)


def batch(data: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random pictures in [-1, 1] and random times."""
    rows = torch.randint(0, len(data), (count,), device=data.device)
    return data[rows].float() / 127.5 - 1, torch.randint(0, 1000, (count,), device=data.device)


def update_of(parameters: Iterable[nn.Parameter], finish: Step) -> Step:
    """The update part, from gradients at hand."""
    given = list(parameters)
    gradients: list[Tensor] = [torch.randn_like(p) * 1e-3 for p in given]

    def update() -> None:
        for parameter, gradient in zip(given, gradients, strict=True):
            parameter.grad = gradient
        finish()

    return update


BUILDERS: dict[str, Callable[[Size, Switches], tuple[Step, Step]]] = {
    "diffkit": ours,
    "by hand": by_hand,
    "diffusers": diffusers_example,
}
