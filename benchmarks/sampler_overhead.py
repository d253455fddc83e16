"""What a sampling step costs besides the network: ours, the floor of the same arithmetic, and diffusers.

    python benchmarks/sampler_overhead.py [--rounds 7] [--device cpu|cuda]

The network is free: it answers a constant. The floor is the tensor operations that the step needs at least, written by
hand with scalars known beforehand (any do: time does not depend on them). Rounds are interleaved and medians are
reported, so that a noisy machine is noisy for all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from diffkit import Level, Model, Network, Sampler, build, sample
from diffkit.basics.grid import Trailing
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
from diffkit.runtime.memory import keep_freed_memory

STEPS = 100
SHAPES = ((64, 3, 32, 32), (1, 4, 64, 64))
SCHEDULE = Linear()
Timed = Callable[[], object]
Floor = Callable[[Sequence[Level], Tensor, Tensor], Timed]


class Free(Network):
    """Answers a constant, whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.answer


def floor_first(stochastic: bool) -> Floor:
    """A first-order step is linear in x and the output: two operations; with noise, one draw and one more."""

    def floor(levels: Sequence[Level], x: Tensor, y: Tensor) -> Timed:
        def walk() -> Tensor:
            z = x
            for _ in levels[1:]:
                z = torch.add(0.9 * z, y, alpha=0.1)
                if stochastic:
                    z = torch.add(z, torch.randn_like(z), alpha=0.1)
            return z

        return walk

    return floor


def floor_sum(outputs: int, corrected: int) -> Floor:
    """x0, and x_s as one sum over the last `outputs`; before, the last step again over `corrected`."""

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
    keep_freed_memory()  # as the command line program does; all contestants have it
    levels = Trailing().levels(SCHEDULE, STEPS)
    plain = {"clip_sample": False, "timestep_spacing": "trailing"}
    zero = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    cases: dict[str, tuple[Sampler[object], Floor, type | None, dict[str, object]]] = {
        "ddim": (build("sampler", "ddim"), floor_first(False), DDIMScheduler, plain),
        "ancestral": (build("sampler", "ancestral"), floor_first(True), DDPMScheduler, plain),
        "straight": (build("sampler", "straight"), floor_first(False), None, {}),
        "euler, in float64": (build("sampler", "euler"), floor_first(False), None, {}),
        "reverse-diffusion": (build("sampler", "reverse-diffusion"), floor_first(True), None, {}),
        "euler-maruyama": (build("sampler", "euler-maruyama"), floor_first(True), None, {}),
        "dpmpp-2m": (build("sampler", "dpmpp-2m"), floor_sum(2, 0), DPMSolverMultistepScheduler, zero),
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
