"""The whole training step and its update part, beside peers, as ratios measured in one run.

    python benchmarks/train_step.py [--rounds 5] [--threads 2] [--size large ...] [--cpu-time] [--json OUT]

Peers: diffusers' UNet2DModel in the plain loop of its example (clip_grad_norm_, Adam, EMAModel), and a lean loop
written by hand around our own network. Same architecture, batch, clip 1.0, Adam, EMA; rounds are interleaved, so that a
busy machine slows all alike; the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.data import Data, DataSpec, Part, Resident
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.unet import UNet
from diffkit.denoiser import Model
from diffkit.network import Shape
from diffkit.train.loop import Trainer
from diffkit.train.settings import Ema, Settings
from diffkit.train.task import Task

Step = Callable[[], None]


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


SIZES = {
    "large": Size(128, (1, 2, 2, 2), 2, (16,), (3, 32, 32), 8, 1),
    "medium": Size(32, (1, 2, 2), 1, (7,), (1, 28, 28), 16, 3),
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

    def split(self, part: Part) -> Resident:
        return Resident(torch.randint(0, 256, (256, *self.shape), dtype=torch.uint8))


def network(size: Size) -> UNet:
    torch.manual_seed(0)
    channels, *rest = size.shape
    return UNet(
        Shape(channels, channels, tuple(rest)),
        channels=size.channels,
        multipliers=size.multipliers,
        blocks=size.blocks,
        attention=size.attention,
    )


def ours(size: Size, precision: str) -> tuple[Step, Step]:
    """Our trainer: the step, and the update part of it."""
    settings = Settings(steps=10**9, batch_size=size.batch, ema=(Ema(decay=0.9999),), precision=precision)  # type: ignore[arg-type]
    trainer = Trainer(Task(Model(network(size), Eps(), Linear()), Simple(), Pictures(size.shape)), settings)
    engine = trainer.engine
    source = engine.feed(0)

    def step() -> None:
        trainer._window.add(engine.advance(trainer.step, source))
        trainer.step += 1

    gradients = [torch.randn_like(p) * 1e-3 for p in engine.network.parameters()]

    def update() -> None:
        for parameter, gradient in zip(engine.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        engine.apply(1000)

    return step, update


def by_hand(size: Size, precision: str) -> tuple[Step, Step]:
    """A lean loop around the same network, without any of the framework's promises."""
    net = network(size)
    data = Pictures(size.shape).split("train").x
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    parameters = list(net.parameters())
    adam = torch.optim.Adam(parameters, lr=2e-4, fused=True)
    average = [p.detach().clone() for p in parameters]

    def finish() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-4)

    def step() -> None:
        x0 = data[torch.randint(0, len(data), (size.batch,))].float() / 127.5 - 1
        t = torch.randint(0, 1000, (size.batch,))
        eps = torch.randn_like(x0)
        x = alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * eps
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            y = net(x, t.float())
        loss = (y.float() - eps).square().mean()
        adam.zero_grad()
        loss.backward()
        finish()

    return step, update_of(parameters, finish)


def diffusers_example(size: Size, precision: str) -> tuple[Step, Step]:
    """diffusers' U-Net of the same architecture, in the loop of its unconditional example."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels, side, _ = size.shape
    sides = [side >> level for level in range(len(size.multipliers))]
    attends = [s in size.attention for s in sides]
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
    data = Pictures(size.shape).split("train").x
    adam = torch.optim.AdamW(net.parameters(), lr=2e-4)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)

    def finish() -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        average.step(net.parameters())

    def step() -> None:
        x0 = data[torch.randint(0, len(data), (size.batch,))].float() / 127.5 - 1
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (size.batch,))
        loss = nn.functional.mse_loss(net(scheduler.add_noise(x0, noise, t), t).sample, noise)
        loss.backward()
        finish()
        adam.zero_grad()

    return step, update_of(list(net.parameters()), finish)


def update_of(parameters: list[nn.Parameter], finish: Step) -> Step:
    """The update part from gradients at hand, scaled anew each time, as clipping changes them in place."""
    gradients: list[Tensor] = [torch.randn_like(p) * 1e-3 for p in parameters]

    def update() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        finish()

    return update


def measure(steps: dict[str, Step], inner: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, in interleaved rounds."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock()
            for _ in range(inner):
                step()
            times[name].append((clock() - began) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", action="append", choices=sorted(SIZES))
    parser.add_argument("--part", choices=("step", "update"))
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, for a busy machine, with one thread")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.cpu_time else time.perf_counter
    rows = []
    for name in given.size or SIZES:
        size = SIZES[name]
        made = {"diffkit fp32": ours(size, "fp32"), "by hand": by_hand(size, "fp32")}
        if torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"):
            made["diffkit bf16"] = ours(size, "bf16")
        try:
            made["diffusers"] = diffusers_example(size, "fp32")
        except ImportError:
            print("diffusers is not installed: left out", file=sys.stderr)
        count = sum(p.numel() for p in network(size).parameters())
        for part, index in (("step", 0), ("update", 1)):
            if given.part not in (None, part):
                continue
            found = measure({who: both[index] for who, both in made.items()}, size.inner, given.rounds, clock)
            rows += [
                {"size": name, "parameters": count, "part": part, "who": w, "seconds": s} for w, s in found.items()
            ]
            report(name, count, part, found)
    if given.json:
        given.json.write_text(
            json.dumps({"threads": given.threads, "torch": torch.__version__, "rows": rows}, indent=1)
        )


def report(name: str, count: int, part: str, found: dict[str, float]) -> None:
    base = found["diffkit fp32"]
    print(f"{name} ({count / 1e6:.1f} M parameters), {part}")
    for who, seconds in found.items():
        print(f"  {who:14s} {seconds * 1e3:9.2f} ms   diffkit fp32 is {seconds / base:5.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
