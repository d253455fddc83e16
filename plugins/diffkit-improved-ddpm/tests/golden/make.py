"""Golden numbers from improved-diffusion: python make.py CHECKOUT > improved-diffusion.json.

CHECKOUT is a checkout of openai/improved-diffusion. Its tables are float64; what it computes from them is float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS = 50
TIMES = [1, 2, 3, 10, 25, 49, 50]


def numbers(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64).tolist()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x0 on 256 values in [-1, 1], noise, and an output with two heads: one row for each of TIMES."""
    source = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (len(TIMES), 1, 2, 2), generator=source).float() / 127.5 - 1.0
    noise = torch.randn(x0.shape, generator=source)
    output = torch.cat(
        [noise + 0.1 * torch.randn(x0.shape, generator=source), torch.rand(x0.shape, generator=source)], 1
    )
    return x0, noise, output


def network(x: Tensor, heads: int) -> Tensor:
    """A fixed function in the place of a network: an eps that is roughly right, and a fraction of the variance."""
    eps = 0.8 * x + 0.3 * torch.sin(3.0 * x)
    return torch.cat([eps, torch.cos(2.0 * x)], 1)[:, : heads * x.shape[1]]


def bounds(gd: Any, x0: Tensor) -> dict[str, Any]:
    """The whole bound in bits per dimension, for each variance, with and without clipping."""
    found = {}
    for variance in ("FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"):
        diffusion = gd.GaussianDiffusion(
            betas=gd.get_named_beta_schedule("cosine", STEPS),
            loss_type=gd.LossType.MSE,
            model_mean_type=gd.ModelMeanType.EPSILON,
            model_var_type=gd.ModelVarType[variance],
        )
        heads = 2 if variance == "LEARNED_RANGE" else 1
        for clip in (True, False):
            torch.manual_seed(0)
            whole = diffusion.calc_bpd_loop(lambda x, t, k=heads: network(x, k), x0, clip_denoised=clip)
            found[f"{variance}, {clip}"] = {name: numbers(whole[name]) for name in ("total_bpd", "prior_bpd", "vb")}
    return found


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    vars(np).setdefault("int", int)  # removed from numpy since
    from improved_diffusion import gaussian_diffusion as gd
    from improved_diffusion.resample import LossSecondMomentResampler
    from improved_diffusion.respace import SpacedDiffusion

    kinds = {"model_mean_type": gd.ModelMeanType.EPSILON, "model_var_type": gd.ModelVarType.LEARNED_RANGE}
    betas = gd.get_named_beta_schedule("cosine", STEPS)
    found: dict[str, Any] = {
        "betas": {str(n): numbers(gd.get_named_beta_schedule("cosine", n)) for n in (1, 10, STEPS)}
    }

    x0, noise, output = inputs()
    t = torch.tensor(TIMES) - 1
    diffusion = gd.GaussianDiffusion(betas=betas, loss_type=gd.LossType.RESCALED_MSE, **kinds)
    losses = diffusion.training_losses(lambda *_: output, x0, t, noise=noise)
    moments = diffusion.p_mean_variance(lambda *_: output, diffusion.q_sample(x0, t, noise), t, clip_denoised=False)
    found |= {"x0": numbers(x0), "noise": numbers(noise), "output": numbers(output)}
    found |= {name: numbers(losses[name]) for name in ("loss", "mse", "vb")}
    found |= {name: numbers(moments[name]) for name in ("mean", "log_variance")}

    found["bounds"] = bounds(gd, x0)

    chosen = [0, 3, 4, 20, 30, 49]
    spaced = SpacedDiffusion(chosen, betas=betas, loss_type=gd.LossType.MSE, **kinds)
    found |= {"spaced_times": [i + 1 for i in chosen], "spaced_betas": numbers(spaced.betas)}

    class Four:
        num_timesteps = 4

    resampler = LossSecondMomentResampler(Four(), history_per_term=3, uniform_prob=0.1)
    source = np.random.default_rng(0)
    updates, weights = [], []
    for _ in range(12):
        times, values = source.integers(0, 4, 5), source.gamma(1.0, 1.0, 5)
        resampler.update_with_all_losses(times.tolist(), values.tolist())
        updates.append([(times + 1).tolist(), values.tolist()])
        weights.append(numbers(resampler.weights() / resampler.weights().sum()))
    found |= {"updates": updates, "probabilities": weights}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
