"""Laws of the guidance of this package, on Gaussians and mixtures whose guided distributions are known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as fn

from diffkit import Denoiser, Level, Model, Shape, build, sample
from diffkit.oracles import GaussianOracle
from diffkit.testing import Case, LawResult, fixtures, law
from diffkit.testing.by_kind.guidance import LABEL, inputs

CFG = build("guidance", "cfg", shape=Shape(2, 2, (), 4), scale=3.0)


@law(
    "guidance",
    statement="inside of (low, high] the estimate is that of the inner guidance, elsewhere that without guidance",
    source="Kynkaanniemi et al. 2024 (arXiv:2404.07724), sec. 3",
    tolerance=1e-12,
    only=("interval",),
)
def interval_formula(case: Case, result: LawResult) -> None:
    """Each limit may be absent; the level that equals `high` is inside, the level that equals `low` is not."""
    source = fixtures.classes()
    for low, high in ((-1.0, 1.0), (None, 0.0), (0.0, None), (None, None)):
        guidance = replace(case.component, low=low, high=high)
        for level, x in (*inputs(case), (Level(0.6, 0.6), inputs(case)[0][1])):
            h = float(level.half_logsnr)
            inside = (low is None or h > low) and (high is None or h <= high)
            want = (guidance.inner(source) if inside else source)(x, level, label=LABEL)
            got = guidance(source)(x, level, label=LABEL)
            result.compare(got.x0, want.x0, f"x0 at half_logsnr {h:.4g}, interval {low} to {high}")
            result.compare(got.eps, want.eps, f"eps at half_logsnr {h:.4g}, interval {low} to {high}")


@law(
    "guidance",
    statement="the guided score of Gaussians is scale score + (1 - scale) score of the worse model",
    source="Karras et al. 2024 (arXiv:2406.02507), sec. 2",
    tolerance=1e-9,
    only=("autoguidance",),
)
def autoguidance_gaussian(case: Case, result: LawResult) -> None:
    """With variances v and v_w of the two models at a level the guided score is linear in x."""
    good, worse = (GaussianOracle(torch.full((2,), m, dtype=torch.float64), v) for m, v in ((0.0, 0.3), (0.2, 1.5)))
    for scale in (0.0, 1.0, 2.5):
        guided = type(case.component).of(worse, scale)(good)
        for level, x in inputs(case):
            a, s = float(level.alpha), float(level.sigma)
            v, v_w = a * a * 0.3 + s * s, a * a * 1.5 + s * s
            want = -scale * x / v - (1.0 - scale) * (x - a * 0.2) / v_w
            got = guided(x, level, label=LABEL)
            result.compare(got.score, want, f"score at {level}, scale {scale}", max(1.0, float(want.abs().max())))


@law(
    "guidance",
    statement="x0 = x0_u + c - (1 - eta) (c x0_u / |x0_u|^2) x0_u, c the change of cfg, no longer than the radius",
    source="Sadat et al. 2025 (arXiv:2410.02416), Algorithm 1",
    tolerance=1e-9,
    only=("apg",),
)
def apg_formula(case: Case, result: LawResult) -> None:
    """In the plane c has one part along x0_u, and one along the vector at a right angle to it."""
    source = fixtures.classes()
    for eta, radius in ((0.0, None), (0.3, None), (1.0, None), (0.3, 0.05)):
        guided = replace(case.component, inner=CFG, eta=eta, radius=radius)(source)
        for level, x in inputs(case):
            plain, null = source(x, level, label=LABEL).x0, source(x, level).x0
            change = 2.0 * (plain - null)
            if radius is not None:
                size = change.square().sum(1).sqrt()[:, None]
                change = torch.where(size > radius, change * radius / size, change)
            along = plain / plain.square().sum(1).sqrt()[:, None]
            across = torch.stack([-along[:, 1], along[:, 0]], dim=1)
            parts = [(change * axis).sum(1, keepdim=True) * axis for axis in (along, across)]
            want = plain + eta * parts[0] + parts[1]
            got = guided(x, level, label=LABEL).x0
            result.compare(got, want, f"x0 at {level}, eta {eta}, radius {radius}", max(1.0, float(want.abs().max())))


@law(
    "guidance",
    statement="with momentum m the k-th change of a trajectory is c_k + m c_(k-1) + m^2 c_(k-2) + ...",
    source="Sadat et al. 2025 (arXiv:2410.02416), Algorithm 1",
    tolerance=1e-9,
    only=("apg",),
)
def apg_momentum(case: Case, result: LawResult) -> None:
    """With eta 1 and no radius nothing else changes the sum; the first level of a trajectory starts a new one."""
    source = fixtures.classes()
    levels = [Level(alpha, (1.0 - alpha**2) ** 0.5) for alpha in (0.2, 0.5, 0.8, 0.95)]
    x = inputs(case)[0][1]
    for momentum in (-0.5, 0.75):
        guided = replace(case.component, inner=CFG, eta=1.0, radius=None, momentum=momentum)(source)
        for run in range(2):
            changes = []
            for k, level in enumerate(levels):
                plain, null = source(x + k, level, label=LABEL).x0, source(x + k, level).x0
                changes.append(2.0 * (plain - null))
                total = torch.stack([momentum ** (k - j) * one for j, one in enumerate(changes)]).sum(0)
                got = guided(x + k, level, label=LABEL).x0
                result.compare(got, plain + total, f"x0 of level {k} in trajectory {run}, momentum {momentum}")


@law(
    "guidance",
    statement="the guided x0 is perturbed + scale (x0 - perturbed), perturbed by attention that returns its values",
    source="Ahn et al. 2024 (arXiv:2403.17377), sec. 4.2",
    tolerance=1e-5,
    dtype="float32",
    only=("perturbed-attention",),
)
def perturbed_attention_formula(case: Case, result: LawResult) -> None:
    """A network with two layers of attention; the reference multiplies the scores of the diagonal by infinity."""
    network = _Attentive(case).eval()
    model = Model(network, fixtures.EPS, fixtures.discrete())
    level = fixtures.discrete().level(20.0)
    x = case.normal(3, 4, 5, dtype=torch.float32)
    with torch.no_grad():
        plain = model(x, level).x0
        for layers in ((), (0,), (1,)):
            network.perturbed = layers or (0, 1)
            worse = model(x, level).x0
            network.perturbed = ()
            for scale in (0.0, 1.0, 3.0):
                got = replace(case.component, scale=scale, layers=layers)(model)(x, level).x0
                want = worse + scale * (plain - worse)
                result.compare(got, want, f"x0, scale {scale}, layers {layers or 'all'}", float(want.abs().max()))


class _Attentive(nn.Module):
    """Two residual layers of self-attention, in which those in `perturbed` read each token alone: (B, 4, N)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.perturbed: tuple[int, ...] = ()
        self.layers = nn.ModuleList(nn.Linear(4, 12) for _ in range(2))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(case.normal(*parameter.shape, stream=name))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        h = x.mT + 1e-3 * c_noise[:, None, None]
        for index, layer in enumerate(self.layers):
            q, k, v = layer(h).chunk(3, dim=-1)
            mask = torch.eye(h.shape[1], dtype=torch.bool) if index in self.perturbed else None
            h = h + fn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return h.mT


@law(
    "sampler",
    statement="x_s = alpha_s x0 + sigma_s eps_null at each step, x0 guided and eps of the estimate without conditions",
    source="Chung et al. 2025 (arXiv:2406.08070), Algorithm 2",
    tolerance=1e-9,
    only=("cfg-pp",),
)
def cfgpp_gaussian(case: Case, result: LawResult) -> None:
    """For Gaussians each step is linear in x, with the conditional and the unconditional mean and variance."""
    m, v, m_u, v_u = 0.7, 0.2, 0.1, 0.9
    classes = fixtures.ByLabel([GaussianOracle(m, v), GaussianOracle(m_u, v_u)])
    schedule = fixtures.TRIG
    levels = [schedule.level(t) for t in (0.95, 0.6, 0.3, 0.0)]
    label = torch.zeros(4, dtype=torch.long)
    start = case.normal(4, 1)
    for scale in (0.3, 0.8):
        denoise: Denoiser = build("guidance", "cfg", shape=Shape(1, 1, (), 1), scale=scale)(classes)
        got = sample(partial(denoise, label=label), case.component, levels, start)
        x = start
        for t, s in pairwise(levels):
            a, b = float(t.alpha), float(t.sigma)
            x0, x0_u = (mean + a * w / (a * a * w + b * b) * (x - a * mean) for mean, w in ((m, v), (m_u, v_u)))
            x = float(s.alpha) * (scale * x0 + (1.0 - scale) * x0_u) + float(s.sigma) * (x - a * x0_u) / b
        result.compare(got, x, f"x after 3 steps, scale {scale}")
