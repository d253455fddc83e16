"""Training and sampling of the CIFAR-10 U-Net (35.7 M parameters) on a GPU, beside diffusers with the same switches.

    python benchmarks/gpu.py [--batch 128 256 512] [--seconds 4] [--device cuda] [--size large]

Images per second, and the share of the machine's bf16 matrix peak (measured here by one large product) that their
arithmetic comes to: 36.3 GFLOP per image and step. diffkit runs with its defaults; the hand-written loop and diffusers'
get bf16, channels_last and torch.compile as well. Sampling draws 256 images with 1000 ancestral steps, every one queued
without a wait.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from contestants import BUILDERS, SIZES, Size, Switches, network
from torch.utils.flop_counter import FlopCounterMode

from diffkit import Model, SampleNoise, build, sample
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear

STEPS, COUNT = 1000, 256


def seconds_of(work: Callable[[], object], device: str, least: float) -> float:
    """Seconds of one call, after three calls of practice."""
    for _ in range(3):
        work()
    wait(device)
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < least:
        for _ in range(5):
            work()
        calls += 5
        wait(device)
    return (time.perf_counter() - began) / calls


def wait(device: str) -> None:
    """Until the device has done what was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """FLOP/s of a large bf16 product."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, 1.0)


def flop(size: Size) -> float:
    """Of forward and backward for one image."""
    with FlopCounterMode(display=False) as counter:
        network(size)(torch.randn(1, *size.shape), torch.zeros(1)).sum().backward()
    return counter.get_total_flops()


def training(size: Size, device: str, seconds: float, most: float) -> Iterator[str]:
    """A line for each contestant."""
    fast = Switches(device=device, precision="bf16", channels_last=True, compile=device == "cuda")
    each = flop(size)
    told = {
        "diffkit": ("diffkit", replace(fast, precision="auto")),
        "by hand": ("by hand", fast),
        "diffusers": ("diffusers", fast),
        "diffusers, not compiled": ("diffusers", replace(fast, compile=False)),
    }
    for title, (name, switches) in told.items():
        step, _ = BUILDERS[name](size, switches)
        rate = size.batch / seconds_of(step, device, seconds)
        del step
        if device == "cuda":
            torch.cuda.empty_cache()
        yield f"| {title} | {size.batch} | {rate:,.0f} | {rate * each / most:.0%} |"


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Any wait of the host for the device is an error inside."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def sampling(size: Size, device: str, steps: int) -> str:
    """Images per second of `COUNT` images."""
    last = torch.channels_last if device == "cuda" else torch.contiguous_format
    net = network(size).to(device, memory_format=last).eval()  # type: ignore[call-overload]
    model, sampler = Model(net, Eps(), Linear()), build("sampler", "ancestral")
    levels = build("grid", "trailing").levels(model.schedule, steps)
    noise = SampleNoise(0, range(COUNT))
    x = noise.initial(size.shape, torch.device(device))

    def walk(levels: object) -> None:
        with torch.autocast(device, torch.bfloat16):
            sample(model, sampler, levels, x, noise=torch.randn_like)  # type: ignore[arg-type]

    walk(levels[-3:])
    wait(device)
    began = time.perf_counter()
    with no_waiting(device):
        walk(levels)
    queued = time.perf_counter() - began
    wait(device)
    spent = time.perf_counter() - began
    return f"{COUNT} images, {steps} steps: {spent:.1f} s, {COUNT / spent:.2f} images/s; queued in {queued:.1f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=sorted(SIZES), default="large")
    told = parser.parse_args()
    most = peak(told.device)
    print(f"bf16 matrix peak: {most / 1e12:.1f} TFLOP/s\n")
    print("| loop | batch | images/s | share of the peak |\n|---|---:|---:|---:|")
    for count in told.batch:
        for line in training(replace(SIZES[told.size], batch=count), told.device, told.seconds, most):
            print(line, flush=True)
    print("\n" + sampling(SIZES[told.size], told.device, told.steps))


if __name__ == "__main__":
    main()
