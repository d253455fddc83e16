"""Training and sampling of the CIFAR-10 U-Net (35.7 M parameters) on a GPU, beside diffusers with the same switches.

    python benchmarks/gpu.py [--batch 128 256 512] [--seconds 4] [--device cuda] [--size large]

Images per second, and the share of the machine's bf16 matrix peak (measured here by one large product) that their
arithmetic comes to: 36.3 GFLOP per image and step. diffkit runs with its defaults; the hand-written loop and diffusers'
get bf16, channels_last and torch.compile as well. Then diffkit with each of its speed switches, as far as --limit
seconds from the start allow. Sampling draws 256 images with 1000 ancestral steps, every one queued without a wait.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from contestants import BUILDERS, SIZES, Size, Switches, network, ours
from torch.utils.flop_counter import FlopCounterMode

from diffkit import Model, SampleNoise, build, sample
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.train.precision import choose, float32_products

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


SWITCHES: dict[str, dict[str, Any]] = {
    "precision: fp32": {"precision": "fp32", "compile": False},
    "precision: tf32": {"precision": "tf32", "compile": False},
    "precision: bf16": {"precision": "bf16", "compile": False},
    "compile: default": {"compile": "default"},
    "compile: reduce-overhead": {"compile": "reduce-overhead"},
    "2 workers, prefetch: 1": {"compile": False, "streamed": True, "workers": 2, "prefetch": 1},
    "2 workers, prefetch: 4": {"compile": False, "streamed": True, "workers": 2, "prefetch": 4},
}


def switched(size: Size, device: str, seconds: float, until: float) -> Iterator[str]:
    """A line for each of our speed switches; none begins after `until`, by the clock of `time.perf_counter`."""
    for title, options in SWITCHES.items():
        if time.perf_counter() > until:
            yield f"| {title} | {size.batch} | not measured: the time is over |"
            continue
        step, _ = ours(size, Switches(device=device, precision="auto"), **options)
        precision = choose(options.get("precision", "auto"), torch.device(device), None, network(size))
        with float32_products(precision):
            rate = size.batch / seconds_of(step, device, seconds)
        del step
        if device == "cuda":
            torch.cuda.empty_cache()
        yield f"| {title} | {size.batch} | {rate:,.0f} |"


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
    parser.add_argument("--limit", type=float, default=300.0)
    told = parser.parse_args()
    began = time.perf_counter()
    most = peak(told.device)
    print(f"bf16 matrix peak: {most / 1e12:.1f} TFLOP/s\n")
    print("| loop | batch | images/s | share of the peak |\n|---|---:|---:|---:|")
    for count in told.batch:
        for line in training(replace(SIZES[told.size], batch=count), told.device, told.seconds, most):
            print(line, flush=True)
    print("\n| switch of diffkit | batch | images/s |\n|---|---:|---:|")
    middle = replace(SIZES[told.size], batch=sorted(told.batch)[len(told.batch) // 2])
    for line in switched(middle, told.device, told.seconds, began + told.limit):
        print(line, flush=True)
    print("\n" + sampling(SIZES[told.size], told.device, told.steps))


if __name__ == "__main__":
    main()
