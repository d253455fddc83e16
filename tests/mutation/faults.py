# ruff: noqa: E501
"""Deliberate faults, each one edit: file, old text, new text, and the component whose laws must notice.

To add one: append a line to a list below; `old` must occur exactly once in the file. Where it comes from is told in
the comments: identities K and L, pains, or the list of the issue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One edit of `file`; `targets` are kind/name:law of registered components, which are tried in turn.

    Without `:law` all laws of the component are tried: so to add a fault, leave it out, and add the law that is found.
    """

    name: str
    file: str
    old: str
    new: str
    targets: tuple[str, ...]


def fault(name: str, file: str, old: str, new: str, *targets: str) -> Fault:
    return Fault(name, file, old, new, targets)


LEVEL, ESTIMATE, SCHEDULE = "diffkit/level.py", "diffkit/estimate.py", "diffkit/schedule.py"
TRANSITION, PARAMETERIZATION, DENOISER = "diffkit/transition.py", "diffkit/parameterization.py", "diffkit/denoiser.py"
SAMPLER, NOISE, GRID, TIMES = "diffkit/sampler.py", "diffkit/noise.py", "diffkit/grid.py", "diffkit/times.py"
OBJECTIVE, DATA = "diffkit/objective.py", "diffkit/data.py"
DDPM, BASICS = "diffkit/ddpm/", "diffkit/basics/"
DDIM = "plugins/diffkit-ddim/src/diffkit_ddim/"
SOLVER = "plugins/diffkit-dpmsolver/src/diffkit_dpmsolver/"
EDM = "plugins/diffkit-edm/src/diffkit_edm/"
P2 = "plugins/diffkit-p2/src/diffkit_p2/"
SCORE = "plugins/diffkit-score-sde/src/diffkit_score_sde/"
FLOW = "plugins/diffkit-flow/src/diffkit_flow/"
ZERO = "plugins/diffkit-zero-snr/src/diffkit_zero_snr/"
IMPROVED = "plugins/diffkit-improved-ddpm/src/diffkit_improved_ddpm/"

ALGEBRA = [
    fault("snr is a ratio of amplitudes (K: SNR)", LEVEL, "self.sigma) ** 2", "self.sigma)", "weighting/snr:snr-formula"),
    fault(
        "half_logsnr is the whole (K: SNR)",
        LEVEL,
        "return scalar.log(self.alpha) - scalar.log(self.sigma)",
        "return 2.0 * (scalar.log(self.alpha) - scalar.log(self.sigma))",
        "schedule/linear:composition",
    ),
    fault("angle measured from noise", LEVEL, "atan2(self.sigma, self.alpha)", "atan2(self.alpha, self.sigma)", "schedule/linear:inverse"),
    fault(
        "alpha and sigma swapped in the forward process",
        LEVEL,
        "return level.alpha * x0 + level.sigma * eps",
        "return level.sigma * x0 + level.alpha * eps",
        "parameterization/eps:round-trip",
    ),
    fault("rescaled the wrong way", LEVEL, "scalar.divide(scale, self.scale)", "scalar.divide(self.scale, scale)", "parameterization/eps:model"),
    fault(
        "coefficients in the type of x (pains 8)",
        LEVEL,
        "dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32",
        "dtype = x.dtype",
        "schedule/linear:half-precision",
    ),
    fault(
        "noise does not shrink for the noise that is added",
        LEVEL,
        "self.sigma**2 - rho**2",
        "self.sigma**2 - 0.0 * rho",
        "sampler/ancestral:marginal",
    ),
    fault("alpha_t for alpha_s in the step", ESTIMATE, "self.combine(target.alpha,", "self.combine(self.level.like(self.x0).alpha,", "sampler/ddim:point-mass"),
    fault(
        "a larger variance moves the mean (design fact 3)",
        ESTIMATE,
        "target.remaining_std(rho) if",
        "target.remaining_std(rho if std is None else broadcast(std, self.x0)) if",
        "sampler/ancestral:evaluations",
    ),
    fault("std ignored", ESTIMATE, "std = rho if std is None else broadcast(std, self.x0)", "std = rho", "sampler/ancestral:options-used"),
    fault(
        "guidance mixes x0 the wrong way round",
        ESTIMATE,
        "weighted_sum(1.0 - w, a, w, b)",
        "weighted_sum(w, a, 1.0 - w, b)",
        "guidance/cfg:direction",
    ),
    fault("guidance leaves eps", ESTIMATE, "replace(other, x0=x0, eps=eps)", "replace(other, x0=x0)", "guidance/cfg:consistent"),
    fault(
        "eps kept after clipping (K: clipping)",
        ESTIMATE,
        "eps=weighted_sum(1.0, self.eps, shift, self.x0 - x0)",
        "eps=self.eps",
        "guidance/clip:consistent",
    ),
    fault("score without the sign", ESTIMATE, "self.combine(0.0, -1.0 / self.level.sigma)", "self.combine(0.0, 1.0 / self.level.sigma)", "guidance/cfg:gaussian-closed-form"),
    fault(
        "float32 table of betas (K: float32)",
        SCHEDULE,
        "torch.log1p(-table).cumsum(0)",
        "torch.log1p(-table.float()).cumsum(0).double()",
        "schedule/linear:product",
    ),
    fault("alpha is alpha_bar (L: the missing bar)", SCHEDULE, "torch.exp(0.5 * log_alpha_bar)", "torch.exp(log_alpha_bar)", "schedule/linear:product"),
    fault(
        "sigma is the variance (L: sigma for its square)",
        SCHEDULE,
        "torch.sqrt(-torch.expm1(log_alpha_bar))",
        "-torch.expm1(log_alpha_bar)",
        "schedule/linear:product",
    ),
    fault("cancellation in sigma", SCHEDULE, "torch.sqrt(-torch.expm1(log_alpha_bar))", "torch.sqrt(1.0 - (torch.exp(log_alpha_bar)).float()).double()", "schedule/linear:double"),
    fault("the network is told t (K: off-by-one)", SCHEDULE, "return t - 1", "return t", "schedule/linear:index"),
    fault("tensor times are one too late", SCHEDULE, "return Level(alphas[t], sigmas[t])", "return Level(alphas[t - 1], sigmas[t - 1])", "schedule/linear:float-tensor"),
    fault("no interpolation between steps", SCHEDULE, "angle = angles[low] + fraction *", "angle = angles[low] + 0.0 * fraction *", "schedule/linear:inverse"),
    fault("levels are rounded to steps", SCHEDULE, "SNAP = 2e-3", "SNAP = 0.6", "schedule/linear:inverse"),
    fault("cumulative product starts one late", SCHEDULE, "torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-table).cumsum(0)])", "torch.cat([torch.zeros(2, dtype=torch.float64), torch.log1p(-table)[1:].cumsum(0)])", "schedule/linear:falls"),
    fault("diffusion term of the SDE without the drift", SCHEDULE, "- 2.0 * f * variance", "- f * variance", "schedule/linear:sde-coefficients"),
    fault("drift of alpha, not of its logarithm", SCHEDULE, "scalar.log(level.alpha), level.sigma**2", "level.alpha, level.sigma**2", "schedule/linear:sde-coefficients"),
    fault("log-SNR for half of it in the forward variance", TRANSITION, "    return t.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))", "    return t.sigma * scalar.sqrt(-scalar.expm1(-step(t, s)))", "schedule/linear:composition"),
    fault("beta for beta tilde", TRANSITION, "    return s.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))", "    return t.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))", "sampler/ancestral:evaluations"),
    fault("standard deviation without its root", TRANSITION, "    return s.sigma * scalar.sqrt(-scalar.expm1(-2.0 * step(t, s)))", "    return s.sigma * -scalar.expm1(-2.0 * step(t, s))", "sampler/ancestral:marginal"),
    fault("posterior mean: sigma ratio once", TRANSITION, "decay(t, s) * shrink * shrink", "decay(t, s) * shrink", "parameterization/mu:mu-target"),
    fault("posterior mean: alpha_t for alpha_s", TRANSITION, "s.alpha * -scalar.expm1", "t.alpha * -scalar.expm1", "parameterization/mu:mu-target"),
    fault("decay upside down", TRANSITION, "scalar.divide(t.alpha, s.alpha)", "scalar.divide(s.alpha, t.alpha)", "schedule/linear:composition"),
    fault("decoding: sign of eps", PARAMETERIZATION, "for v in (b, -level.sigma, -a, level.alpha)", "for v in (b, -level.sigma, a, level.alpha)", "parameterization/x0:round-trip"),
    fault("decoding: determinant with the other sign", PARAMETERIZATION, "det = level.alpha * b - level.sigma * a\n", "det = level.alpha * b + level.sigma * a\n", "parameterization/x0:round-trip"),
    fault("loss weight not squared (pains 12)", PARAMETERIZATION, "level.sigma) ** 2\n", "level.sigma)\n", "parameterization/eps:weight"),
    fault("loss weight by alpha", PARAMETERIZATION, "level.alpha * b - level.sigma * a, level.sigma) ** 2", "level.alpha * b - level.sigma * a, level.alpha) ** 2", "parameterization/eps:weight"),
    fault("infinite x0 at zero terminal SNR (pains 4)", PARAMETERIZATION, "        self._refuse_singular(det, level)\n", "", "parameterization/eps:singular-ends"),
    fault("target with x0 and eps swapped", PARAMETERIZATION, "return weighted_sum(a, x0, b, eps)", "return weighted_sum(a, eps, b, x0)", "parameterization/eps:round-trip"),
    fault("x not carried to the model's own curve", DENOISER, "z = x if own is level else x * broadcast(own.scale / level.scale, x)", "z = x", "parameterization/eps:model"),
    fault("the estimate keeps the model's level", DENOISER, "return estimate if own is level else estimate.at_level(level)", "return estimate", "parameterization/eps:model"),
    fault("levels outside of training are answered", DENOISER, "if not float(clean.angle)", "if False and not float(clean.angle)", "parameterization/eps:outside"),
    fault("fractions for an embedding table", DENOISER, 'if not getattr(self.network, "integer_time", False):', "if True:", "parameterization/eps:tells-level"),
    fault("every index rounded", DENOISER, 'if not getattr(self.network, "integer_time", False):', "if False:", "parameterization/eps:model"),
    fault("c_in forgotten", DENOISER, "else c_in * x", "else 1.0 * x", "parameterization/edm:model"),
    fault("state not passed on (pains 18)", SAMPLER, "            x, state = sampler.step(counted or denoise, x, t, s, state, draw)", "            x, _ = sampler.step(counted or denoise, x, t, s, state, draw)", "sampler/dpmpp-2m:pure"),
    fault("last step left out", SAMPLER, "enumerate(pairwise(levels)):\n            draw", "enumerate(pairwise(levels[:-1])):\n            draw", "sampler/ddim:evaluations"),
    fault("state in float32", SAMPLER, "x = x.to(dtype or sampler.dtype or x.dtype, copy=True)", "x = x.float()", "sampler/ddim:point-mass"),
    fault("the same noise in every step", SAMPLER, "source.at_step(index)", "source.at_step(0)", "sampler/ancestral:batch-composition"),
    fault("evaluations counted once a step", SAMPLER, "counted.last, counted.calls))", "counted.last, index + 1))", "sampler/heun:evaluations"),
    fault("noise by place in the batch (pains 16)", NOISE, '"step", i, draw) for i in samples]', '"step", i, draw) for i, _ in enumerate(samples)]', "sampler/ancestral:batch-composition"),
    fault("start by place in the batch (pains 16)", NOISE, '"start", i), device=device)\n            for i in self.samples', '"start", i), device=device)\n            for i, _ in enumerate(self.samples)', "sampler/ddim:batch-composition"),
    fault("steps of a sample share their noise", NOISE, "return self._buffer[step % self._ahead]", "return self._buffer[0]", "sampler/ancestral:batch-composition"),
    fault("draws of a step share their noise", NOISE, 'generator(self._device, seed, "step", i, draw)', 'generator(self._device, seed, "step", i, 0)', "sampler/ancestral:batch-composition"),
    fault("blocks of rows repeat their noise", NOISE, "\"train\", stream, self.step, block)", "\"train\", stream, self.step)", "objective/simple:counted"),
    fault("every training step has the same draws", NOISE, "\"train\", stream, self.step, block)", "\"train\", stream, block)", "objective/simple:counted"),
    fault("micro-batches repeat their noise", NOISE, "return RandomStreams(self.seed, self.step, self.total, start)", "return RandomStreams(self.seed, self.step, self.total, 0)", "objective/simple:counted"),
    fault("noise and times from one stream position", NOISE, "\"train\", stream, self.step, block)", "\"train\", self.step, block)", "objective/simple:counted"),
    fault("a grid that visits t = 0", GRID, "lowest = 1 if i == n - 1", "lowest = 0 if i == n - 1", "grid/quadratic:rises"),
    fault("times truncated (K: rounding)", GRID, "return int(t + 0.5)", "return int(t)", "grid/linspace:linspace-points"),
    fault("halves to even (K: rounding)", GRID, "return int(t + 0.5)", "return round(t)", "grid/linspace:linspace-points"),
    fault("the end is not clean (K: final alpha)", GRID, "return [*(schedule.level(t) for t in self.times(schedule, n)), schedule.clean]", "return [*(schedule.level(t) for t in self.times(schedule, n)), schedule.level(schedule.t_clean)]", "grid/linspace:rises"),
    fault("one level too few (pains 2)", GRID, "return [*(schedule.level(t) for t in self.times(schedule, n)), schedule.clean]", "return [*(schedule.level(t) for t in self.times(schedule, n)[:-1]), schedule.clean]", "grid/trailing:length"),
    fault("more steps than the schedule has", GRID, "if n > schedule.steps:", "if n > 10 * schedule.steps:", "grid/trailing:refuses"),
    fault("levels visited twice", GRID, "else out[i + 1] + 1", "else out[i + 1]", "grid/quadratic:rises"),
    fault("times start from 0", TIMES, "clamp(max=schedule.steps - 1) + 1", "clamp(max=schedule.steps - 1)", "times/uniform:in-range"),
    fault("the noisiest time is never drawn", TIMES, "(fraction.double() * schedule.steps)", "(fraction.double() * (schedule.steps - 1))", "times/uniform:discrete-continuous"),
    fault("continuous times reach clean data", TIMES, "return schedule.t_noise - (schedule.t_noise - schedule.t_clean) * fraction.double()", "return schedule.t_clean + (schedule.t_noise - schedule.t_clean) * fraction.double()", "times/uniform:in-range"),
    fault("weights on the output, not on x0 (pains 12)", OBJECTIVE, "return self(level) / parameterization.weight(level)", "return self(level)", "weighting/snr:same-loss"),
    fault("weights multiplied by those of the output (pains 12)", OBJECTIVE, "return self(level) / parameterization.weight(level)", "return self(level) * parameterization.weight(level)", "weighting/uniform:same-loss"),
    fault("images scaled by 128", DATA, "((self.spec.bins or 256) - 1) / 2", "(self.spec.bins or 256) / 2", "data/digits:stored"),
    fault("pixels truncated (pains 14)", DATA, ".mul_((bins - 1) / 2).round_()", ".mul_((bins - 1) / 2).floor_()", "data/images:stored"),
]  # fmt: skip

DEFAULTS = [
    fault("betas in float32", DDPM + "schedule.py", "torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)", "torch.linspace(self.beta_start, self.beta_end, self.steps).double()", "schedule/linear:linear-betas"),
    fault("beta_end is not reached", DDPM + "schedule.py", "torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)", "torch.linspace(self.beta_start, self.beta_end, self.steps + 1, dtype=torch.float64)[:-1]", "schedule/linear:linear-betas"),
    fault("ends scaled by 1000 / T (K: 'linear')", DDPM + "schedule.py", "Discrete.__init__(self, roots**2)", "Discrete.__init__(self, roots)", "schedule/scaled-linear:falls"),
    fault("eps and x0 swapped", DDPM + "parameterization.py", "return 0.0, 1.0", "return 1.0, 0.0", "parameterization/eps:eps-target"),
    fault("mu two steps before", DDPM + "parameterization.py", "before = t - 1 if isinstance(t, Tensor) else max(t - 1.0, 0.0)", "before = t - 2 if isinstance(t, Tensor) else max(t - 2.0, 0.0)", "parameterization/mu:mu-target"),
    fault("mu without the part of x", DDPM + "parameterization.py", "return p * level.alpha * stretch + q, p * level.sigma * stretch", "return q, p * level.sigma * stretch", "parameterization/mu:mu-target"),
    fault("noise on the last step (K)", DDPM + "sampler.py", "        if s.is_clean:\n            return estimate.step_to(s), None\n", "", "sampler/ancestral:point-mass"),
    fault("small for large", DDPM + "sampler.py", "estimate.step_to(s, small, noise, large)", "estimate.step_to(s, small, noise, small)", "sampler/ancestral:ancestral-law"),
    fault("learned variance the wrong way round", "diffkit/likelihood/chain.py", "variance_fraction * scalar.log(large) + (1.0 - variance_fraction) * scalar.log(small)", "variance_fraction * scalar.log(small) + (1.0 - variance_fraction) * scalar.log(large)", "sampler/ancestral:point-mass-law"),
    fault("learned variance, not its logarithm", "diffkit/likelihood/chain.py", "torch.exp(variance_fraction * scalar.log(large) + (1.0 - variance_fraction) * scalar.log(small))", "variance_fraction * large + (1.0 - variance_fraction) * small", "sampler/ancestral:ancestral-law"),
    fault("small and large of the wrong step", DDPM + "sampler.py", "large = transition.spread(t, s)", "large = transition.posterior(t, s)", "sampler/ancestral:options-used"),
    fault("mean and sum swapped", DDPM + "objective.py", 'each = error.mean(1) if self.reduction == "mean" else error.sum(1)', 'each = error.sum(1) if self.reduction == "mean" else error.mean(1)', "objective/simple:reductions"),
    fault("the weight of x0 on the output", DDPM + "objective.py", "self.weighting.on_output(level, model.parameterization)", "self.weighting(level)", "objective/simple:same-loss"),
    fault("the network is trained on another level", DDPM + "objective.py", "level.add_noise(x0, eps), level, t, **cond)", "level.add_noise(x0, eps), model.schedule.level(t * 0 + 1), t * 0 + 1, **cond)", "objective/simple:minimum"),
    fault("labels lost in training", DDPM + "objective.py", "level.add_noise(x0, eps), level, t, **cond)", "level.add_noise(x0, eps), level, t)", "objective/simple:conditional"),
    fault("T left out of the bound (K: hybrid loss)", DDPM + "objective.py", "self.data.spec.bins) * steps", "self.data.spec.bins)", "objective/vlb:vlb-terms"),
    fault("KL without the -1", "diffkit/likelihood/bound.py", "torch.where(y.abs() < 0.02, series, torch.expm1(y) - y)", "torch.where(y.abs() < 0.02, series, torch.exp(y) - y)", "objective/vlb:vlb-terms"),
    fault("KL without its half", "diffkit/likelihood/bound.py", "return 0.5 * (error / small) ** 2", "return (error / small) ** 2", "objective/vlb:vlb-terms"),
    fault("KL with the squared norm of the covariance (L)", "diffkit/likelihood/bound.py", "return 0.5 * (error / small) ** 2", "return 0.5 * (error / small**2) ** 2", "objective/vlb:given-times"),
    fault("KL of standard deviations", "diffkit/likelihood/bound.py", "torch.exp(-2.0 * excess) + 0.5", "torch.exp(-excess) + 0.5", "objective/vlb:vlb-terms"),
    fault("density without the logarithm of its width", "diffkit/likelihood/decoder.py", "- log(std) - 0.5 * LOG_2PI", "- 0.5 * LOG_2PI", "objective/vlb:vlb-terms"),
    fault("first term with beta tilde_1 = 0 (K: variance at t = 1)", "diffkit/likelihood/bound.py", "floor = transition.posterior(two, one) if one != two else one.sigma", "floor = 1e-10", "objective/vlb:vlb-terms"),
    fault("half left out of the bound's weight", DDPM + "weighting.py", "0.5 * (before.snr - at.snr)", "(before.snr - at.snr)", "weighting/vlb:vlb-formula"),
    fault("half left out of the continuous weight", DDPM + "weighting.py", "(2.0 * level.sigma**2)", "(level.sigma**2)", "weighting/vlb:vlb-formula"),
    fault("snr as amplitudes in the weight", DDPM + "weighting.py", "return level.snr", "return level.snr**0.5", "weighting/snr:snr-formula"),
    fault("label ignored by the network", DDPM + "embedding.py", "rows: Tensor = self.table(label)", "rows: Tensor = self.table(label * 0)", "network/mlp:label-used"),
    fault("noise level rounded by the network", DDPM + "embedding.py", "    angle = t[:, None] * frequency\n", "    angle = t.round()[:, None] * frequency\n", "network/mlp:level-used"),
    fault("noise level ignored by the network", DDPM + "embedding.py", "    angle = t[:, None] * frequency\n", "    angle = 0.0 * t[:, None] * frequency\n", "network/unet:level-used"),
    fault("null class beyond the table", DDPM + "embedding.py", "nn.Embedding(classes + 1, width)", "nn.Embedding(classes, width)", "network/mlp:shapes"),
    fault("statistics over the batch", DDPM + "mlp.py", "self.leave(self.activation(self.norm(h)))", "self.leave(self.activation(self.norm(h) - h.mean(0)))", "network/mlp:each-alone"),
    fault("an unused layer", DDPM + "mlp.py", "            h = block(h, emb)\n", "            h = block(h, emb) if block is not self.blocks[0] else h\n", "network/mlp:gradients"),
    fault("dropout in evaluation", DDPM + "mlp.py", "self.leave(self.activation(self.norm(h)))", "self.leave(fn.dropout(self.activation(self.norm(h)), 0.5))", "network/mlp:each-alone"),
    fault("linspace off by one", BASICS + "grid.py", "parts = n if open_end else n - 1", "parts = n", "grid/linspace:linspace-points"),
    fault("trailing starts one step late (pains 3)", BASICS + "grid.py", "schedule.t_noise - span * j / n for j in range(n)]", "schedule.t_noise - span * (j + 1) / n for j in range(n)]", "grid/trailing:rises"),
    fault("leading from 0 (K: off-by-one)", BASICS + "grid.py", "(n - 1 - j) * stride + 1", "(n - 1 - j) * stride", "grid/leading:leading-points"),
    fault("leading hides its deficit", BASICS + "grid.py", "    discrete_only = True\n    declares_deficit = True\n", "    discrete_only = True\n", "grid/leading:noise-end"),
    fault("a stride in place of equal parts (pains 1)", BASICS + "grid.py", "schedule.t_noise - span * j / n for j in range(n)]", "schedule.t_noise - (span // n if span > 10 else span / n) * j for j in range(n)]", "grid/trailing:any-clock"),
    fault("quadratic without its square", BASICS + "grid.py", "return [1.0 + (max(high, 1.0) - 1.0) * ((n - 1 - j) / (n - 1)) ** 2", "return [1.0 + (max(high, 1.0) - 1.0) * ((n - 1 - j) / (n - 1)) ** 1", "grid/quadratic:quadratic-points"),
    fault("strata ignored", BASICS + "times.py", "(i + uniform.double()) / len(uniform)", "0.0 * i + uniform.double()", "times/stratified:uniform-law"),
    fault("guidance the wrong way round", BASICS + "guidance.py", "null.interpolate(labelled, self.scale)", "labelled.interpolate(null, self.scale)", "guidance/cfg:keeps-aux"),
    fault("guidance weight for scale (K: guidance)", BASICS + "guidance.py", "null.interpolate(labelled, self.scale)", "null.interpolate(labelled, 1.0 + self.scale)", "guidance/cfg:gaussian-closed-form"),
    fault("null class off by one", BASICS + "guidance.py", "torch.full_like(label, self.shape.classes)", "torch.full_like(label, self.shape.classes - 1)", "guidance/cfg:null-class"),
    fault("clipped above only", BASICS + "guidance.py", "estimate.x0.clamp(self.low, self.high)", "estimate.x0.clamp(max=self.high)", "guidance/clip:options-used"),
    fault("threshold over the batch (pains 16)", BASICS + "guidance.py", "torch.quantile(estimate.x0.flatten(1).abs().float(), self.quantile, dim=1)", "torch.quantile(estimate.x0.flatten(1).abs().float(), self.quantile).expand(len(x))", "guidance/threshold:each-alone"),
    fault("threshold is a plain clamp (pains 25)", BASICS + "guidance.py", "s = size.clamp(min=1.0)", "s = size.clamp(min=1.0, max=1.0)", "guidance/threshold:options-used"),
    fault("affine codec undone in the wrong order", BASICS + "codec.py", "return z / _column(self.scale, z) + _column(self.shift, z)", "return (z + _column(self.shift, z)) / _column(self.scale, z)", "codec/affine:round-trip"),
    fault("images turned upside down", BASICS + "augmentation.py", "x.flip(-1)", "x.flip(-2)", "augmentation/flip:flip-formula"),
    fault("the other half is mirrored", BASICS + "augmentation.py", "uniform[:, 0] < self.probability", "uniform[:, 0] > self.probability", "augmentation/flip:flip-formula"),
    fault("parts of the data overlap", BASICS + "data/gaussian.py", "InMemorySplit(x[self.count :])", "InMemorySplit(x[: self.held_out])", "data/gaussian:disjoint"),
    fault("data drawn with variance for deviation", BASICS + "data/gaussian.py", "axes * variances.clamp(min=0).sqrt()", "axes * variances.clamp(min=0)", "data/gaussian:truth"),
    fault("Frechet distance without its cross term", BASICS + "metrics/frechet.py", "- 2 * cross", "- cross", "metric/frechet:zero-at-identity"),
    fault("projections that are no unit vectors", BASICS + "metrics/sliced_wasserstein.py", "axes /= axes.norm(dim=0)", "axes /= 1.0", "metric/sliced-wasserstein:wasserstein-shift"),
    fault("averages forget at the wrong rate", "diffkit/train/ema.py", "self._move(1.0 - self._beta(n))", "self._move(self._beta(n))", "ema:recursion"),
    fault("optimizer state of a resumed run is lost", "diffkit/train/optimizer.py", "for name, value in tensors.items():", "for name, value in dict[str, Tensor]().items():", "optimizer/adam:resumes"),
    fault("half of the optimizer state is lost", "diffkit/train/optimizer.py", "for name, value in tensors.items():", "for name, value in list(tensors.items())[::2]:", "optimizer/adamw:resumes"),
    fault("some parameters are not optimised", BASICS + "optimizers.py", "[parameter for _, parameter in named_parameters]", "[parameter for _, parameter in named_parameters if parameter.ndim > 1]", "optimizer/adam:groups"),
    fault("warm-up counts from 0", BASICS + "lr_schedules.py", "n = step + 1", "n = step", "lr-schedule/linear:warm-up"),
    fault("linear rate rises", BASICS + "lr_schedules.py", "* (1.0 - self._progress(n, steps))", "* self._progress(n, steps)", "lr-schedule/linear:warm-up"),
    fault("a whole cosine", BASICS + "lr_schedules.py", "math.cos(math.pi * self._progress", "math.cos(2.0 * math.pi * self._progress", "lr-schedule/cosine:cosine-rate"),
    fault("the decay is a share of the rest", BASICS + "lr_schedules.py", "length = self.decay * steps", "length = self.decay * (steps - self.warmup)", "lr-schedule/wsd:wsd-rate"),
    fault("inverse without its root", BASICS + "lr_schedules.py", "1.0 / math.sqrt(", "1.0 / (", "lr-schedule/inverse-sqrt:inverse-sqrt-rate"),
    fault("a process takes the rows of the next one", "diffkit/strategy.py", "count * (self.rank + 1) // self.size", "count * (self.rank + 2) // self.size", "strategy/single:shards"),
    fault("gathered rows are lost", BASICS + "strategies.py", "padded[: len(rows)] = rows", "padded[: len(rows)] = 0", "strategy/ddp:gathers"),
    fault("warm-up of the average left out (K: EMA warm-up)", "diffkit/train/ema.py", "min(decay, (1 + n) / (10 + n)) if warmup else decay", "decay", "ema:warm-up"),
    fault("half-life independent of the batch", "diffkit/train/ema.py", "return 0.5 ** (batch_size / life) if life > 0 else 0.0", "return 0.5 ** (1 / life) if life > 0 else 0.0", "ema:half-life"),
    fault("power profile with exponent g", "diffkit/train/ema.py", "exponent = ema.power + 1.0", "exponent = ema.power", "ema:power"),
    fault("updates counted from 0", "diffkit/train/ema.py", "lambda n: float((1.0 - 1.0 / n) ** exponent)", "lambda n: float((1.0 - 1.0 / (n + 1)) ** exponent)", "ema:power"),
]  # fmt: skip

PLUGINS = [
    fault("eta on the variance (F9)", DDIM + "sampler.py", "self.eta * float(transition.posterior(t, s))", "self.eta**0.5 * float(transition.posterior(t, s))", "sampler/ddim:ddim-law"),
    fault("eta times beta", DDIM + "sampler.py", "float(transition.posterior(t, s))", "min(float(transition.spread(t, s)), float(s.sigma))", "sampler/ddim:rescaling"),
    fault("min-SNR is the larger one", P2 + "weighting.py", "scalar.minimum(level.snr, self.gamma)", "scalar.maximum(level.snr, self.gamma)", "weighting/min-snr:min-snr-formula"),
    fault("P2 on x0 in place of eps (C5)", P2 + "weighting.py", "scalar.divide(level.snr, (self.k + level.snr) ** self.gamma)", "scalar.divide(1.0, (self.k + level.snr) ** self.gamma)", "weighting/p2:p2-formula"),
    fault("P2 without its exponent", P2 + "weighting.py", "(self.k + level.snr) ** self.gamma", "(self.k + level.snr) ** (self.gamma + 1.0)", "weighting/p2:p2-formula"),
    fault("soft-min-SNR inverted", P2 + "weighting.py", "scalar.divide(self.gamma, level.snr)", "scalar.divide(level.snr, self.gamma)", "weighting/soft-min-snr:soft-min-snr-formula"),
    fault("third order as published (F1)", SOLVER + "multistep.py", "0.5 * third if self.published else third", "0.5 * third", "sampler/dpmpp-3m:options-used"),
    fault("2M without its half", SOLVER + "multistep.py", "0.5 * first if self.variant", "first if self.variant", "sampler/dpmpp-2m:order"),
    fault("history never grows", SOLVER + "linear.py", "(t, *before.levels)\n        outputs = (self.output(denoise(x, t)), *before.outputs)", "(t,)\n        outputs = (self.output(denoise(x, t)),)", "sampler/dpmpp-2m:options-used"),
    fault("history in the wrong order", SOLVER + "linear.py", "(self.output(denoise(x, t)), *before.outputs)", "(*before.outputs, self.output(denoise(x, t)))", "sampler/dpmpp-2m:batch-composition"),
    fault("step lengths of log-SNR", SOLVER + "coefficients.py", "(clock - origin) / h for", "(clock - origin) / (2.0 * h) for", "sampler/dpmpp-2m:order"),
    fault("phi without its recursion", SOLVER + "coefficients.py", "1.0 - k / length * found[-1]", "1.0 - found[-1] / length", "sampler/dpmpp-3m:polynomial"),
    fault("outputs in the scale of t, not of s", SOLVER + "coefficients.py", "[float(s.alpha) * weight", "[float(t.alpha) * weight", "sampler/dpmpp-2m:order"),
    fault("x kept as if no noise were added", SOLVER + "multistep.py", "float(s.remaining_std(rho)) / float(t.sigma)", "float(s.sigma) / float(t.sigma)", "sampler/dpmpp-2m:marginal"),
    fault("x0 in the step to clean data besides what is kept of x", SOLVER + "coefficients.py", "float(s.alpha) - keep * float(t.alpha)", "float(s.alpha) - float(t.alpha)", "sampler/dpmpp-2m:point-mass"),
    fault("singlestep without the factor 1 / (2 r)", SOLVER + "singlestep.py", "/ (2.0 * self.r)", "/ self.r", "sampler/dpmpp-2s:order"),
    fault("singlestep asks at the wrong point", SOLVER + "singlestep.py", "float(t.half_logsnr) + self.r * h", "float(t.half_logsnr) + self.r * h / 2.0", "sampler/dpmpp-2s:order"),
    fault("corrector forgets the new point", SOLVER + "linear.py", "levels).mean(before.x, outputs)", "levels[1:]).mean(before.x, outputs[1:])", "sampler/unipc:options-used"),
    fault("predictor starts from the uncorrected point before", SOLVER + "linear.py", ".mean(before.x, outputs)", ".mean(x, outputs)", "sampler/unipc:order"),
    fault("Heun with the first slope twice", EDM + "sampler.py", "0.5 * (slope + chart.slope(denoise(ahead, s)))", "0.5 * (slope + slope + 0.0 * chart.slope(denoise(ahead, s)))", "sampler/heun:order"),
    fault("Heun without its half", EDM + "sampler.py", "0.5 * (slope + chart.slope(denoise(ahead, s)))", "slope + chart.slope(denoise(ahead, s))", "sampler/heun:order"),
    fault("a second evaluation at the end", EDM + "sampler.py", "        return 2 * n - 1", "        return 2 * n", "sampler/heun:evaluations"),
    fault("churn by the difference of deviations (F7)", EDM + "churn.py", "math.sqrt(grown**2 - 1.0)", "(grown - 1.0)", "sampler/euler:marginal"),
    fault("the level does not rise with churn", EDM + "churn.py", "raised = Level(t.alpha, t.sigma * grown)", "raised = t", "sampler/euler:marginal"),
    fault("c_skip without its square", EDM + "parameterization.py", "return level.sigma / (self.sigma_data * r), -self.sigma_data * level.alpha / r", "return level.sigma / r, -self.sigma_data * level.alpha / r", "parameterization/edm:edm-target"),
    fault("c_in of the variance", EDM + "parameterization.py", "return 1.0 / self._deviation(level)", "return 1.0 / self._deviation(level) ** 2", "parameterization/edm:edm-input"),
    fault("EDM weight without sigma_data squared", EDM + "weighting.py", "1.0 / self.sigma_data**2", "1.0 / self.sigma_data", "weighting/edm:edm-formula"),
    fault("karras grid without its power", EDM + "grid.py", "* (low - high)) ** self.power for", "* (low - high)) ** (self.power - 1.0) for", "grid/karras:noise-end"),
    fault("slope of the straight path with its sign (K: v, u, F)", "diffkit/chart.py", "slope=lambda estimate: estimate.combine(-1.0, 1.0)", "slope=lambda estimate: estimate.combine(1.0, -1.0)", "sampler/euler:point-mass"),
    fault("rotation by the other angle", "diffkit/chart.py", "estimate.combine(-level.sigma", "estimate.combine(level.sigma", "sampler/heun:order"),
    fault("cosine without its offset (A9)", IMPROVED + "schedule.py", "(k / self.steps + self.offset)", "(k / self.steps)", "schedule/cosine:cosine-curve"),
    fault("cosine, not its square", IMPROVED + "schedule.py", "math.sin(now - before) * math.sin(now + before) / math.cos(before) ** 2", "1.0 - math.cos(now) / math.cos(before)", "schedule/cosine:cosine-curve"),
    fault("cosine clipped everywhere", IMPROVED + "schedule.py", "min(beta(t), self.max_beta)", "min(beta(t), 0.02)", "schedule/cosine:options"),
    fault("importance without correction", IMPROVED + "times.py", "return 1.0 / (self.parts * (ends[part + 1] - ends[part]))", "return torch.ones_like(fraction)", "times/importance:unbiased"),
    fault("importance corrected upside down", IMPROVED + "times.py", "return 1.0 / (self.parts * (ends[part + 1] - ends[part]))", "return self.parts * (ends[part + 1] - ends[part])", "times/importance:unbiased"),
    fault("importance draws one step late", IMPROVED + "times.py", "t = part + 1 if", "t = part + 2 if", "times/importance:unbiased"),
    fault("hybrid: the bound moves the mean", IMPROVED + "objective.py", "y[:, :channels].detach(), y", "y[:, :channels], y", "objective/hybrid:hybrid-parts"),
    fault("hybrid: nats for bits (K: units)", IMPROVED + "objective.py", "self.scale * steps / math.log(2) * nats", "self.scale * steps * nats", "objective/hybrid:hybrid-parts"),
    fault("hybrid: 1000 times too weak (K: hybrid loss)", IMPROVED + "objective.py", "self.scale * steps / math.log(2) * nats", "self.scale / math.log(2) * nats", "objective/hybrid:hybrid-parts"),
    fault("the reverse SDE with half its score (L: the missing 1/2 misplaced)", SCORE + "sampler.py", "- variance / float(t.sigma) * estimate.eps + variance**0.5", "- 0.5 * variance / float(t.sigma) * estimate.eps + variance**0.5", "sampler/euler-maruyama:marginal"),
    fault("the reverse drift with the forward sign (L)", SCORE + "sampler.py", "return (1.0 + drift) * x", "return (1.0 - drift) * x", "sampler/euler-maruyama:marginal"),
    fault("the reverse chain with the inverse factor", SCORE + "sampler.py", "return (2.0 - a) * x", "return x / a", "sampler/reverse-diffusion:from-noise"),
    fault("noise with variance for deviation", SCORE + "sampler.py", "* estimate.eps + b * noise(x), None", "* estimate.eps + b * b * noise(x), None", "sampler/reverse-diffusion:marginal"),
    fault("Langevin without its factor 2", SCORE + "corrector.py", "(2.0 * size) ** 0.5", "size**0.5", "sampler/predictor-corrector:langevin-law"),
    fault("Langevin at the level before", SCORE + "corrector.py", "score = denoise(x, s).score", "score = denoise(x, t).score", "sampler/predictor-corrector:rescaling"),
    fault("Langevin norms over the batch (pains 16)", SCORE + "corrector.py", "torch.linalg.vector_norm(score.flatten(1), dim=1)", "torch.linalg.vector_norm(score.flatten(1), dim=1).mean().expand(len(score))", "sampler/predictor-corrector:batch-composition"),
    fault("beta in place of its integral's half", SCORE + "schedule.py", "return Level(scalar.exp(-0.5 * integral), scalar.sqrt(-scalar.expm1(-integral)))", "return Level(scalar.exp(-integral), scalar.sqrt(-scalar.expm1(-integral)))", "schedule/vp:inverse"),
    fault("sub-VP with the root (K: sub-VP)", SCORE + "schedule.py", "return Level(scalar.exp(-0.5 * integral), -scalar.expm1(-integral))", "return Level(scalar.exp(-0.5 * integral), scalar.sqrt(-scalar.expm1(-integral)))", "schedule/sub-vp:inverse"),
    fault("VE linear in t", SCORE + "schedule.py", "self.sigma_min * scalar.exp(t * span)", "self.sigma_min * (1.0 + t * scalar.expm1(span))", "schedule/ve:inverse"),
    fault("the score with its sign", SCORE + "parameterization.py", "return 0.0, -1.0 / sigma", "return 0.0, 1.0 / sigma", "parameterization/score:score-target"),
    fault("likelihood weight halved", SCORE + "weighting.py", "return -slope if", "return -0.5 * slope if", "weighting/likelihood:likelihood-formula"),
    fault("shift the wrong way", FLOW + "grid.py", "(self.shift * u / (self.shift * u + (1.0 - u)))", "(u / (u + self.shift * (1.0 - u)))", "grid/shifted:shifted-points"),
    fault("zero SNR by scaling alone (A10)", ZERO + "schedule.py", "(alpha[2:] - last) / (alpha[1:-1] - last)", "(alpha[2:] - last) / (alpha[1:-1])", "schedule/zero-snr:falls"),
    fault("rescaled by the deviation of the batch (pains 16)", ZERO + "guidance.py", "(e.x0.flatten(1).std(1, correction=0) for e in (plain, guided))", "(e.x0.std(correction=0).expand(len(x)) for e in (plain, guided))", "guidance/rescale:each-alone"),
    fault("rescaling without its mixture", ZERO + "guidance.py", "self.phi * ratio + 1.0 - self.phi", "ratio", "guidance/rescale:options-used"),
    fault("velocity with its sign (K: v, u, F)", FLOW + "parameterization.py", "return -1.0, 1.0", "return 1.0, -1.0", "parameterization/flow:flow-target"),
    fault("v of the wrong sign (K: v, u, F)", FLOW + "parameterization.py", "scalar.divide(-level.sigma, r), scalar.divide(level.alpha, r)", "scalar.divide(level.sigma, r), scalar.divide(level.alpha, r)", "parameterization/v:v-target"),
    fault("v not of unit length off the circle", FLOW + "parameterization.py", "scalar.divide(-level.sigma, r), scalar.divide(level.alpha, r)", "-level.sigma, level.alpha", "parameterization/v:v-target"),
    fault("data and noise at the other ends", FLOW + "schedule.py", "return Level(1.0 - t, t)", "return Level(t, 1.0 - t)", "schedule/rectified:falls"),
    fault("time of the other end", FLOW + "schedule.py", "level.sigma / (level.alpha + level.sigma)", "level.sigma / (level.alpha - level.sigma)", "schedule/rectified:inverse"),
]  # fmt: skip

FAULTS = (*ALGEBRA, *DEFAULTS, *PLUGINS)
