"""Draw the diagrams of the pages, with numbers that diffkit computes: `python docs/pictures.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffkit_ddim.inversion import decode, encode, slerp
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffkit import Level, Shape, build, guide, sample, transition
from diffkit.likelihood import Bound, Chain, Density, fit_errors, variational_bound
from diffkit.report.ticks import Axis, axis
from diffkit.testing import GaussianOracle, MixtureOracle

FOLDER = Path(__file__).parent / "assets" / "theory"
BLUE, ORANGE, GREEN, GREY, INK = "#1f4fb4", "#c4551a", "#2b7a5b", "#8a8a8a", "#333333"
Array = NDArray[np.float64]

LINEAR = build("schedule", "linear", steps=1000)
MIXTURE = MixtureOracle([0.4, 0.6], [-1.2, 0.8], [0.04, 0.04])
"""Two peaks, of mean 0 and variance 1."""


@dataclass
class Panel:
    """One diagram: axes from x to y, and the marks that were drawn on them."""

    x: Axis
    y: Axis
    title: str = ""
    label: str = ""
    marks: list[str] = field(default_factory=list)

    def line(self, x: ArrayLike, y: ArrayLike, colour: str = BLUE, width: float = 2.0, dash: str = "") -> None:
        """Draw a line through the points (x, y)."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        points = self._points(x, y)
        self.marks.append(f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def area(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, opacity: float = 0.25) -> None:
        """Fill the area between two curves over x."""
        x, low, high = (np.broadcast_to(values, np.shape(x)) for values in (x, low, high))
        path = f"M{self._points(x, high)} L{self._points(x[::-1], low[::-1])}Z"
        self.marks.append(f'<path d="{path}" fill="{colour}" fill-opacity="{opacity}"/>')

    def dots(self, x: ArrayLike, y: ArrayLike, colour: str = BLUE, radius: float = 3.5) -> None:
        """Draw a dot at each point."""
        for a, b in zip(self.x.place(np.ravel(x)), self.y.place(np.ravel(y))):
            self.marks.append(f'<circle cx="{a:g}" cy="{b:g}" r="{radius}" fill="{colour}"/>')

    def text(self, x: float, y: float, words: str, colour: str = INK, anchor: str = "start") -> None:
        """Write words at a point of the diagram."""
        a, b = float(self.x.place(x)), float(self.y.place(y))
        self.marks.append(f'<text x="{a:g}" y="{b:g}" fill="{colour}" text-anchor="{anchor}">{words}</text>')

    def svg(self, *, y_ticks: bool) -> list[str]:
        """Return the marks on a frame with ticks."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = [f'<text x="{left}" y="{top - 10}" fill="{INK}">{self.title}</text>']
        for tick, words in zip(self.y.ticks, self.y.labels()) if y_ticks else ():
            y = float(self.y.place(tick))
            parts.append(f'<path d="M{left} {y:g}H{right}" stroke="#e6e6e6"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:g}" fill="#555" text-anchor="end">{words}</text>')
        for tick, words in zip(self.x.ticks, self.x.labels()):
            x = float(self.x.place(tick))
            parts.append(f'<text x="{x:g}" y="{bottom + 18}" fill="#555" text-anchor="middle">{words}</text>')
        parts.append(f'<path d="M{left} {bottom}H{right}" stroke="#999"/>')
        parts.append(f'<text x="{right}" y="{bottom + 36}" fill="{INK}" text-anchor="end">{self.label}</text>')
        return parts + self.marks

    def _points(self, x: ArrayLike, y: ArrayLike) -> str:
        places = zip(self.x.place(np.asarray(x, np.float64)), self.y.place(np.asarray(y, np.float64)))
        return "L".join(f"{a:g} {b:g}" for a, b in places)


def row(
    limits: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    titles: Sequence[str],
    labels: Sequence[str],
    *,
    log: str = "",
    height: int = 220,
) -> list[Panel]:
    """Make panels side by side, each with limits ((x low, x high), (y low, y high)); `log` names logarithmic axes."""
    width, gap = 720, 56
    each = (width - 20 - gap * len(limits)) / len(limits)
    panels = []
    for k, ((x, y), title, label) in enumerate(zip(limits, titles, labels)):
        left = gap * (k + 1) + each * k
        across = axis(*x, left, left + each, log="x" in log)
        panels.append(Panel(across, axis(*y, height + 30.0, 30.0, log="y" in log), title, label))
    return panels


def save(name: str, title: str, panels: Sequence[Panel], *, y_ticks: bool = True, height: int = 220) -> None:
    """Write the panels as one SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height + 76}" font-size="13" '
        'font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="title">'
    )
    background = f'<rect width="720" height="{height + 76}" rx="8" fill="#ffffff"/>'
    body = [part for panel in panels for part in panel.svg(y_ticks=y_ticks)]
    lines = [head, f'<title id="title">{title}</title>', background, *body, "</svg>"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(x: ArrayLike) -> Tensor:
    """(B,) numbers as (B, 1)."""
    return torch.as_tensor(np.asarray(x, np.float64)).reshape(-1, 1)


def density(x: Array, level: Level) -> Array:
    """The density of the mixture at a level."""
    return np.exp(MIXTURE.log_density(rows(x), level).numpy())


def normal(x: Array, mean: float, std: float) -> Array:
    """The density of N(mean, std^2)."""
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))


def generator(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a source of noise."""
    draws = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=draws, dtype=torch.float64)


def forward() -> None:
    """Densities of x_t, shifted upwards with t, and a path of the chain."""
    (panel,) = row([((-3.2, 3.2), (0.0, 1250.0))], ["density of x_t, shifted up by t"], ["x"], height=300)
    x = np.linspace(-3.2, 3.2, 161)
    for t in (1000, 600, 300, 100, 0):
        high = t + 250.0 * density(x, LINEAR.level(float(t)))
        panel.area(x, t, high, BLUE, 0.2)
        panel.line(x, high, BLUE, 1.5)
        panel.text(3.15, t + 25.0, f"t = {t}", anchor="end")
    noise = generator(3)
    for start, colour in ((-1.3, ORANGE), (0.7, GREEN), (1.0, GREY)):
        path = [rows([start]), *Chain.full(LINEAR).encode(rows([start]), noise)]
        panel.line([float(z) for z in path[::10]], range(0, 1001, 10), colour, 1.2)
    save("forward", "Densities of x_t for five t, and three paths of the forward chain", [panel], height=300)


def variance() -> None:
    """The variance of x_t with the right and with the wrong factor of the noise."""
    (panel,) = row([((0.0, 1000.0), (0.0, 1.2))], ["variance of x_t, for data of variance 1"], ["t"])
    values = [1.0]
    for b in LINEAR.betas.tolist():
        values.append((1.0 - b) * values[-1] + b**2)
    kept = [1.0]
    for t in range(1, 1001):
        t_, s_ = LINEAR.level(float(t)), LINEAR.level(t - 1.0)
        kept.append(float(transition.decay(t_, s_)) ** 2 * kept[-1] + float(transition.spread(t_, s_)) ** 2)
    panel.line(range(0, 1001, 10), kept[::10], BLUE)
    panel.line(range(0, 1001, 10), values[::10], ORANGE, 2.0, "6 4")
    panel.text(990, 1.04, "noise times the root of beta", BLUE, "end")
    panel.text(640, 0.16, "noise times beta", ORANGE)
    save("variance", "The variance of x_t over t with two factors of the noise", [panel])


def posterior() -> None:
    """Prior, likelihood and posterior of x_{t-1} between two levels of a short schedule."""
    t, s, x0, x = LINEAR.level(300.0), LINEAR.level(200.0), -0.8, 0.6
    p, q = transition.posterior_mean(t, s)
    before = np.linspace(-2.5, 2.5, 201)
    (panel,) = row([((-2.5, 2.5), (0.0, 1.4))], ["t = 300 and s = 200, x_0 = -0.8, x_t = 0.6"], ["x_s"])
    decay, spread = float(transition.decay(t, s)), float(transition.spread(t, s))
    curves = (
        (normal(before, s.alpha * x0, s.sigma), GREY, "q(x_s | x_0)", -1.35),
        (normal(before, x / decay, spread / decay), GREEN, "q(x_t | x_s), scaled", 1.25),
        (normal(before, p * x + q * x0, float(transition.posterior(t, s))), BLUE, "q(x_s | x_t, x_0)", 0.05),
    )
    for curve, colour, words, at in curves:
        panel.area(before, 0.0, curve, colour, 0.12)
        panel.line(before, curve, colour)
        anchor = "end" if at < 0 else "start" if at > 1 else "middle"
        panel.text(at, float(np.interp(at, before, curve)) + 0.08, words, colour, anchor)
    save("posterior", "The posterior as the product of two normal densities", [panel], y_ticks=False)


def weights() -> None:
    """The weights of the error of eps in the bound and in the simple loss."""
    (panel,) = row([((1.0, 1000.0), (1e-3, 2.0))], ["weight of the squared error of eps"], ["t"], log="xy")
    t = np.unique(np.geomspace(2, 1000, 90).astype(int))
    levels = [(LINEAR.level(float(u)).snr, LINEAR.level(u - 1.0).snr) for u in t.tolist()]
    panel.line(t, [0.5 * (before / at - 1.0) for at, before in levels], BLUE)
    panel.line([2, 1000], [1.0, 1.0], ORANGE)
    panel.text(900, 1.2, "simple loss", ORANGE, "end")
    panel.text(6, 0.2, "bound", BLUE)
    save("weights", "The weight of the bound and of the simple loss over t", [panel])


def score() -> None:
    """Density, score and E[x0 | x] of the mixture."""
    limits = [((-2.5, 2.5), (0.0, 1.2)), ((-2.5, 2.5), (-10.0, 10.0)), ((-2.5, 2.5), (-2.0, 2.0))]
    panels = row(limits, ["density", "score", "best estimate of x_0"], ["x", "x", "x"])
    x = np.linspace(-2.5, 2.5, 201)
    for t, colour in ((100, BLUE), (400, ORANGE)):
        level = LINEAR.level(float(t))
        estimate = MIXTURE(rows(x), level)
        panels[0].line(x, density(x, level), colour)
        panels[1].line(x, estimate.score.ravel().clamp(-10, 10), colour)
        panels[2].line(x, estimate.x0.ravel(), colour)
    panels[0].text(-2.4, 1.1, "t = 100", BLUE)
    panels[0].text(-2.4, 1.0, "t = 400", ORANGE)
    save("score", "Density, score and best estimate of the data at two noise levels", panels)


def reverse() -> None:
    """Paths of ancestral sampling, and the histogram of the samples."""
    limits = [((0.0, 1000.0), (-3.2, 3.2)), ((-3.2, 3.2), (0.0, 1.4))]
    left, right = row(limits, ["paths of x_t, read from right to left", "4000 samples"], ["t", "x_0"])
    levels, noise = Chain.full(LINEAR).levels, generator(5)
    x = noise(torch.empty(4000, 1))
    paths = [x[:12]]
    x = sample(
        MIXTURE,
        build("sampler", "ancestral"),
        levels,
        x,
        noise=noise,
        on_step=lambda step: paths.append(step.x[:12]) if step.index % 10 == 0 else None,
    )
    steps = np.linspace(1000, 0, len(paths))
    for k in range(12):
        path = torch.stack(paths)[:, k, 0]
        left.line(steps, path, BLUE if path[-1] > -0.2 else ORANGE, 1.0)
    counts, edges = np.histogram(x.numpy(), 64, (-3.2, 3.2), density=True)
    for count, low, high in zip(counts, edges, edges[1:]):
        if count > 0:
            right.area([low, high], 0.0, count, GREY, 0.5)
    axis_x = np.linspace(-3.2, 3.2, 201)
    right.line(axis_x, density(axis_x, LINEAR.level(0.0)), BLUE)
    save("reverse", "Paths of ancestral sampling, and its samples beside the density of the data", [left, right])


def evidence() -> None:
    """The bound of a VAE with one latent, over the mean of q: z ~ N(0, 1), x ~ N(0.8 z, 0.5), x = 1.1."""
    (panel,) = row([((-1.5, 2.5), (-4.0, 0.0))], ["nats"], ["mean of q(z | x)"])
    x, load, noise = 1.1, 0.8, 0.5
    precision = 1.0 + load**2 / noise
    log_evidence = math.log(float(normal(np.array(x), 0.0, math.sqrt(load**2 + noise))))
    mean = np.linspace(-1.5, 2.5, 121)
    reconstruction = -0.5 * ((x - load * mean) ** 2 + load**2 / precision) / noise - 0.5 * math.log(2 * math.pi * noise)
    bound = reconstruction - 0.5 * (mean**2 + 1.0 / precision - 1.0 + math.log(precision))
    seen = bound > -4.0
    panel.area(mean[seen], bound[seen], log_evidence, ORANGE)
    panel.line(mean[seen], bound[seen])
    panel.line([-1.5, 2.5], [log_evidence, log_evidence], INK)
    panel.text(-1.4, log_evidence + 0.12, "evidence")
    panel.text(-0.05, -2.0, "KL", ORANGE)
    panel.text(-0.1, -3.2, "bound", BLUE)
    save("evidence", "Evidence, bound and the KL between them", [panel])


def signs(s: Tensor) -> tuple[Tensor, Tensor]:
    """Four pairs of x0 and eps whose mean is the expectation of each quadratic function, for variances s."""
    x0 = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None] * s.sqrt()
    return x0, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None].expand_as(x0)


def bounds(levels: Sequence[Level], s: Tensor) -> dict[str, Bound]:
    """The exact bound of normal data with variances s for three variances of the model."""
    oracle, (x0, eps) = GaussianOracle(torch.zeros_like(s), s), signs(s)
    chain = Chain(tuple(levels))
    optimal = chain.with_errors(fit_errors(oracle, chain, [(x0, lambda _: eps, {})]))
    chains = {"small": chain, "large": Chain(tuple(levels), "large"), "optimal": optimal}
    return {name: variational_bound(oracle, one, x0, lambda _: eps, Density()) for name, one in chains.items()}


COLOURS = {"small": ORANGE, "large": GREEN, "optimal": BLUE}


def terms() -> None:
    """Terms of the bound over t, and their excess over those with the optimal variance."""
    s = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
    limits = [((1.0, 1000.0), (1e-8, 1.0)), ((1.0, 1000.0), (0.0, 0.5))]
    titles = ["layers t = 2 to 1000, nats per dimension", "excess over optimal, summed from T to t"]
    left, right = row(limits, titles, ["t", "t"], log="x")
    left.y = axis(1e-8, 1.0, left.y.start, left.y.end, log=True)
    found = {name: one.layers.mean(1) for name, one in bounds(Chain.full(LINEAR).levels, s).items()}
    t = np.unique(np.geomspace(2, 1000, 100).astype(int))
    for k, (name, colour) in enumerate(COLOURS.items()):
        left.line(t, found[name][t - 1], colour)
        left.text(1.3, 10.0 ** (-4.4 - 0.7 * k), name, colour)
        if name != "optimal":
            excess = (found[name] - found["optimal"]).flip(0).cumsum(0).flip(0)
            right.line(t, excess[t - 1], colour)
    save("terms", "Terms of the bound over t, and their excess over the optimal variance", [left, right])


def depth() -> None:
    """The gap of the bound over the entropy for chains of different length, for normal data of variance 0.25."""
    (panel,) = row([((2.0, 1000.0), (1e-10, 10.0))], ["bound minus entropy, nats per dimension"], ["layers"], log="xy")
    s = torch.tensor([0.25], dtype=torch.float64)
    entropy = GaussianOracle(0.0, 0.25).entropy()
    counts = [2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 300, 500, 1000]
    grid = build("grid", "trailing")
    gaps: dict[str, list[float]] = {name: [] for name in COLOURS}
    for count in counts:
        for name, bound in bounds(grid.levels(LINEAR, count), s).items():
            gaps[name].append(float(bound.total.mean()) - entropy)
    for (name, colour), at in zip(COLOURS.items(), (1.6, 3e-4, 6e-10)):
        panel.line(counts, gaps[name], colour)
        panel.dots(counts, gaps[name], colour, 2.5)
        panel.text(900.0, at, name, colour, "end")
    save("depth", "The gap of the bound over the number of layers, for three variances", [panel])


def paths() -> None:
    """Paths of the reverse SDE and of the probability-flow ODE from the same starts."""
    limits = [((0.0, 1000.0), (-3.2, 3.2))] * 2
    panels = row(limits, ["reverse SDE", "probability-flow ODE"], ["t", "t"])
    starts, levels = rows(np.linspace(-2.0, 2.0, 13)), Chain.full(LINEAR).levels
    for panel, eta in zip(panels, (1.0, 0.0)):
        found = [starts]
        sampler = build("sampler", "ddim", eta=eta)
        sample(MIXTURE, sampler, levels, starts, noise=generator(2), on_step=lambda step, to=found: to.append(step.x))
        for path in torch.stack(found)[::10, :, 0].T:
            panel.line(np.linspace(1000, 0, len(path)), path, BLUE if path[-1] > -0.2 else ORANGE, 1.0)
    save("paths", "Paths of the reverse SDE and of the probability-flow ODE from the same starts", panels)


def ddim() -> None:
    """DDIM beside the exact flow, and its error over the number of steps."""
    limits = [((0.0, 1000.0), (-2.2, 2.2)), ((4.0, 1000.0), (1e-3, 1.0))]
    left, right = row(limits, ["5 and 20 steps, and the exact flow", "largest error at t = 1"], ["t", "steps"])
    right.x, right.y = (axis(*ends, one.start, one.end, log=True) for ends, one in zip(limits[1], (right.x, right.y)))
    starts, noisy, end = rows([-1.6, -0.6, 0.2, 1.2]), LINEAR.level(1000.0), LINEAR.level(1.0)
    exact = [MIXTURE.flow(starts, noisy, LINEAR.level(float(t))) for t in range(1, 1001, 9)]
    for path in torch.stack(exact)[:, :, 0].T:
        left.line(range(1, 1001, 9), path, GREY, 3.0)
    errors, counts = [], [5, 10, 20, 50, 100, 200, 500, 999]
    for count in counts:
        times = np.round(np.linspace(1000, 1, count + 1))
        found = [starts]
        levels = [LINEAR.level(float(t)) for t in times]
        sample(MIXTURE, build("sampler", "ddim"), levels, starts, on_step=lambda step, to=found: to.append(step.x))
        errors.append(float((found[-1] - MIXTURE.flow(starts, noisy, end)).abs().max()))
        for path in torch.stack(found)[:, :, 0].T if count in (5, 20) else ():
            left.line(times, path, ORANGE if count == 5 else BLUE, 1.2)
    right.line(counts, errors)
    right.dots(counts, errors)
    save("ddim", "Steps of DDIM beside the exact flow, and the error over the number of steps", [left, right])


def signal(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a smooth random signal of 64 points, the axes of its normal distribution, and their variances."""
    places = torch.linspace(0.0, 1.0, 64, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((places[:, None] - places) / 0.08) ** 2) + 1e-4 * torch.eye(64)
    s, axes = torch.linalg.eigh(covariance)
    return axes @ (s.sqrt() * generator(seed)(s)), axes, s


def progressive() -> None:
    """A signal, and its estimate after a few rates: the information of x_t."""
    x0, axes, s = signal(3)
    noise, places = generator(4)(x0), range(64)
    panels = row(
        [((0.0, 63.0), (-3.0, 3.0))] * 4, ["2 bits", "8 bits", "24 bits", "60 bits"], ["place"] * 4, height=150
    )
    for panel, bits in zip(panels, (2, 8, 24, 60)):
        low, high = 1e-6, 1e8  # signal-to-noise ratios
        for _ in range(100):
            snr = math.sqrt(low * high)
            low, high = (low, snr) if float(torch.log1p(s * snr).sum()) / 2.0 > bits * math.log(2.0) else (snr, high)
        level = Level(math.sqrt(snr / (1.0 + snr)), math.sqrt(1.0 / (1.0 + snr)))
        estimate = GaussianOracle(torch.zeros_like(s), s)((axes.T @ level.add_noise(x0, noise))[None], level)
        panel.line(places, x0, GREY, 1.2)
        panel.line(places, axes @ estimate.x0[0], BLUE)
    save("progressive", "A smooth signal, and its estimates after 2, 8, 24 and 60 bits", panels, height=150)


def optimal_rate(s: Tensor, error: ArrayLike) -> Array:
    """The optimal rate of normal data with variances s, falling, at each mean squared error, in bits per dimension."""
    sizes, error = s.numpy(), np.asarray(error)[:, None]
    k = np.arange(1, len(s) + 1)
    theta = ((len(s) * error - sizes.sum() + sizes.cumsum()) / k).max(1, keepdims=True)
    return 0.5 * np.log2(sizes / np.minimum(theta, sizes)).mean(1)


def rate_distortion() -> None:
    """The error over the rate for 64 axes of variance k^-2: the optimum, information, and chains; and the excess."""
    s = torch.arange(1, 65, dtype=torch.float64) ** -2.0
    limits = [((0.0, 2.0), (1e-4, 0.03)), ((0.0, 2.0), (0.0, 0.2))]
    titles = ["squared error per dimension", "excess over the optimum, bits per dimension"]
    left, right = row(limits, titles, ["rate, bits per dimension"] * 2)
    left.y = axis(1e-4, 0.03, left.y.start, left.y.end, log=True)
    snr = np.geomspace(1e-3, 1e5, 200)[:, None]
    sizes = s.numpy()
    curves = {"infinitely many layers": (0.5 * np.log2(1 + sizes * snr).mean(1), (sizes / (1 + sizes * snr)).mean(1))}
    for count in (1000, 50, 20):
        rate, error = bounds(build("grid", "trailing").levels(LINEAR, count), s)["optimal"].rate_distortion()
        curves[f"{count} layers"] = rate.numpy()[:-1], error.numpy()[:-1]
    for k, ((name, (rate, error)), colour) in enumerate(zip(curves.items(), (BLUE, GREEN, ORANGE, GREY))):
        shown = (rate < 2.0) & (error > 1e-4)
        left.line(rate[shown], error[shown], colour)
        excess = rate - optimal_rate(s, error)
        right.line(rate[shown], excess[shown], colour)
        right.text(1.9, 0.185 - 0.017 * k, name, colour, "end")
    best = optimal_rate(s, error := np.geomspace(1e-4, float(s.mean()), 200))
    left.line(best[best < 2.0], error[best < 2.0], INK, 1.2, "4 3")
    left.text(0.1, 1.3e-4, "dashed: the optimum")
    save(
        "rate-distortion",
        "Error over the rate for the optimum and for chains, and the excess of the rate",
        [left, right],
    )


def guidance() -> None:
    """Samples of one of three classes in the plane, with several guidances."""
    means, spread = [[0.0, 0.55], [-0.75, -0.45], [0.75, -0.45]], [0.16, 0.16, 0.16]
    classes = MixtureOracle([1.0, 1.0, 1.0], means, spread)
    cfg = build("guidance", "cfg", shape=Shape(2, 2, (), 3), scale=4.0)
    settings = (
        ("no guidance", []),
        ("cfg, scale 4", [cfg]),
        ("cfg in an interval", [build("guidance", "interval", inner=cfg, low=-1.0, high=1.0)]),
        ("cfg with apg", [build("guidance", "apg", inner=cfg)]),
    )
    frame = ((-1.6, 1.6), (-1.5, 2.0))
    panels = row([frame] * 4, [title for title, _ in settings], [""] * 4, height=160)
    levels = build("grid", "trailing").levels(LINEAR, 60)
    label = torch.zeros(160, dtype=torch.long)
    start = generator(5)(torch.empty(160, 2)) * float(levels[0].sigma)
    data = classes.sample(150, torch.Generator().manual_seed(1))
    for panel, (_, chosen) in zip(panels, settings):
        panel.dots(data[:, 0], data[:, 1], "#cfcfcf", 1.6)
        x = sample(partial(guide(classes, chosen), label=label), build("sampler", "ddim"), levels, start)
        panel.dots(x[:, 0], x[:, 1], BLUE, 1.6)
    save("guidance", "Samples of one of three classes, with four guidances", panels, y_ticks=False, height=160)


def interpolation() -> None:
    """Data on a ring: examples between two others on a straight line, and on the great circle of their latents."""
    limits, titles = ((-1.6, 1.6), (-1.6, 1.6)), ("between examples", "latents", "between latents, decoded")
    panels = row([limits] * 3, titles, ["", "", ""], height=177)
    turn = 2.0 * math.pi / 60 * torch.arange(60, dtype=torch.float64)
    ring = MixtureOracle(torch.ones(60), torch.stack([turn.cos(), turn.sin()], 1), torch.full((60,), 0.004))
    levels, data = build("grid", "trailing").levels(LINEAR, 200), ring.sample(300, torch.Generator().manual_seed(1))
    ends, weights = data.new_tensor([[0.98, 0.17], [-0.87, 0.5]]), torch.linspace(0.0, 1.0, 9).tolist()
    latents = encode(ring, levels, ends, rounds=2)
    circle = slerp(latents[:1], latents[1:], weights)
    straight = torch.cat([torch.lerp(ends[:1], ends[1:], w) for w in weights])
    clouds, paths = (data, generator(2)(data), data), (straight, circle, decode(ring, levels, circle))
    for panel, cloud, between in zip(panels, clouds, paths):
        panel.dots(*cloud[cloud.abs().amax(1) < 1.6].T, "#cfcfcf", 1.6)
        panel.dots(*between[1:-1].T, BLUE)
        panel.dots(*between[[0, -1]].T, ORANGE, 5)
    save("interpolation", "Examples between two others: on a line, and by their latents", panels, height=177)


def series() -> None:
    """Three series of 64 values on the way from noise to samples, with the exact denoiser of a Gaussian process."""
    places = torch.arange(64, dtype=torch.float64)
    apart = places[:, None] - places
    waves = torch.exp(-2.0 * torch.sin(math.pi * apart / 32.0) ** 2 - (apart / 60.0) ** 2)
    process = GaussianOracle(torch.zeros(1, 64, dtype=torch.float64), waves + 1e-6 * torch.eye(64))
    levels, times = [LINEAR.level(float(t)) for t in range(1000, -1, -10)], [1000, 400, 150, 0]
    states, noise = [generator(4)(torch.empty(3, 1, 64))], generator(1)
    ancestral = build("sampler", "ancestral")
    sample(process, ancestral, levels, states[0], noise=noise, on_step=lambda step: states.append(step.x))
    panels = row([((0.0, 63.0), (-3.6, 3.6))] * 4, [f"t = {t}" for t in times], ["", "", "", "place"], height=160)
    for panel, t in zip(panels, times):
        for one, colour in zip(states[(1000 - t) // 10][:, 0], (BLUE, ORANGE, GREEN)):
            panel.line(places, one, colour, 1.5)
    save("series", "Three series while they are sampled, at four times", panels, y_ticks=False, height=160)


PICTURES = (
    interpolation,
    series,
    rate_distortion,
    paths,
    ddim,
    forward,
    variance,
    posterior,
    weights,
    score,
    reverse,
    evidence,
    terms,
    depth,
    progressive,
    guidance,
)

if __name__ == "__main__":
    for picture in PICTURES:
        picture()
