"""Contestants whose source lies in a checkout: the networks of three projects, and the trainer of a fourth.

The networks have the architecture of ours and run in the loop of diffusers' example. lucidrains' U-Net has another
architecture of the same widths (linear attention at every resolution), so its row compares what one gets, not a loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest.mock import MagicMock

import torch
from contestants import Pictures, Size, Step, Switches, example_loop, update_of
from torch import Tensor


def improved_diffusion(size: Size, switches: Switches) -> tuple[Step, Step]:
    """The U-Net of openai/improved-diffusion."""
    with _source(switches):
        from improved_diffusion.unet import UNetModel  # type: ignore[import-not-found]

    side = size.shape[1]
    net = UNetModel(
        in_channels=size.shape[0],
        model_channels=size.channels,
        out_channels=size.shape[0],
        num_res_blocks=size.blocks,
        attention_resolutions=tuple(side // a for a in size.attention),
        channel_mult=size.multipliers,
    )
    return example_loop(size, switches, net, _noised(switches), lambda x, t: net(x, t))


def edm(size: Size, switches: Switches) -> tuple[Step, Step]:
    """The network (DDPM++) of NVlabs/edm."""
    with _source(switches):
        from training.networks import SongUNet  # type: ignore[import-not-found]

    net = SongUNet(
        size.shape[1],
        size.shape[0],
        size.shape[0],
        model_channels=size.channels,
        channel_mult=list(size.multipliers),
        num_blocks=size.blocks,
        attn_resolutions=list(size.attention),
        dropout=0.0,
        resample_filter=[1, 1],
    )
    return example_loop(size, switches, net, _noised(switches), lambda x, t: net(x, t.float(), None))


def smalldiffusion(size: Size, switches: Switches) -> tuple[Step, Step]:
    """The U-Net of yuanchenyang/smalldiffusion, on its own schedule, x = x0 + sigma eps."""
    with _source(switches, "src"):
        from smalldiffusion import ScheduleDDPM, Unet  # type: ignore[import-not-found]

    net = Unet(
        size.shape[1],
        size.shape[0],
        size.shape[0],
        ch=size.channels,
        ch_mult=size.multipliers,
        num_res_blocks=size.blocks,
        attn_resolutions=size.attention,
        dropout=0.0,
    )
    sigmas = ScheduleDDPM().sigmas.to(switches.device)
    return example_loop(
        size, switches, net, lambda x0, eps, t: x0 + sigmas[t].view(-1, 1, 1, 1) * eps, lambda x, t: net(x, sigmas[t])
    )


def lucidrains(size: Size, switches: Switches) -> tuple[Step, Step]:
    """The body of `Trainer.train` of lucidrains/denoising-diffusion-pytorch, but for pictures that lie on the device.

    Needs accelerate and ema-pytorch.
    """
    with _source(switches):
        from accelerate import Accelerator  # type: ignore[import-not-found]
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # type: ignore[import-not-found]
        from ema_pytorch import EMA  # type: ignore[import-not-found]

    channels, side, _ = size.shape
    full = tuple((side >> level) in size.attention for level in range(len(size.multipliers)))
    net = Unet(size.channels, channels=channels, dim_mults=size.multipliers, full_attn=full)
    model = GaussianDiffusion(net, image_size=side, objective="pred_noise", beta_schedule="linear")
    accelerator = Accelerator(cpu=switches.device == "cpu", mixed_precision=switches.precision.replace("fp32", "no"))
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(model, beta=0.995, update_every=10).to(switches.device)
    model, adam = accelerator.prepare(switches.place(model), adam)
    data = Pictures(size.shape).split("train").x.to(switches.device)

    def finish() -> None:
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        average.update()

    def step() -> None:
        model.train()
        x0 = data[torch.randint(0, len(data), (size.batch,), device=data.device)].float() / 255
        with accelerator.autocast():
            loss = model(x0)
        loss.item()
        accelerator.backward(loss)
        finish()

    return step, update_of(model.parameters(), finish)


PEERS: dict[str, Callable[[Size, Switches], tuple[Step, Step]]] = {
    "improved-diffusion": improved_diffusion,
    "edm": edm,
    "smalldiffusion": smalldiffusion,
    "lucidrains": lucidrains,
}
THIRTY_TWO = {"improved-diffusion", "smalldiffusion"}
"""Their norms have 32 groups, whatever the channels."""


@contextmanager
def _source(switches: Switches, inside: str = "") -> Iterator[None]:
    """The checkout is importable. Two import torchvision, for pictures in files, which nothing here reads."""
    assert switches.checkout is not None
    sys.path.insert(0, str(switches.checkout / inside))
    absent = find_spec("torchvision") is None
    if absent:
        sys.modules["torchvision"] = MagicMock()
    try:
        yield
    finally:
        if absent:
            del sys.modules["torchvision"]


def _noised(switches: Switches) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(x0, eps, t) -> x on DDPM's schedule."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(switches.device)

    def add(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * eps

    return add
