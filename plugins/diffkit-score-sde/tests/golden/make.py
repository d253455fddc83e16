"""Golden numbers from score_sde_pytorch: python make.py CHECKOUT > score-sde.json, with its checkout, in float64.

The score is that of a fixed affine function, and each noise a fixed tensor; batches hold one sample where the
reference mixes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TIMES = [1e-5, 0.01, 0.3, 0.77, 1.0]
STEPS = 100
INDICES = [1, 2, 40, 98]


def score(x: Tensor, t: Tensor) -> Tensor:
    return -0.7 * x + 0.1


def main(checkout: Path) -> None:
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, str(checkout))
    import sampling
    import sde_lib

    source = torch.Generator().manual_seed(0)
    x, z = (torch.randn(1, 1, 2, 3, generator=source) for _ in range(2))
    torch.randn_like = lambda like: z  # type: ignore[assignment]
    found: dict[str, Any] = {"times": TIMES, "steps": STEPS, "indices": INDICES, "x": x.tolist(), "z": z.tolist()}

    sdes = {"vp": sde_lib.VPSDE, "sub-vp": sde_lib.subVPSDE, "ve": sde_lib.VESDE}
    one, t = torch.ones(len(TIMES), 1, 1, 1), torch.tensor(TIMES)
    for name, make in sdes.items():
        mean, std = make().marginal_prob(one, t)
        drift, diffusion = make().sde(one, t)
        found[name] = {
            "alpha": mean.flatten().tolist(),
            "sigma": std.tolist(),
            "f": drift.flatten().tolist(),
            "g2": (diffusion**2).tolist(),
        }
    for name in ("vp", "ve"):
        sde = sdes[name](N=STEPS)
        for predictor in ("reverse_diffusion", "ancestral_sampling"):
            step = sampling.get_predictor(predictor)(sde, score)
            found[name][predictor] = [
                step.update_fn(x, torch.tensor([(i + 0.5) / (STEPS - 1)]))[0].tolist() for i in INDICES
            ]
        for corrector in ("langevin", "ald"):
            step = sampling.get_corrector(corrector)(sde, score, 0.16, 2)
            if name == "vp":
                sde.alphas = torch.ones(STEPS)  # the factor 1 - beta_t, which ours leaves out
            found[name][corrector] = step.update_fn(x, torch.tensor([0.6]))[0].tolist()
    for name, make in sdes.items():
        step = sampling.get_predictor("euler_maruyama")(make(N=100_000), score)
        found[name]["euler_maruyama"] = step.update_fn(x, torch.tensor([0.5]))[0].tolist()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
