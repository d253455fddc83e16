"""What a sampling step costs besides the network: ours, the floor of the same arithmetic, and diffusers.

    python benchmarks/sampler_overhead.py [--rounds 7] [--device cpu|cuda]

The network is free: it answers a constant. The floor is the same tensor operations written by hand, with every scalar
computed beforehand. Rounds are interleaved and medians are reported, so that a noisy machine is noisy for all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from diffkit import Level, Model, Network, Sampler, build, sample, transition
from diffkit.basics.grid import Trailing
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.train.allocator import keep_memory

STEPS = 100
SHAPES = ((64, 3, 32, 32), (1, 4, 64, 64))
SCHEDULE = Linear()
Timed = Callable[[], object]


class Free(Network):
    """Answers a constant, whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.answer


def floor_ddim(levels: Sequence[Level], x: Tensor, y: Tensor) -> Timed:
    """x0 = x / alpha - sigma / alpha y, then alpha_s x0 + sigma_s y: four operations a step."""
    numbers = [(1 / t.alpha, -t.sigma / t.alpha, s.alpha, s.sigma) for t, s in pairwise(levels)]

    def walk() -> Tensor:
        z = x
        for a, b, c, d in numbers:
            z = torch.add(c * torch.add(a * z, y, alpha=b), y, alpha=d)
        return z

    return walk


def floor_ancestral(levels: Sequence[Level], x: Tensor, y: Tensor) -> Timed:
    """The same, and the noise of a step: one draw, one operation."""
    numbers = []
    for t, s in pairwise(levels):
        rho = float(transition.posterior(t, s))
        numbers.append((1 / t.alpha, -t.sigma / t.alpha, s.alpha, max(s.sigma**2 - rho**2, 0.0) ** 0.5, rho))

    def walk() -> Tensor:
        z = x
        for a, b, c, d, rho in numbers:
            z = torch.add(c * torch.add(a * z, y, alpha=b), y, alpha=d)
            if rho:
                z = torch.add(z, torch.randn_like(z), alpha=rho)
        return z

    return walk


def floor_2m(levels: Sequence[Level], x: Tensor, y: Tensor) -> Timed:
    """x0, its extrapolation, eps of the extrapolation, and the step."""
    numbers = []
    before = None
    for t, s in pairwise(levels):
        h = float(s.half_logsnr) - float(t.half_logsnr)
        slope = None if before is None or s.is_clean else h / (2 * before)
        ratio = s.sigma / t.sigma
        numbers.append((1 / t.alpha, -t.sigma / t.alpha, slope, ratio, s.alpha - ratio * t.alpha))
        before = h

    def walk() -> Tensor:
        z, last = x, x
        for a, b, slope, keep, move in numbers:
            x0 = torch.add(a * z, y, alpha=b)
            guess = x0 if slope is None else torch.add(x0, x0 - last, alpha=slope)
            z, last = torch.add(keep * z, guess, alpha=move), x0
        return z

    return walk


def floor_sum(outputs: int, corrected: int) -> Callable[[Sequence[Level], Tensor, Tensor], Timed]:
    """x0, and x_s as one sum over the last `outputs`; before, the last step again over `corrected`. Any scalars do."""

    def floor(levels: Sequence[Level], x: Tensor, y: Tensor) -> Timed:
        def walk() -> Tensor:
            z, before, known = x, x, (y,) * (outputs - 1)
            for _ in levels[1:]:
                known = (torch.add(0.9 * z, y, alpha=0.1), *known)
                if corrected:
                    z = 0.9 * before
                    for one in known[:corrected]:
                        z.add_(one, alpha=0.01)
                before, known = z, known[:outputs]
                z = 0.9 * z
                for one in known:
                    z.add_(one, alpha=0.01)
            return z

        return walk

    return floor


def theirs(scheduler: type, x: Tensor, y: Tensor, **options: object) -> Timed:
    """The loop of diffusers with the same free network."""

    def walk() -> Tensor:
        made = scheduler(**options)
        made.set_timesteps(STEPS)
        z = x
        for t in made.timesteps:
            z = made.step(y, t, z).prev_sample
        return z

    return walk


def measure(candidates: dict[str, Timed], rounds: int, device: str) -> dict[str, float]:
    """Median microseconds a step, the candidates taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, walk in candidates.items():
                began = time.perf_counter()
                walk()
                if device == "cuda":
                    torch.cuda.synchronize()
                spent[name].append((time.perf_counter() - began) / STEPS * 1e6)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    keep_memory(torch.device(options.device))  # as every run of diffkit does; the others have it too
    levels = Trailing().levels(SCHEDULE, STEPS)
    plain = {"clip_sample": False, "timestep_spacing": "trailing"}
    zero = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    cases: dict[str, tuple[Sampler[object], Callable[..., Timed], type | None, dict[str, object]]] = {
        "ddim": (build("sampler", "ddim"), floor_ddim, DDIMScheduler, plain),
        "ancestral": (build("sampler", "ancestral"), floor_ancestral, DDPMScheduler, plain),
        "straight": (build("sampler", "straight"), floor_ddim, None, {}),
        "euler, in float64": (build("sampler", "euler"), floor_ddim, None, {}),
        "reverse-diffusion": (build("sampler", "reverse-diffusion"), floor_ancestral, None, {}),
        "euler-maruyama": (build("sampler", "euler-maruyama"), floor_ancestral, None, {}),
        "dpmpp-2m": (build("sampler", "dpmpp-2m"), floor_2m, DPMSolverMultistepScheduler, zero),
        "dpmpp-3m": (build("sampler", "dpmpp-3m"), floor_sum(3, 0), None, {}),
        "unipc, order 2": (build("sampler", "unipc", order=2), floor_sum(2, 3), UniPCMultistepScheduler, zero),
        "adams, order 2": (build("sampler", "adams", order=2), floor_sum(2, 3), None, {}),
    }
    print("| sampler | shape | ours, us a step | floor | diffusers | ours / floor | ours / diffusers |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for name, (sampler, floor, scheduler, settings) in cases.items():
            x, y = (torch.randn(shape, device=options.device, dtype=sampler.dtype) for _ in range(2))
            model = Model(Free(y), Eps(), SCHEDULE)
            walks: dict[str, Timed] = {
                "ours": lambda sampler=sampler, model=model, x=x: sample(  # type: ignore[misc]
                    model, sampler, levels, x, noise=torch.randn_like
                ),
                "floor": floor(levels, x, y),
            }
            if scheduler is not None:
                walks["diffusers"] = theirs(scheduler, x, y, **settings)
            found = measure(walks, options.rounds, options.device)
            ours, least, peer = found["ours"], found["floor"], found.get("diffusers")
            theirs_us, share = ("", "") if peer is None else (f"{peer:.0f}", f"{ours / peer:.2f}")
            print(f"| {name} | {shape} | {ours:.0f} | {least:.0f} | {theirs_us} | {ours / least:.2f} | {share} |")


if __name__ == "__main__":
    main()
