"""One wrong line in a component that no law was written for: the laws of its kind must find it, and pass without it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffkit.testing import check_class

SOURCE = (Path(__file__).parent / "strangers.py").read_text(encoding="utf-8")
KINDS = {
    "codec": ("Whitened",),
    "guidance": ("Projected", "PlusPlus", "Classifier", "Softened"),
    "network": ("Transformer", "TokenTransformer", "AxialTransformer"),
    "objective": ("Velocity",),
    "parameterization": ("Tilted",),
    "sampler": ("Restart", "Multistep", "SelfConditioned", "TwoSlopes"),
}
WRONG = [
    ("Projected", "(self.scale - 1.0) * gap", "self.scale * gap", "unit-scale"),
    ("Projected", "max=1.0)", "min=1.0)", "small-differences"),
    ("Projected", "(good.x0 - null.x0)", "(null.x0 - good.x0)", "direction"),
    ("Projected", "flatten(1), dim=1)", "flatten(1), dim=0)", "each-alone"),
    (
        "Projected",
        "torch.full_like(label, self.shape.classes)\n",
        "torch.full_like(label, self.shape.classes - 1)\n",
        "null-class",
    ),
    ("Projected", "return good.with_x0(good.x0 +", "return null.with_x0(good.x0 +", "keeps-aux"),
    ("Softened", "self.bound * torch.tanh(x0 / self.bound)", "torch.tanh(x0)", "options-used"),
    ("Softened", "torch.tanh(x0 / self.bound)", "torch.tanh(x0 * self.bound)", "no-enlarging"),
    ("Softened", "estimate.with_x0(", "dataclasses.replace(estimate, x0=", "consistent"),
    ("PlusPlus", "eps=null.eps", "eps=good.eps", "renoised"),
    ("PlusPlus", "null.interpolate(good, self.scale)", "good.interpolate(null, self.scale)", "unit-scale"),
    ("PlusPlus", "denoise(x, level, **cond, label=", "denoise(x, level, label=", "conditions"),
    ("Classifier", "estimate.x0 + self.scale * at.sigma", "estimate.x0 - self.scale * at.sigma", "direction"),
    ("Classifier", "at.sigma**2 / at.alpha * slope", "at.sigma / at.alpha * slope", "reference"),
    ("Classifier", "estimate.x0 + self.scale * at", "estimate.x0 + self.scale**2 * at", "reference"),
    ("Transformer", "(1 + scale)", "scale", "scale-shift"),
    ("Transformer", "+ gate * self.attention", "+ self.attention", "parts"),
    ("Transformer", "self.shape.classes or 0, device", "(self.shape.classes or 1) - 1, device", "label-used"),
    ("Transformer", "sinusoid(c_noise,", "sinusoid(c_noise % 100,", "distinct-levels"),
    ("Transformer", "permute(0, 5, 1, 3, 2, 4)", "permute(0, 5, 3, 1, 4, 2)", "places"),
    ("Transformer", "else before))", "else 0.0 * before))", "every-input"),
    ("Transformer", "block(self.dropout(h), emb)", "block(h, emb)", "dropout"),
    ("Transformer", "return x + gate *", "return gate *", "residual"),
    ("Transformer", "torch.exp(-math.log(1e4) * torch", "(0.1 * (width // 2 - 1) * torch", "distinct-levels"),
    ("TokenTransformer", "x = x + self.out(", "x = self.out(", "residual"),
    ("TokenTransformer", "return x + self.narrow(", "return self.narrow(", "residual"),
    ("TokenTransformer", "self.rows + self.columns", "self.rows + self.rows.transpose(0, 1)", "positions"),
    ("TokenTransformer", "self.columns).flatten(0, 1)", "0 * self.columns).flatten(0, 1)", "positions"),
    ("AxialTransformer", "h = h + column(", "h = column(", "residual"),
    ("AxialTransformer", "h = h + fn.gelu(", "h = fn.gelu(", "residual"),
    ("AxialTransformer", "+ self.place +", "+ self.place.mean(2, keepdim=True) +", "positions"),
    ("Velocity", "guess.eps - guess.x0 - (eps - x0)", "guess.eps - guess.x0 - eps", "minimum"),
    ("Velocity", "self.times.correction(t, model.schedule))\n\n", "None)\n\n", "given-times"),
    ("Velocity", "        self.times.update(t, each)", "        pass", "given-times"),
    (
        "Velocity",
        "torch.as_tensor(self.weighting(level))",
        "torch.as_tensor(self.weighting(level)) ** 2",
        "given-weighting",
    ),
    ("Velocity", "else square.sum(1)", "else square.mean(1)", "reductions"),
    ("Restart", "(now.eps + then.eps) / 2", "then.eps", "marginal"),
    ("Restart", "math.sqrt(self.high**2 - s.ratio**2)", "(self.high - s.ratio)", "point-mass-law"),
    ("Restart", "range(self.parts + 1)]", "range(self.parts)]", "point-mass-law"),
    ("Multistep", "s.alpha * found.x0 + s.sigma", "t.alpha * found.x0 + s.sigma", "marginal"),
    ("Multistep", "found.x0 + s.sigma *", "found.x0 + t.sigma *", "reference"),
    ("Multistep", "math.sqrt(1.0 - self.eta**2)", "1.0 - self.eta", "reference"),
    ("Tilted", "-math.sin(self.tilt)", "-self.tilt", "reference"),
    ("Tilted", "scalar.hypot(level.alpha, level.sigma))", "scalar.hypot(level.alpha, level.sigma) ** 2)", "reference"),
    ("Tilted", "level.angle + self.tilt", "level.angle", "reference"),
    ("TwoSlopes", "0.5 * length / length_before", "0.5", "local-order"),
    ("TwoSlopes", "0.5 * length / length_before", "0.5 * length_before / length", "local-order"),
    ("TwoSlopes", "share * before\n", "0.9 * share * before\n", "reference"),
    ("Tilted", "scalar.divide(1.0, scalar.hypot(level.alpha, level.sigma))", "level.alpha", "input-variance"),
    ("Transformer", "self.norm(x)", "self.norm(x - x.mean(0) * self.training)", "alone-in-training"),
    ("Transformer", "angles.sin()", "angles.cos()", "distinct-halves"),
    ("Whitened", 'self.register_buffer("std", torch.ones(data.spec.channels, 1, 1))', "pass", "state"),
    (
        "Whitened",
        "data.to_model_range(stack(split, range(len(split)))[0])",
        "stack(split, range(len(split)))[0]",
        "learned",
    ),
    ("Whitened", "x.mean((0, 2, 3))", "x.median(0).values.mean((1, 2))", "reference"),
    ("SelfConditioned", "torch.zeros_like(z) if last is None else last", "torch.zeros_like(z)", "added-conditions"),
    ("SelfConditioned", "found[-1].x0)", "found[-1].eps)", "added-conditions"),
]
KIND = {name: kind for kind, names in KINDS.items() for name in names}


def load(name: str, old: str = "", new: str = "") -> Any:
    """The class `name` of strangers.py, with an edit."""
    start = SOURCE.index(f"class {name}(") if "Transformer" not in name else SOURCE.index("def sinusoid")
    assert old in SOURCE[start:]
    module = ModuleType("edited_strangers")
    sys.modules[module.__name__] = module
    exec(compile(SOURCE[:start] + SOURCE[start:].replace(old, new, 1), "strangers.py", "exec"), module.__dict__)
    return getattr(module, name)


@pytest.mark.parametrize("name", KIND)
def test_a_right_component_breaks_no_law(name: str) -> None:
    laws = sorted({law for one, _, _, law in WRONG if one == name})
    rows = check_class(KIND[name], name.lower(), load(name), only=laws)
    assert [(row.law, row.example) for row in rows if row.verdict != "pass"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", KIND)
def test_a_right_component_breaks_no_law_at_all(name: str) -> None:
    rows = check_class(KIND[name], name.lower(), load(name))
    assert [(row.law, row.example) for row in rows if row.verdict == "fail"] == []


@pytest.mark.parametrize(("name", "old", "new", "law"), WRONG, ids=[f"{n}: {new.strip()}" for n, _, new, _ in WRONG])
def test_a_wrong_line_is_found(name: str, old: str, new: str, law: str) -> None:
    (row,) = check_class(KIND[name], name.lower(), load(name, old, new), only=[law])
    assert row.verdict == "fail"
