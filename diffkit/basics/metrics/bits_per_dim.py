"""Bits per dimension: how short a code of held-out data the model gives, by three methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, DivergedError, Grid, Level, UsageError, guide
from diffkit.likelihood import (
    Adaptive,
    Categorical,
    Chain,
    Decoder,
    Density,
    Dequantisation,
    Discretised,
    Fixed,
    Points,
    bits_per_dim,
    continuous_bound,
    fit_errors,
    log_density,
    variational_bound,
)
from diffkit.likelihood.bound import LOG_2
from diffkit.likelihood.ode import RK4
from diffkit.metric import Evaluation, Metric, ModelSetting, Tensors, TrainedModel

from .pixels import kept
from .terms import PARTS, Draw, Terms, conditions, digest, measure

Positive = Annotated[int, Field(ge=1)]
OPTIONS = {
    "bound": ("layers", "variance", "first", "decoder", "cdf", "fitted"),
    "continuous": ("decoder", "cdf"),
    "ode": ("dequantise", "probes", "tolerance"),
}
"""The options that only some methods read."""
METHODS = {
    "bound": "variational bound on a chain of {steps} layers{grid}{clean}, variance {variance}",
    "continuous": "variational bound in continuous time, {steps} points for each example{clean}",
    "ode": "density of the probability flow{clean}, {solver}, {probes}, dequantisation {dequantise}",
}
FLOOR = 1e-12
"""The smallest probability with `cdf: tanh`, that of the code of Improved DDPM."""
FITTED, POINTS, PICTURES, COLUMNS = 512, 100, 4, 11


@dataclass(frozen=True)
class BitsPerDim(Metric):
    """Bits per dimension of held-out data: the negative log2 likelihood of the model, or a bound above it, over D.

    method       `bound`, the terms of a chain of layers; `continuous`, its limit of infinitely many layers; `ode`, the
                 density of the probability flow, which is exact up to dequantisation
    steps        layers of the bound (default: every step of a discrete schedule, else 100); points of the continuous
                 bound (default 100); steps of the solver of `ode` (default: adaptive)
    count        held-out examples (default all)
    draws        draws of the noise for each example, averaged; for `ode` draws of the dequantisation, which lower it
    levels       number of values of the data (default as the data declares)
    clean        the time of the cleanest level (default the first with noise); a bound leaves cleaner layers out
    layers       of a bound: the grid of the layers (default that of the evaluation)
    variance     of a bound: `small`, `large`, `learned` or `optimal` (default), fitted on training examples
    first        `large` at the first layer: `own` (default) or `second`, as in the code of DDPM
    fitted       training examples for `optimal` (default 512)
    decoder      of both bounds: `discretised` (default of discrete data), `categorical`, or `density`
    cdf          of the discretised decoder: `exact` (default), or `tanh` with a floor, as in the code of Improved DDPM
    dequantise   of `ode`: `none`, `uniform` (default) or `variational`
    probes       of `ode`: random probes of the divergence (default 1), 0 for the exact divergence
    tolerance    of the adaptive solver of `ode` (default 1e-5)

    A guidance that limits x0 to the range of the data is part of the reverse process of `bound`; the others leave it
    out. The density of continuous data, and of latents, is not a probability: its value may be negative.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 5; Kingma et al. 2021 (arXiv:2107.00630), eq. 15; Song et al. 2021
    (arXiv:2011.13456), eq. 39.
    """

    method: Literal["bound", "continuous", "ode"] = "bound"
    steps: Positive | None = None
    count: Positive | None = None
    draws: Positive = 1
    levels: Annotated[int, Field(ge=2)] | None = None
    clean: Annotated[float, Field(ge=0)] | None = None
    layers: Grid | None = None
    variance: Literal["small", "large", "learned", "optimal"] | None = None
    first: Literal["own", "second"] | None = None
    fitted: Positive | None = None
    decoder: Literal["discretised", "categorical", "density"] | None = None
    cdf: Literal["exact", "tanh"] | None = None
    dequantise: Dequantisation | None = None
    probes: Annotated[int, Field(ge=0)] | None = None
    tolerance: Annotated[float, Field(gt=0)] | None = None

    needs = "model"
    resamples = 0

    def __post_init__(self) -> None:
        for option in dict.fromkeys(name for names in OPTIONS.values() for name in names):
            if getattr(self, option) is not None and option not in OPTIONS[self.method]:
                owners = " and ".join(method for method, names in OPTIONS.items() if option in names)
                raise ValueError(f"{option} has no effect with {self.method}; it belongs to {owners}")
        if self.fitted is not None and self.variance not in (None, "optimal"):
            raise ValueError(f"fitted has no effect with variance {self.variance}; it belongs to optimal")
        if self.cdf is not None and self.decoder not in (None, "discretised"):
            raise ValueError(f"cdf has no effect with decoder {self.decoder}; it belongs to discretised")
        if self.tolerance is not None and self.steps is not None:
            raise ValueError("tolerance has no effect with steps, which are of fixed length; remove one of them")

    @property
    def definition(self) -> str:
        """The method in words."""
        probes = "exact divergence" if self.probes == 0 else f"{self.probes or 1} probes of the divergence"
        usual = "all" if self.method == "bound" else POINTS
        method = METHODS[self.method].format(
            steps=self.steps or usual,
            clean="" if self.clean is None else f" above t = {self.clean:g}",
            grid="" if self.layers is None else f" on grid {type(self.layers).__name__.lower()}",
            variance=self.variance or "optimal",
            solver=f"{self.steps} steps" if self.steps else f"steps for a tolerance of {self.tolerance or 1e-5:g}",
            probes=probes,
            dequantise=self.dequantise or "uniform",
        )
        clip = "with" if self.method == "bound" else "without"
        return f"bits per dimension of held-out data: {method}, {clip} the clipping of sampling"

    def check(self, setting: ModelSetting) -> None:
        for guidance in setting.guidance:
            if not guidance.limits_range:
                raise UsageError(
                    f"guidance {type(guidance).__name__} changes the samples of the model, not its likelihood: "
                    "what it draws has no density that can be computed",
                    code="DK523",
                    fix="remove it from sample.guidance, which does not change training; only clipping can stay",
                )
        if others := sorted(set(setting.conditions.conditioners if setting.conditions else ()) - {"label"}):
            message = f"the model has the condition {others[0]}; of conditions, this metric passes labels alone"
            raise UsageError(message, code="DK523", fix="measure a recipe whose data has no other condition")
        if self.method == "bound":
            Chain(self._chain_levels(setting))
            if self.variance == "learned" and "variance_fraction" not in setting.provides:
                raise UsageError(
                    "variance learned requires variance_fraction, which the parameterization does not provide",
                    code="DK520",
                    fix="use variance small, large or optimal, or a parameterization with a learned variance",
                )
        else:
            self._ends(setting)
        bins, declared = self._bins(setting), setting.spec.bins
        if declared is not None and bins != declared:
            message = f"levels is {bins}, but the data has {declared} values"
            raise UsageError(message, code="DK521", fix=f"remove levels, or set levels: {declared}")
        named = next((name for name in (self.decoder, self.cdf and "cdf", self.dequantise) if name), None)
        if bins is None and named not in (None, "density"):
            what = "latents of a codec" if setting.encoded else "continuous data"
            fix = "remove it: the result is a density" + ("" if setting.encoded else "; or set levels, if the data has")
            message = f"{named} requires discrete data, but the model diffuses {what}"
            raise UsageError(message, code="DK521", fix=fix + ("" if setting.encoded else " that many values"))

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        model = evaluation.model
        if model is None:
            fix = "pass Evaluation(..., model=TrainedModel(...)), or use Run.evaluate"
            raise UsageError("bits-per-dim requires the trained model", fix=fix)
        self.check(model.setting)
        held_out = evaluation.held_out[: self.count]
        if len(held_out) == 0:
            raise UsageError("bits-per-dim requires held-out data", fix="hold out some examples of the data")
        parts = torch.split(held_out, model.batch_size)
        with torch.no_grad():
            codes = evaluation.peers.in_order(
                lambda number: (model.codec.encode(parts[number].to(model.device)).cpu(),), len(parts)
            )
            x = kept(codes, len(held_out))
        found = getattr(self, f"_{self.method}")(evaluation, model, x)
        return self._values(found, model.setting, len(x))

    def _values(self, found: Terms, setting: ModelSetting, count: int) -> dict[str, float]:
        bits, bins = found.bits_per_dim, self._bins(setting)
        mean = float(bits.mean())
        if not math.isfinite(mean):
            broken = int((~torch.isfinite(bits)).sum())
            raise DivergedError(
                f"bits-per-dim is {mean} for {broken} of {count} examples",
                code="DK524",
                fix="look at the loss (diffkit report); with `variance: small` use `optimal`, which fits the "
                "variance to the errors of the model; with `method: ode` or `continuous` choose a later time `clean`",
            )
        if bins is not None and mean > math.log2(bins):
            warnings.warn(
                f"bits-per-dim is {mean:.3g}, more than the {math.log2(bins):.3g} of {bins} equally probable values: "
                "look at the loss, at the share of each part (prior: the schedule ends too early; decoder: it starts "
                "with too little noise; kl: the model is off), and use `variance: optimal` or a later time `clean`",
                stacklevel=3,
            )
        names = (self._headline(setting), *PARTS[1:])
        values = {name: float(column.mean()) for name, column in zip(names, found.values.T)}
        error = float(bits.std() / math.sqrt(count)) if count > 1 else math.nan
        counts = {"held_out": float(count)}
        return {names[0]: mean, "standard_error": error, **values, "nfe": float(found.calls) / count, **counts}

    def _headline(self, setting: ModelSetting) -> str:
        discrete = self._bins(setting) is not None and self.decoder != "density"
        return "bits_per_dim" if discrete else "density_bits_per_dim"

    def _bins(self, setting: ModelSetting) -> int | None:
        return self.levels or (None if setting.encoded else setting.spec.bins)

    def _decoder(self, setting: ModelSetting) -> Decoder:
        bins = self._bins(setting)
        if bins is None or self.decoder == "density":
            return Density()
        if self.decoder == "categorical":
            return Categorical(bins)
        return Discretised(bins, self.cdf or "exact", FLOOR if self.cdf == "tanh" else None)

    def _chain_levels(self, setting: ModelSetting) -> list[Level]:
        grid, schedule = self.layers or setting.grid, setting.schedule
        levels = grid.levels(schedule, self.steps or grid.all_steps(schedule))
        if self.clean is not None:
            cleanest, _ = self._ends(setting)
            levels = [*(level for level in levels[:-1] if level.angle >= cleanest.angle), levels[-1]]
        return levels

    def _ends(self, setting: ModelSetting) -> tuple[Level, Level]:
        """Return the cleanest and the noisiest level. Raises UsageError (DK520) if the cleanest has no noise."""
        schedule = setting.schedule
        clean = schedule.level(schedule.t_clean if self.clean is None else self.clean)
        if self.clean is None and float(clean.sigma) == 0.0:
            clean = setting.grid.levels(schedule, setting.grid.all_steps(schedule))[-2]
        if not 0.0 < float(clean.angle) < float(schedule.noise.angle):
            fix = f"choose a time above {schedule.t_clean:g} and below {schedule.t_noise:g}"
            raise UsageError(f"clean: {self.clean} is not a level with noise", code="DK520", fix=fix)
        return clean, schedule.noise

    def _bound(self, evaluation: Evaluation, model: TrainedModel, x: Tensor) -> Terms:
        decoder = self._decoder(model.setting)
        chain = self._chain(evaluation, model)

        def batch(denoise: Denoiser, x0: Tensor, draw: Draw, cond: Mapping[str, Tensor]) -> Terms:
            guided = guide(denoise, model.setting.guidance)
            return Terms.of_bound(variational_bound(guided, chain, x0, draw.normal, decoder, cond))

        name = repr((self, model.setting.guidance, chain.levels, chain.errors))
        found = measure(evaluation, model, x, batch, draws=self.draws, calls=len(chain), name=name)
        self._keep(evaluation, model, chain, x, found)
        return found

    def _chain(self, evaluation: Evaluation, model: TrainedModel) -> Chain:
        """Return the chain; the errors of `optimal` are kept under the hash of weights, levels and examples."""
        levels, variance, first = self._chain_levels(model.setting), self.variance or "optimal", self.first or "own"
        if variance != "optimal":
            return Chain(levels, variance, first)
        fitted = min(self.fitted or FITTED, len(evaluation.train))
        rows = torch.arange(fitted) * len(evaluation.train) // fitted
        with torch.no_grad():
            x = model.codec.encode(evaluation.train[rows].to(model.device)).cpu()
        chain = Chain(levels)
        group = digest(model.weights, levels, model.setting.guidance, evaluation.seed, x)
        labels = None if evaluation.train_labels is None else evaluation.train_labels[rows]

        def stored(_: int) -> Tensors:
            return tuple(model.store.read("errors", group).values())

        def fit(number: int) -> Tensors:
            start = number * model.batch_size
            model.watch(start, fitted)
            part = range(start, min(start + model.batch_size, fitted))
            batch = x[part.start : part.stop].to(model.device), Draw(evaluation.seed, -1, part).normal
            denoise = guide(model.denoise, model.setting.guidance)
            return (len(part) * fit_errors(denoise, chain, [(*batch, conditions(model, labels, part))]),)

        ((errors,),) = [found or (torch.empty(0),) for found in evaluation.peers.in_order(stored, 1)]
        if errors.shape != (len(chain),):
            parts = evaluation.peers.in_order(fit, -(-fitted // model.batch_size))
            errors = torch.stack([part for (part,) in parts]).sum(0) / fitted
            model.store.write("errors", group, {"errors": errors})
        return chain.with_errors(errors)

    def _continuous(self, evaluation: Evaluation, model: TrainedModel, x: Tensor) -> Terms:
        decoder, (clean, noisy), points = self._decoder(model.setting), self._ends(model.setting), self.steps or POINTS
        calls = points + (not decoder.of_latent)

        def batch(denoise: Denoiser, x0: Tensor, draw: Draw, cond: Mapping[str, Tensor]) -> Terms:
            offset = draw.uniform(x0.flatten(1)[:, :1])[:, 0]
            found = continuous_bound(
                denoise,
                x0,
                clean,
                noisy,
                noise=draw.normal,
                points=Points.low_discrepancy(offset, points),
                decoder=decoder,
                cond=cond,
            )
            return Terms.of_continuous(found, calls)

        name = repr((self, clean, noisy))
        found = measure(evaluation, model, x, batch, draws=self.draws, calls=calls, name=name)
        model.store.write("terms", model.key, {"examples": found.bits_per_dim})
        return found

    def _ode(self, evaluation: Evaluation, model: TrainedModel, x: Tensor) -> Terms:
        (clean, noisy), bins = self._ends(model.setting), self._bins(model.setting)
        tolerance = self.tolerance or 1e-5
        solver = Adaptive(tolerance, tolerance) if self.steps is None else Fixed(self.steps, RK4)
        count = 1 if self.probes is None else self.probes

        def batch(denoise: Denoiser, x0: Tensor, draw: Draw, cond: Mapping[str, Tensor]) -> Terms:
            probes = [draw.signs(x0) for _ in range(count)] or None
            if bins is None:
                alpha, size = float(clean.alpha), x0[0].numel()
                density = log_density(denoise, alpha * x0, clean, noisy, probes=probes, solver=solver, cond=cond)
                log_p = density.log_density + size * math.log(alpha)
                return Terms.of_total(-log_p / (size * LOG_2), density.nfe)
            method = self.dequantise or "uniform"
            draws = [] if method == "none" else [draw.uniform(x0) for _ in range(self.draws)]
            bits, calls = bits_per_dim(
                denoise,
                x0,
                clean,
                noisy,
                bins=bins,
                draws=draws,
                method=method,
                probes=probes,
                solver=solver,
                cond=cond,
            )
            return Terms.of_total(bits, calls)

        name = repr((self, clean, noisy))
        calls = None if self.steps is None else self.steps * len(RK4.b) * self.draws
        found = measure(evaluation, model, x, batch, draws=1, calls=calls, name=name)
        model.store.write("terms", model.key, {"examples": found.bits_per_dim})
        return found

    def _keep(self, evaluation: Evaluation, model: TrainedModel, chain: Chain, x: Tensor, found: Terms) -> None:
        """Keep the terms of the layers, the rate-distortion curve, and reconstructions of a few examples."""
        if not evaluation.peers.is_main:
            return
        layers, error = found.layers / len(x), found.squared_error / len(x)
        prior = found.values[:, 1].mean()
        rate = torch.cat([prior[None], layers.flip(0)]).cumsum(0)  # after z_N, ..., z_1, and x0
        kl = rate[: len(chain)]
        targets = torch.lerp(kl[0], kl[-1], torch.linspace(0, 1, COLUMNS, dtype=kl.dtype) ** 3)  # dense at few bits
        received = sorted(set(torch.searchsorted(kl.contiguous(), targets).clamp(0, len(chain) - 1).tolist()))
        x0 = x[:PICTURES].to(model.device)
        draw, cond = (
            Draw(evaluation.seed, 0, range(len(x0))),
            conditions(model, evaluation.held_out_labels, range(len(x0))),
        )
        denoise, pictures = guide(model.denoise, model.setting.guidance), []
        with torch.no_grad():
            for k in range(received[-1] + 1):
                eps, level = draw.normal(x0), chain.level(len(chain) - k)
                if k in received:
                    estimate = denoise(level.add_noise(x0, eps), level, **cond)
                    pictures.append(model.codec.decode(estimate.x0).float().cpu())
        arrays = {
            "t": torch.tensor([float(model.setting.schedule.time(level)) for level in chain.levels[-2::-1]]),
            "layers": layers,
            "prior": prior,
            "rate": rate,
            "squared_error": torch.cat([error.flip(0), error.new_zeros(1)]),
            "examples": found.bits_per_dim,
            "reconstructions": torch.stack([*pictures, evaluation.held_out[:PICTURES]]),
            "reconstruction_rates": torch.cat([rate[received], rate[-1:]]),
        }
        model.store.write("terms", model.key, arrays)
