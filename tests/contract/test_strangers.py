"""Laws pass the components of strangers, and find each of their mistakes."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from diffkit.testing import check_class

pytestmark = pytest.mark.xdist_group("strangers")

FILES = ("strangers.py", "strangers_of_data.py")
SOURCES = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in FILES]
KINDS: Mapping[str, tuple[str, ...]] = {
    "schedule": ("SigmoidSchedule", "LaplaceSchedule", "ShiftedCosine"),
    "weighting": ("Debiased", "SigmoidWeight", "TruncatedSNR"),
    "times": ("LaplaceTimes", "ModeTimes", "SharedOffset", "PowerTimes"),
    "metric": ("PrecisionRecall", "DensityCoverage", "KernelDistance"),
    "codec": ("Standardised", "Whitened", "BlockDCT"),
    "conditioner": ("Angles", "Letters"),
    "grid": ("CosineGrid",),
    "lr-schedule": ("PolynomialRate",),
    "optimizer": ("Lion",),
    "augmentation": ("Roll",),
}
MISTAKES: tuple[tuple[str, str, str], ...] = (
    ("SigmoidSchedule", "* (self.end - self.start)) / self.tau)", "* (self.end - self.start)) * self.tau)"),
    ("SigmoidSchedule", "u * (self.end - self.start)", "u * (self.end - 1.01 * self.start)"),
    ("SigmoidSchedule", "(f[-1] - f[0])).clamp(1e-9", "(f[-1] - f[0])).clamp(1e-3"),
    ("SigmoidSchedule", "alpha_bar[1:] / alpha_bar[:-1]", "(alpha_bar[1:] / alpha_bar[:-1]) ** 0.5"),
    ("LaplaceSchedule", "self.mu - self.b * sign", "-self.mu - self.b * sign"),
    ("LaplaceSchedule", "scalar.sqrt(1.0 / (1.0 + scalar.exp(logsnr)))", "1.0 / (1.0 + scalar.exp(logsnr))"),
    ("LaplaceSchedule", "(2.0 * level.half_logsnr - self.mu)", "(level.half_logsnr - self.mu)"),
    ("ShiftedCosine", "ratio = self.size / self.base", "ratio = self.base / self.size"),
    ("ShiftedCosine", "length = scalar.hypot(1.0, ratio)", "length = 1.0 + ratio"),
    ("ShiftedCosine", "atan2(self.base * level.sigma, self.size", "atan2(self.size * level.sigma, self.base"),
    ("Debiased", "scalar.divide(level.alpha, level.sigma)", "scalar.divide(level.sigma, level.alpha)"),
    ("Debiased", "scalar.divide(level.alpha, level.sigma)", "level.half_logsnr"),
    ("Debiased", "scalar.divide(level.alpha, level.sigma)", "scalar.divide(1.0, level.sigma)"),
    ("SigmoidWeight", "math.exp(-self.bias) * level.snr", "math.exp(self.bias) * level.snr"),
    ("SigmoidWeight", "math.exp(-self.bias) * level.snr", "math.exp(3.0) * level.snr"),
    ("SigmoidWeight", "scalar.divide(level.snr, 1.0 +", "scalar.divide(1.0, 1.0 +"),
    ("TruncatedSNR", "scalar.minimum(scalar.maximum", "scalar.maximum(scalar.maximum"),
    ("TruncatedSNR", "scalar.maximum(level.snr, self.low)", "scalar.maximum(level.snr**0.5, self.low)"),
    ("LaplaceTimes", "torch.log1p(-2.0 * v.abs())", "torch.log1p(-1.0 * v.abs())"),
    ("LaplaceTimes", "logsnr = self.mu - self.b", "logsnr = -self.mu - self.b"),
    (
        "LaplaceTimes",
        "Level(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())",
        "Level(torch.sigmoid(logsnr), torch.sigmoid(-logsnr))",
    ),
    ("ModeTimes", "t = 1.0 - u - self.scale", "t = 1.0 - u + self.scale"),
    ("ModeTimes", "(1.0 - t).clamp", "(0.999 * (1.0 - t)).clamp"),
    ("ModeTimes", "math.pi / 2 * u) ** 2 - 1.0 + u)", "math.pi / 2 * u) - 1.0 + u)"),
    ("SharedOffset", "(uniform[0].double() + i / len(uniform)) % 1.0", "uniform[0].double() + i / len(uniform)"),
    (
        "SharedOffset",
        "(uniform[0].double() + i / len(uniform)) % 1.0",
        "(uniform[0].double() + i) / (len(uniform) + 1)",
    ),
    (
        "SharedOffset",
        "(uniform[0].double() + i / len(uniform)) % 1.0",
        "0.999 * ((uniform[0].double() + i / len(uniform)) % 1.0)",
    ),
    ("PowerTimes", "** (1.0 / self.power)", "** (1.0 / (self.power + 1.0))"),
    ("PowerTimes", "(t.double() - 1) / schedule.steps", "(t.double() - 1) / (schedule.steps + 1)"),
    ("PowerTimes", "u ** (self.power - 1.0)", "u**self.power"),
    (
        "PowerTimes",
        "- schedule.t_clean) / (schedule.t_noise - schedule.t_clean)",
        "- schedule.t_clean) / schedule.t_noise",
    ),
    ("PrecisionRecall", "_radii(theirs, self.k)[None, :]).any(1)", "_radii(theirs, self.k + 1)[None, :]).any(1)"),
    (
        "PrecisionRecall",
        "(apart <= _radii(ours, self.k)[:, None]).any(0)",
        "(apart <= _radii(theirs, self.k)[None, :]).any(0)",
    ),
    (
        "PrecisionRecall",
        '"precision": float(precision), "recall": float(recall)',
        '"precision": float(recall), "recall": float(precision)',
    ),
    ("PrecisionRecall", "evaluation.train.flatten", "evaluation.held_out.flatten"),
    ("DensityCoverage", "sum(1).mean() / self.k", "sum(1).mean()"),
    ("DensityCoverage", "inside.any(0)", "inside.any(1)"),
    ("DensityCoverage", "_radii(theirs, self.k)[None, :]", "_radii(ours, self.k)[:, None]"),
    ("KernelDistance", "/ (m * (m - 1))", "/ (m * m)"),
    ("KernelDistance", "- 2.0 * kernel(x, y)", "- kernel(x, y)"),
    ("KernelDistance", "a @ b.T / a.shape[1]", "a @ b.T / a.shape[0]"),
    ("Standardised", 'split = data.split("train")', 'split = data.split("held-out")'),
    ("Standardised", ".std(1).clamp", ".var(1).clamp"),
    ("Standardised", "range(len(split))", "range(len(split) // 2)"),
    (
        "Standardised",
        "data.to_model_range(torch.stack([split[i][0] for i in range(len(split))]))",
        "torch.stack([split[i][0] for i in range(len(split))]).float()",
    ),
    ("Whitened", "torch.cov(x.T)", "torch.cov((x - x.mean()).abs().T)"),
    ("Whitened", "solve_triangular(self.root, centred.T, upper=False)", "solve(self.root.T, centred.T)"),
    ("Whitened", "@ self.root.T + self.mean", "@ self.root + self.mean"),
    ("BlockDCT", "cosines[0] /= math.sqrt(2.0)", "cosines[0] /= 2.0"),
    ("BlockDCT", "bchiwj,lj->bcklhw", "bchiwj,lj->bclkhw"),
    ("BlockDCT", "data.channels * n * n", "data.channels * n"),
    ("Angles", "torch.cat([angle.cos(), angle.sin()], 1)", "torch.cat([angle.cos(), angle.cos()], 1) * 0"),
    ("Angles", "raw.float().flatten(1)", "raw.float().flatten(1) - raw.float().flatten(1).mean(0)"),
    ("Angles", "torch.zeros(self.shape)", "torch.zeros(2 * self.shape[0])"),
    ("Letters", "self.nothing.expand", "self.nothing.detach().expand"),
    ("Letters", "raw.new_ones(len(raw), self.length, dtype=torch.bool)", "raw != 0"),
    ("Letters", "self.table(raw.long())", "self.table(raw.long()).mean(0, keepdim=True).expand(len(raw), -1, -1)"),
    ("CosineGrid", "math.pi / 2 * j / n)", "math.pi / 2 * j / (n + 1))"),
    ("CosineGrid", "schedule.t_clean + span *", "schedule.t_noise *"),
    ("CosineGrid", "** self.power for", "for"),
    ("PolynomialRate", "1.0 - step / steps", "1.0 - (step + 1) / steps"),
    ("PolynomialRate", "self.end + (1.0 - self.end) *", "self.end +"),
    ("Lion", 'alpha=-group["lr"]', "alpha=-1e-4"),
    ("Lion", 'alpha=1 - group["b2"]', 'alpha=1 - group["b1"]'),
    ("Lion", 'group["decay"] * p', 'group["decay"] * p.sign()'),
    ("Roll", "(2 * self.most + 1)).floor()", "(2 * self.most)).floor()"),
    ("Roll", "int(s), -1)", "int(s), -2)"),
)
"""One-line mistakes: the class, a text of one of its lines, and the wrong text."""
KIND = {name: kind for kind, names in KINDS.items() for name in names}
QUICK = ("weighting", "codec", "conditioner", "grid", "augmentation")
"""The kinds that are tried in every run of the tests, with one mistake of each component; all are tried at night."""
FIRST = {name: (name, old, new) for name, old, new in reversed(MISTAKES) if KIND[name] in QUICK}
_NUMBER = itertools.count()


def source(name: str) -> str:
    """The file of a class."""
    return next(text for text in SOURCES if f"\nclass {name}(" in text)


def loaded(folder: Path, text: str) -> ModuleType:
    title = f"strangers_{next(_NUMBER)}"
    path = folder / f"{title}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    spec.loader.exec_module(module)
    return module


def changed(name: str, old: str, new: str) -> str:
    """The source with another text in one line of a class, or of the class whose name is _ and its own."""
    pattern = rf"(?ms)(^class _?{name}\(.*?)(?=^@dataclass.{{0,20}}\nclass (?!{name})|^class (?!{name})|\Z)"
    before, text, after = re.split(pattern, source(name), maxsplit=1)
    assert old in text, f"{name} has no line with {old}"
    return before + text.replace(old, new, 1) + after


def broken(module: ModuleType, name: str) -> list[str]:
    rows = check_class(KIND[name], name.lower(), getattr(module, name))
    return [f"{row.law}: {row.example}; expected {row.expected}" for row in rows if row.verdict == "fail"]


@pytest.mark.parametrize(
    "name", [name if kind in QUICK else pytest.param(name, marks=pytest.mark.slow) for name, kind in KIND.items()]
)
def test_no_false_alarm(tmp_path: Path, name: str) -> None:
    assert broken(loaded(tmp_path, source(name)), name) == []


@pytest.mark.parametrize(("name", "old", "new"), FIRST.values())
def test_a_mistake_is_found(tmp_path: Path, name: str, old: str, new: str) -> None:
    assert broken(loaded(tmp_path, changed(name, old, new)), name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), MISTAKES)
def test_every_mistake_is_found(tmp_path: Path, name: str, old: str, new: str) -> None:
    assert broken(loaded(tmp_path, changed(name, old, new)), name)
