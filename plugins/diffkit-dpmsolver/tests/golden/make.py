"""Golden numbers from k-diffusion: python make.py CHECKOUT > k-diffusion.json, with crowsonkb/k-diffusion checked out.

The samplers run in float64 on an exact Gaussian denoiser. Packages that only its other functions need are left empty.
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
SIGMAS = [20.0, 7.0, 3.1, 1.2, 0.41, 0.1, 0.0]
START = [-31.0, 0.5, 17.0]


def load(checkout: Path) -> Any:
    """k_diffusion/sampling.py alone, without what it imports and these samplers do not use."""
    for name in ("torchdiffeq", "torchsde", "tqdm", "tqdm.auto", "k_diffusion", "k_diffusion.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    auto = sys.modules["tqdm.auto"]
    auto.trange = lambda n, **_: range(n)  # type: ignore[attr-defined]
    auto.tqdm = None  # type: ignore[attr-defined]
    utils = sys.modules["k_diffusion.utils"]
    utils.append_dims = lambda x, n: x.reshape(x.shape + (1,) * (n - x.ndim))  # type: ignore[attr-defined]
    sys.modules["k_diffusion"].utils = utils  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", checkout / "k_diffusion" / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def denoised(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of N(MEAN, VARIANCE) at alpha = 1."""
    s = sigma.reshape(-1, 1)
    return MEAN + VARIANCE / (VARIANCE + s**2) * (x - MEAN)


def noise(*_: Any) -> Tensor:
    """The same numbers at every step."""
    return torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)


def main(checkout: Path) -> None:
    sampling = load(checkout)
    x, sigmas = torch.tensor(START, dtype=torch.float64)[:, None], torch.tensor(SIGMAS, dtype=torch.float64)
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "dpmpp-2m": ("sample_dpmpp_2m", {}),
        "dpmpp-2s": ("sample_dpmpp_2s_ancestral", {"eta": 0.0, "noise_sampler": noise}),
        "dpmpp-2m-sde-midpoint": ("sample_dpmpp_2m_sde", {"eta": 1.0, "noise_sampler": noise}),
        "dpmpp-2m-sde-heun": ("sample_dpmpp_2m_sde", {"eta": 1.0, "noise_sampler": noise, "solver_type": "heun"}),
        "dpmpp-3m-published": ("sample_dpmpp_3m_sde", {"eta": 0.0, "noise_sampler": noise}),
        "dpmpp-3m-published-sde": ("sample_dpmpp_3m_sde", {"eta": 1.0, "noise_sampler": noise}),
    }
    results = {
        name: getattr(sampling, function)(denoised, x.clone(), sigmas, disable=True, **options).flatten().tolist()
        for name, (function, options) in runs.items()
    }
    lms = sampling.sample_lms(denoised, x.clone(), sigmas[:-1], disable=True, order=3)
    results["lms-3"] = lms.flatten().tolist()
    setting = {
        "mean": MEAN,
        "variance": VARIANCE,
        "sigmas": SIGMAS,
        "start": START,
        "noise": noise().flatten().tolist(),
    }
    print(json.dumps({"source": "crowsonkb/k-diffusion 4601bf085320", **setting, "results": results}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
