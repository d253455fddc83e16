"""Components of methods that diffkit does not have, as an author of a plugin writes them; see test_wrong_lines.py."""

from __future__ import annotations

import cmath
import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import (
    UNIFORM_TIMES,
    Codec,
    Data,
    DataSpec,
    Denoiser,
    Estimate,
    Guidance,
    Level,
    Loss,
    Model,
    Network,
    Noise,
    Objective,
    Parameterization,
    RandomStreams,
    Sampler,
    Scalar,
    Shape,
    Times,
    Weighting,
    build,
    scalar,
)
from diffkit.data import stack


@dataclass(frozen=True)
class Projected(Guidance):
    """Adaptive projected guidance: less of the difference along x0, and a limit on its norm."""

    shape: Shape | None = None
    scale: float = 4.0
    along: float = 0.0
    limit: float = 2.5
    needs_null = True

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            good = denoise(x, level, **cond)
            label = cond.pop("label", None)
            if label is None or self.shape is None or self.shape.classes is None:
                return good
            cond["label"] = torch.full_like(label, self.shape.classes)
            null = denoise(x, level, **cond)
            gap = (good.x0 - null.x0).flatten(1)
            gap = gap * torch.clamp(self.limit / gap.norm(dim=1, keepdim=True).clamp(min=1e-12), max=1.0)
            unit = fn.normalize(good.x0.flatten(1), dim=1)
            parallel = (gap * unit).sum(1, keepdim=True) * unit
            gap = gap - parallel + self.along * parallel
            return good.with_x0(good.x0 + (self.scale - 1.0) * gap.reshape(x.shape))

        return guided


@dataclass(frozen=True)
class PlusPlus(Guidance):
    """CFG++: the guided x0 with the eps of the estimate without a label."""

    shape: Shape
    scale: float = 0.6
    needs_null = True
    renoises = True

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            good = denoise(x, level, **cond)
            label = cond.pop("label", None)
            if label is None or self.shape.classes is None:
                return good
            null = denoise(x, level, **cond, label=torch.full_like(label, self.shape.classes))
            mixed = null.interpolate(good, self.scale)
            return dataclasses.replace(mixed, eps=null.eps)

        return guided


@dataclass(frozen=True)
class Classifier(Guidance):
    """Classifier guidance with p(y | x) of the data."""

    data: Data
    scale: float = 1.0

    def law_reference(self, x: Tensor, level: Level, label: Tensor, null: Tensor) -> Tensor:
        """The gradient in closed form: that of log p(x | y) less the mean over classes."""
        scores = torch.stack([self._score(x, level, torch.full_like(label, k)) for k in range(4)])
        with torch.no_grad():
            p = torch.softmax(torch.stack([self._log_p(x, level, torch.full_like(label, k)) for k in range(4)]), 0)
        wanted = scores[label, torch.arange(len(x))] - (p[..., None] * scores).sum(0)
        return null + self.scale * level.sigma**2 / level.alpha * wanted

    def _score(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        z = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._log_p(z, level, label).sum(), z)[0]

    def _log_p(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        means = torch.tensor([[0.9, 0.0], [-0.6, 0.5], [0.0, -0.8], [1.5, 1.2]], dtype=x.dtype)[label]
        at = level.like(x)
        gap = x - at.alpha * means
        variance = at.alpha**2 * 0.3 + at.sigma**2
        return -(gap.square() / (2.0 * variance)).sum(1)

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            label = cond.pop("label", None)
            estimate = denoise(x, level, **cond)
            if label is None:
                return estimate
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                each = torch.stack([self._log_p(z, level, torch.full_like(label, k)) for k in range(4)], 1)
                chosen = torch.log_softmax(each, 1).gather(1, label[:, None])
                (slope,) = torch.autograd.grad(chosen.sum(), z)
            at = level.like(x)
            return estimate.with_x0(estimate.x0 + self.scale * at.sigma**2 / at.alpha * slope)

        return guided


@dataclass(frozen=True)
class Softened(Guidance):
    """A soft limit of x0."""

    bound: float = 2.0

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def limited(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            estimate = denoise(x, level, **cond)
            x0 = estimate.x0
            return estimate.with_x0(self.bound * torch.tanh(x0 / self.bound))

        return limited


def sinusoid(c_noise: Tensor, width: int) -> Tensor:
    rates = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=c_noise.device) / (width // 2 - 1))
    angles = c_noise.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(fn.silu(emb))[:, None].chunk(3, 2)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.attention(h, h, h, need_weights=False)[0]


class Transformer(Network):
    """A small DiT."""

    def __init__(self, shape: Shape, width: int = 16, depth: int = 1, patch: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        if len(shape.size) != 2:
            raise ValueError("images only")
        self.shape, self.patch, self.width = shape, patch, width
        self.enter = nn.Conv2d(shape.in_channels, width, patch, patch)
        self.place = nn.Parameter(0.1 * torch.randn(1, math.prod(n // patch for n in shape.size), width))
        self.time = nn.Linear(width, width)
        self.label = nn.Embedding((shape.classes or 0) + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(width, patch * patch * shape.out_channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        h = self.enter(x + (0.0 if before is None else before)).flatten(2).transpose(1, 2) + self.place
        null = torch.full((len(x),), self.shape.classes or 0, device=x.device)
        emb = self.time(sinusoid(c_noise, self.width).to(x.dtype)) + self.label(null if label is None else label)
        for block in self.blocks:
            h = block(self.dropout(h), emb)
        p, (height, width) = self.patch, self.shape.size
        y = self.leave(h).reshape(len(x), height // p, width // p, p, p, -1)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height, width)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (4, -1)).transpose(1, 2).chunk(3, 3)
        x = x + self.out(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(fn.gelu(self.wide(self.norm2(x))))


class TokenTransformer(Network):
    """A transformer without gates: the level is a token before those of the patches. Positions are a sum."""

    def __init__(self, shape: Shape, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        if len(shape.size) != 2:
            raise ValueError("images only")
        self.shape, self.grid = shape, tuple(n // 2 for n in shape.size)
        self.enter = nn.Conv2d(shape.in_channels, width, 2, 2)
        self.rows = nn.Parameter(0.2 * torch.randn(self.grid[0], 1, width))
        self.columns = nn.Parameter(0.2 * torch.randn(1, self.grid[1], width))
        self.time = nn.Linear(width, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 4 * shape.out_channels)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = self.time(sinusoid(c_noise, self.time.in_features).to(x.dtype))[:, None]
        tokens = self.enter(x).flatten(2).transpose(1, 2) + (self.rows + self.columns).flatten(0, 1)
        h = torch.cat([level, tokens], 1)
        for layer in self.layers:
            h = layer(h)
        y = self.leave(self.norm(h[:, 1:])).unflatten(1, self.grid).unflatten(3, (2, 2, -1))
        return y.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *self.shape.size)


class AxialTransformer(Network):
    """Attention along rows, then along columns: the parts of a block are in three lists."""

    def __init__(self, shape: Shape, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        if len(shape.size) != 2:
            raise ValueError("images only")
        self.shape = shape
        self.enter, self.leave = nn.Conv2d(shape.in_channels, width, 1), nn.Conv2d(width, shape.out_channels, 1)
        self.place = nn.Parameter(0.2 * torch.randn(1, width, *shape.size))
        self.time = nn.Linear(width, width)
        self.rows = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth))
        self.columns = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(2 * depth))
        self.mixes = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = self.time(sinusoid(c_noise, self.time.in_features).to(x.dtype))[:, :, None, None]
        h = self.enter(x) + self.place + level
        b, c, height, width = h.shape
        for i, (row, column, mix) in enumerate(zip(self.rows, self.columns, self.mixes, strict=True)):
            z = self.norms[2 * i](h).permute(0, 2, 3, 1).reshape(b * height, width, c)
            h = h + row(z, z, z, need_weights=False)[0].reshape(b, height, width, c).permute(0, 3, 1, 2)
            z = self.norms[2 * i + 1](h).permute(0, 3, 2, 1).reshape(b * width, height, c)
            h = h + column(z, z, z, need_weights=False)[0].reshape(b, width, height, c).permute(0, 3, 2, 1)
            h = h + fn.gelu(mix(h))
        y: Tensor = self.leave(h)
        return y


@dataclass(frozen=True)
class Velocity(Objective):
    """The loss of the decoded velocity eps - x0, or a weighted loss of x0."""

    weighting: Weighting | None = None
    times: Times = UNIFORM_TIMES
    reduction: str = "mean"

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        t = self.times.of_rows(noise, x0, model.schedule)
        level = model.schedule.level(t)
        eps = noise.normal("noise", x0)
        x = level.add_noise(x0, eps)
        guess = model.parameterization.decode(model.output(x, level, t, **cond).float(), x, level)
        gap = guess.eps - guess.x0 - (eps - x0) if self.weighting is None else guess.x0 - x0
        square = gap.square().flatten(1)
        each = square.mean(1) if self.reduction == "mean" else square.sum(1)
        if self.weighting is not None:
            each = each * torch.as_tensor(self.weighting(level))
        return Loss.of(each, t, self.times.correction(t, model.schedule))

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)


@dataclass(frozen=True)
class Restart(Sampler[None]):
    """Restart: Heun steps, and from `low` back to `high` with new noise."""

    low: float = 0.3
    high: float = 0.8
    parts: int = 3
    stochastic = True
    reaches_noise = False
    order = 2

    def nfe(self, n: int) -> None:
        return None

    def heun(self, denoise: Denoiser, x: Tensor, t: Level, s: Level) -> Tensor:
        now = denoise(x, t)
        if s.is_clean:
            return now.step_to(s)
        then = denoise(now.step_to(s), s)
        return s.alpha * (x / t.alpha + (s.ratio - t.ratio) * (now.eps + then.eps) / 2)

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        x = self.heun(denoise, x, t, s)
        if t.ratio > self.low >= s.ratio and not s.is_clean:
            x = x + s.alpha * math.sqrt(self.high**2 - s.ratio**2) * noise(x)
            ratios = [self.high + (s.ratio - self.high) * i / self.parts for i in range(self.parts + 1)]
            for a, b in pairwise(Level(s.alpha, s.alpha * ratio) for ratio in ratios):
                x = self.heun(denoise, x, a, b)
        return x, None


@dataclass(frozen=True)
class Multistep(Sampler[None]):
    """Multistep sampling of a consistency function; `eta` is the share of new noise."""

    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    stochastic = True
    consistency = True

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        found = denoise(x, t)
        if s.is_clean:
            return s.alpha * found.x0, None
        kept = math.sqrt(1.0 - self.eta**2)
        return s.alpha * found.x0 + s.sigma * (kept * found.eps + self.eta * noise(x)), None

    def law_reference(self, x0: Tensor, eps: Tensor, t: Level, s: Level) -> tuple[Tensor, float]:
        """Mean and standard deviation of a step."""
        return s.alpha * x0 + s.sigma * math.cos(math.asin(self.eta)) * eps, s.sigma * self.eta


@dataclass(frozen=True)
class Tilted(Parameterization):
    """y = cos(tilt) eps - sin(tilt) x0."""

    tilt: Annotated[float, Field(ge=0, le=1)] = 0.0

    def coefficients(self, level: Level) -> tuple[float, float]:
        return -math.sin(self.tilt), math.cos(self.tilt)

    def c_in(self, level: Level) -> Scalar:
        return scalar.divide(1.0, scalar.hypot(level.alpha, level.sigma))

    def c_noise(self, level: Level) -> Scalar:
        return level.angle + self.tilt

    def law_reference(self, x0: Tensor, eps: Tensor, alpha: float, sigma: float) -> dict[str, Tensor | float]:
        """The target, and both inputs of the network."""
        direction = cmath.exp(1j * self.tilt)
        return {
            "target": (torch.complex(eps, x0) * direction).real,
            "c_in": 1.0 / abs(complex(alpha, sigma)),
            "c_noise": cmath.phase(complex(alpha, sigma)) + self.tilt,
        }


@dataclass(frozen=True)
class TwoSlopes(Sampler[tuple]):
    """Adams-Bashforth of order 2 on eps in sigma / alpha."""

    order = 2
    reaches_noise = False

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: tuple | None, noise: Noise
    ) -> tuple[Tensor, tuple]:
        slope, length = denoise(x, t).eps, s.ratio - t.ratio
        mean = slope
        if state is not None:
            before, length_before = state
            share = 0.5 * length / length_before
            mean = (1.0 + share) * slope - share * before
        return s.alpha * (x / t.alpha + length * mean), (slope, length)

    def law_reference(
        self, x: Tensor, eps: Tensor, t: Level, s: Level, q: Level | None, eps_q: Tensor | None
    ) -> Tensor:
        """The integral of the line through two slopes, by its value in the middle."""
        middle = eps
        if q is not None:
            middle = eps + (eps - eps_q) / (t.ratio - q.ratio) * (s.ratio - t.ratio) / 2
        return s.alpha / t.alpha * x + s.alpha * (s.ratio - t.ratio) * middle


class Whitened(nn.Module, Codec):
    """Each channel with mean 0 and deviation 1 on the training examples."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(data.spec.channels, 1, 1))
        self.register_buffer("std", torch.ones(data.spec.channels, 1, 1))

    def fit(self, data: Data) -> str:
        split = data.split("train")
        x = data.to_model_range(stack(split, range(len(split)))[0]).double()
        self.mean = x.mean((0, 2, 3)).float()[:, None, None]
        self.std = x.std((0, 2, 3)).float()[:, None, None].clamp_min(1e-3)
        return f"means {self.mean.flatten().tolist()}"

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return (x - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean

    def spec(self, data: DataSpec) -> DataSpec:
        return dataclasses.replace(data, bounded=False, bins=None)

    law_reference: ClassVar[dict[str, float]] = {"channel_mean": 0.0, "channel_std": 1.0}


@dataclass(frozen=True)
class SelfConditioned(Sampler[tuple]):
    """Pass the last estimate to the network as the condition `before`."""

    inner: Sampler

    @staticmethod
    def law_example(folder: object) -> SelfConditioned:
        return SelfConditioned(build("sampler", "ddim"))

    def init(self, levels: object) -> tuple:
        return self.inner.init(levels), None

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: tuple, noise: Noise) -> tuple:
        inner, last = state
        found = []

        def conditioned(z: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            found.append(denoise(z, level, before=torch.zeros_like(z) if last is None else last, **cond))
            return found[-1]

        x, inner = self.inner.step(conditioned, x, t, s, inner, noise)
        return x, (inner, found[-1].x0)
