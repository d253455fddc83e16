"""Makes openai.json: what the U-Nets of the authors' repositories compute with weights that a formula gives.

usage: python make.py PATH_OF_IMPROVED_DIFFUSION PATH_OF_GUIDED_DIFFUSION
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from formulas import inputs, weights

BASE = {
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "improved": ("improved_diffusion", {"out_channels": 6, "num_heads": 4, "use_scale_shift_norm": True}),
    "improved-labels": ("improved_diffusion", {"out_channels": 3, "num_heads": 2, "num_classes": 3}),
    "guided": (
        "guided_diffusion",
        {
            "out_channels": 6,
            "image_size": 8,
            "num_head_channels": 16,
            "num_classes": 3,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "use_new_attention_order": True,
        },
    ),
}
EVERY = 11


def main(improved: str, guided: str) -> None:
    """Write the file beside this one."""
    sys.path[:0] = [improved, guided]
    found = {}
    for name, (package, options) in CASES.items():
        model = importlib.import_module(f"{package}.unet").UNetModel(**BASE, **options).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(weights(shapes))
        x, t, label = inputs(3, 8)
        with torch.no_grad():
            y = model(x, t, **({"y": label} if "num_classes" in options else {}))
        picked = [float(f"{value:.6g}") for value in y.flatten()[::EVERY].tolist()]
        named = {key: shape for key, shape in shapes.items() if key.endswith(".weight")}  # a bias follows from it
        found[name] = {"weights": named, "every": EVERY, "output": picked}
    Path(__file__).with_name("openai.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
