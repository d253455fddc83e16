"""Golden numbers from the authors' sampler: python make.py CHECKOUT > edm.json, with NVlabs/edm checked out.

edm_sampler of generate.py runs in float64 on an exact Gaussian denoiser. Packages that it does not use are left empty.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEAN, VARIANCE = 0.3, 0.49
START = [-1.3, 0.02, 0.7]
NOISE = [0.5, -1.0, 2.0]


class Net:
    """E[x0 | x] of N(MEAN, VARIANCE) at alpha = 1."""

    sigma_min, sigma_max = 0.0, float("inf")

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)

    def __call__(self, x: Tensor, sigma: Tensor, labels: None = None) -> Tensor:
        return MEAN + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN)


def load(checkout: Path) -> Any:
    """generate.py, without what its command line imports."""
    for name in ("dnnlib", "torch_utils", "torch_utils.distributed", "tqdm"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torch_utils"].distributed = None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("edm_generate", checkout / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(checkout: Path) -> None:
    sampler = load(checkout).edm_sampler
    x = torch.tensor(START, dtype=torch.float64)[:, None]

    def noise(x: Tensor) -> Tensor:
        return torch.tensor(NOISE, dtype=torch.float64)[:, None]

    settings: dict[str, dict[str, float]] = {
        "plain": {"num_steps": 7},
        "short": {"num_steps": 5, "sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0},
        "churn": {"num_steps": 9, "S_churn": 3.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003},
        "most": {"num_steps": 9, "S_churn": 40.0, "S_min": 0.05, "S_max": 30.0, "S_noise": 1.0},
    }
    results = {
        name: {"options": options, "x": sampler(Net(), x, randn_like=noise, **options).flatten().tolist()}
        for name, options in settings.items()
    }
    data = {"mean": MEAN, "variance": VARIANCE, "start": START, "noise": NOISE}
    print(json.dumps({"source": "NVlabs/edm 008a4e5316c8", **data, "results": results}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
