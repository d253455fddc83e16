"""Laws of the codecs of this package, of their losses, of metrics of reconstructions, and of `gaussian-start`."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffkit import Codec, Model, Posterior, Reconstruction
from diffkit.oracles import GaussianOracle
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law
from diffkit.testing.by_kind.codec import training_examples

from .codecs import Autoencoder
from .patches import Patches
from .perceptual import law_tensors
from .quantizer import Quantizer
from .tiled import Tiled

FACTOR = 4
KINGMA = "Kingma & Welling 2014 (arXiv:1312.6114), appendix B"
OORD = "van den Oord et al. 2017 (arXiv:1711.00937)"


def fitted(case: Case) -> tuple[Autoencoder, Tensor]:
    """Return a copy of the codec in evaluation mode after `fit`, and all training examples. Raises NotApplicable."""
    if not isinstance(case.component.halves, Patches):
        raise NotApplicable("encoder and decoder are convolutional, and start at random")
    codec, data = copy.deepcopy(case.component).eval(), fixtures.Pictures()
    codec.fit(data)
    return codec, training_examples(data)


def without_networks(codec: Autoencoder) -> Autoencoder:
    """Set the last layers of both networks of patches to 0, so that the linear path remains."""
    for network in (codec.halves.encoder, codec.halves.decoder):
        for parameter in network[-1].parameters():
            nn.init.zeros_(parameter)
    return codec


@law(
    "codec",
    statement="after fit the linear path is the projection on the first principal components, with codes of std 1",
    source="Eckart & Young 1936, doi:10.1007/BF02288367",
    tolerance=1e-4,
    only=("kl-vae", "vq-vae"),
)
def starts_as_principal_components(case: Case, result: LawResult) -> None:
    """No linear codec of patches has a smaller squared error; constant examples leave everything finite."""
    codec, x = fitted(case)
    without_networks(codec)
    patches = x.unfold(2, FACTOR, FACTOR).unfold(3, FACTOR, FACTOR).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double()
    centred = patches - patches.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[: codec.channels]
    want = (centred @ axes.T @ axes + patches.mean(0)).reshape(-1, 2, 2, 3, FACTOR, FACTOR)
    want = want.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    z = codec.encode(x)
    result.compare(codec.halves.decode(z), want, "the reconstruction of the linear path")
    codes = z.detach().transpose(0, 1).flatten(1).double()
    result.compare(codes.mean(1), torch.zeros(codec.channels), "the means of the codes")
    result.compare(torch.cov(codes), torch.eye(codec.channels), "the covariance of the codes")
    flat = fixtures.Pictures(flat=True, contrast=0.0)
    codec.fit(flat)
    finite = bool(codec.decode(codec.encode(training_examples(flat))).isfinite().all())
    result.holds(finite, "constant examples give values that are not finite", "finite values")


@law(
    "codec",
    statement="log s^2 is the second half of the encoder's output - 6, within -30 to 20; the mean is the first",
    source="Rombach et al. 2022 (arXiv:2112.10752), appendix G",
    tolerance=1e-6,
    only=("kl-vae",),
)
def posterior_formula(case: Case, result: LawResult) -> None:
    """The limits keep the exponential finite."""
    codec = copy.deepcopy(case.component)
    for scale in (1.0, 1000.0):
        output = scale * case.normal(2, 2 * codec.channels, 2, 2, dtype=torch.float32)
        codec.halves.encode = lambda x, output=output: output
        found = codec.posterior(torch.zeros(2, 3, 8, 8))
        result.compare(found.mean, output[:, : codec.channels], "mean")
        log_variance = (output[:, codec.channels :] - 6.0).clamp(-30.0, 20.0)
        result.compare(2.0 * found.std.log(), log_variance, "log s^2", 20.0)


@law(
    "codec",
    statement="the decoder receives the nearest code; the gradient to it is passed to the encoder's output",
    source=f"{OORD}, eq. 1 to 3",
    tolerance=1e-5,
    only=("vq-vae",),
)
def straight_through(case: Case, result: LawResult) -> None:
    """With the decoder replaced by the identity, x is the codes and its gradient to z is 1."""
    codec = copy.deepcopy(case.component).eval()
    z = case.normal(2, codec.channels, 3, 4, dtype=torch.float32).requires_grad_()
    codec.halves.encode = lambda x: z
    codec.halves.decode = lambda codes: codes
    out = codec(torch.zeros(2, 3, 8, 8))
    codes = codec.quantizer.codes
    gaps = (z.detach().movedim(1, -1)[..., None, :] - codes).square().sum(-1)
    want = codes[gaps.argmin(-1)].movedim(-1, 1)
    result.compare(out.x, want, "the codes")
    result.compare(codec.decode(z), want, "decode(z)")
    result.compare(out.z, z, "out.z")
    weights = case.normal(*z.shape, stream="weights", dtype=torch.float32)
    (gradient,) = torch.autograd.grad((out.x * weights).sum(), z, retain_graph=True)
    result.compare(gradient, weights, "the gradient to z")
    (gradient,) = torch.autograd.grad((codec.decode(z) * weights).sum(), z)
    result.compare(gradient, weights, "the gradient of decode(z)")
    distance = gaps.min(-1).values.flatten(1).mean(1) / codec.channels
    result.compare(out.terms["commitment"], codec.commitment * distance, "the commitment loss")
    (pull,) = torch.autograd.grad(out.terms["commitment"].sum(), z)
    result.compare(pull, codec.commitment * 2 * (z - want).detach() / z[0].numel(), "its gradient", 1e-2)


def learned(quantizer: Quantizer, batches: list[Tensor]) -> None:
    for batch in batches:
        quantizer.learn(batch, quantizer.nearest(batch), torch.arange(float(len(batch))))


@law(
    "codec",
    statement="each code is the exponential average of what it received; a dead one becomes a vector of the batch",
    source=f"{OORD}, appendix A.1",
    tolerance=1e-5,
    only=("vq-vae",),
)
def codebook(case: Case, result: LawResult) -> None:
    """Two codes near two clusters, a third far away, whose share shrinks until it dies. Evaluation changes nothing."""
    decay, rounds = 0.5, 3
    quantizer = Quantizer(3, 2, decay, least=0.2)
    starts = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [50.0, 50.0]])
    quantizer.restart(starts, torch.arange(3))
    centres = torch.tensor([[1.2, 0.1], [-0.7, 0.3]])
    batch = torch.cat([centres[:1].expand(6, 2), centres[1:].expand(2, 2)])
    learned(quantizer, [batch] * 2)
    left = decay**2 / 3
    for row, share in ((0, 6 / 8), (1, 2 / 8)):
        total = left * starts[row] + (1 - decay**2) * share * centres[row]
        result.compare(quantizer.codes[row], total / (left + (1 - decay**2) * share), f"code {row}, two batches")
    result.compare(quantizer.codes[2], starts[2], "the code that receives nothing", 50.0)
    result.holds(float(quantizer.perplexity()) < 3.0, f"perplexity {float(quantizer.perplexity())}", "less than 3")
    learned(quantizer, [batch] * (rounds - 1))
    revived = (quantizer.codes[2] - batch).abs().sum(1).min()
    result.compare(revived, 0.0, "the distance of the dead code from the nearest vector")
    quantizer.shares.copy_(torch.tensor([0.5, 0.25, 0.25]))
    result.compare(quantizer.perplexity(), 2.0**1.5, "perplexity of shares 1/2, 1/4, 1/4")
    quantizer.shares.copy_(torch.tensor([0.97, 0.03, 0.0]))
    result.compare(quantizer.usage(), 1 / 3, "usage if two of three codes receive less than a tenth of the mean share")
    codec = copy.deepcopy(case.component).eval()
    codec.quantizer.shares.zero_()[:4] = 0.25
    found = codec(case.normal(2, 3, 8, 8, stream="logged", dtype=torch.float32)).logged
    result.compare(found["perplexity"], 4.0, "perplexity in the log")
    result.compare(found["usage"], 4 / len(codec.quantizer.codes), "usage in the log")
    codec = copy.deepcopy(case.component).eval()
    before, x = codec.quantizer.codes.clone(), case.normal(2, 3, 8, 8, dtype=torch.float32)
    noise = case.normal(2, codec.channels, 2, 2, dtype=torch.float32)
    codec(x, noise)
    result.compare(codec.quantizer.codes, before, "codes after an evaluation")
    codec.train()(x, noise)
    result.holds(not torch.equal(codec.quantizer.codes, before), "codes after a training step: the same", "others")


@law(
    "reconstruction-loss",
    statement="kl is the divergence of torch.distributions, in nats per value of x",
    source=KINGMA,
    tolerance=1e-5,
    only=("kl",),
)
def kl_formula(case: Case, result: LawResult) -> None:
    """The normal distributions of all dimensions are independent, so their divergences add."""
    mean = case.normal(2, 4, 3, 3, stream="mean", dtype=torch.float32)
    std = case.normal(2, 4, 3, 3, stream="std", dtype=torch.float32).exp()
    x = torch.zeros(2, 3, 12, 12)
    out = Reconstruction(x, mean, Posterior(mean, std))
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).flatten(1).sum(1) / 432
    result.compare(case.component(out, x, 0) / case.component.weight, each, "nats per value")


@law(
    "reconstruction-loss",
    statement="an error d of every value costs |d| under l1, d^2 under l2",
    source="the definition",
    tolerance=1e-6,
    only=("l1", "l2"),
)
def pixel_errors(case: Case, result: LawResult) -> None:
    """Means over all values, so that a weight does not depend on the size of the images."""
    power = 1 if case.name == "l1" else 2
    for error, side in ((0.3, 4), (-0.7, 8)):
        x = case.normal(2, 3, side, side, dtype=torch.float32)
        out = Reconstruction(x + error, x, Posterior(x))
        want = torch.full((2,), case.component.weight * abs(error) ** power)
        result.compare(case.component(out, x, 0), want, f"d = {error}, {side} x {side} pixels")


@law(
    "reconstruction-loss",
    statement="the sum over sizes of the mean over positions of w |f(x) / |f(x)| - f(y) / |f(y)||^2",
    source="Zhang et al. 2018 (arXiv:1801.03924), eq. 1",
    tolerance=1e-5,
    only=("perceptual",),
)
def perceptual_formula(case: Case, result: LawResult) -> None:
    """The law has its own copy of the network, whose input is normalised by the mean and std of ImageNet in [0, 1]."""
    loss = case.component
    t = law_tensors()
    x, y = (case.normal(2, 3, 8, 8, stream=name, dtype=torch.float32).clamp(-1, 1) for name in "xy")

    def maps(x: Tensor) -> list[Tensor]:
        h = torch.stack([((x[:, i] + 1) / 2 - m) / s for i, (m, s) in enumerate(zip(loss.mean, loss.std))], 1)
        first = functional.relu(functional.conv2d(h, t["features.0.weight"], t["features.0.bias"], padding=1))
        first = functional.relu(functional.conv2d(first, t["features.2.weight"], t["features.2.bias"], padding=1))
        half = functional.max_pool2d(first, 2)
        return [
            first,
            functional.relu(functional.conv2d(half, t["features.5.weight"], t["features.5.bias"], padding=1)),
        ]

    total = torch.zeros(2)
    for index, (a, b) in enumerate(zip(maps(x), maps(y))):
        gap = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
        total += (gap.square() * t[f"lin{index}.model.1.weight"]).sum(1).mean((1, 2))
    result.compare(loss(Reconstruction(y, y, Posterior(y)), x, 0), loss.weight * total, "the loss")
    result.compare(loss.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]), "the mean of the input")
    result.compare(loss.std.flatten(), torch.tensor([0.229, 0.224, 0.225]), "the std of the input")
    result.holds(not any(p.requires_grad for p in loss.parameters()), "the network is trained", "frozen")


@law(
    "reconstruction-loss",
    statement="hinge losses; 0 before `start`; with `adaptive` the gradient equals that of the mean absolute error",
    source="Esser et al. 2021 (arXiv:2012.09841), eq. 6 and 7",
    tolerance=1e-4,
    only=("adversarial",),
)
def adversarial_formula(case: Case, result: LawResult) -> None:
    """The codec's loss leaves no gradient in the discriminator, whose own loss leaves none in the codec."""
    loss = copy.deepcopy(case.component)
    x, y = (case.normal(3, 3, 16, 16, stream=name, dtype=torch.float32) for name in "xy")
    last = nn.Parameter(torch.ones(()))
    out = Reconstruction(last * y, y, Posterior(y), last_layer=last)
    step = loss.start
    result.compare(loss(out, x, step), -loss.weight * loss.critic(y).mean((1, 2, 3)), "the loss of the codec")
    real, made = loss.critic(x), loss.critic(y)
    hinge = 0.5 * ((1 - real).clamp_min(0).mean((1, 2, 3)) + (1 + made).clamp_min(0).mean((1, 2, 3)))
    result.compare(loss.critic_loss(out, x, step), hinge, "the loss of the discriminator")
    loss(out, x, step).sum().backward(retain_graph=True)
    result.holds(all(p.grad is None for p in loss.critic.parameters()), "a gradient in the discriminator", "none")
    last.grad = None
    loss.critic_loss(out, x, step).sum().backward()
    result.holds(last.grad is None, "the loss of the discriminator has a gradient in the codec", "none")
    if loss.start:
        before = torch.cat([loss(out, x, step - 1), loss.critic_loss(out, x, step - 1)])
        result.compare(before, torch.zeros(6), "losses before start")
    loss.adaptive = True
    (ours,) = torch.autograd.grad(loss(out, x, step).mean(), last)
    (errors,) = torch.autograd.grad((last * y - x).abs().mean(), last)
    (own,) = torch.autograd.grad(loss.critic(last * y).mean(), last)
    want = loss.weight * float(errors.abs()) * math.copysign(1.0, -float(own)) * float(own.abs() / (own.abs() + 1e-4))
    result.compare(ours, want, "the gradient with adaptive: true", 1e-3)


@law(
    "codec",
    statement="codes of training examples have std 1, and decode undoes the scale before the decoder of the other run",
    source="Rombach et al. 2022 (arXiv:2112.10752), app. G",
    tolerance=1e-4,
    only=("trained",),
)
def trained_scale(case: Case, result: LawResult) -> None:
    """Of one factor and of one for each channel; the variance is that of means, and the mean of the variances."""
    data = fixtures.Pictures()
    x = training_examples(data)
    for rule in ("auto", "per-channel"):
        codec = copy.deepcopy(case.component)
        codec.rule = rule
        codec.fit(data)
        found, inner = codec.posterior(x), codec.inner.posterior(x)
        dims = (0, 2, 3) if rule == "per-channel" else (0, 1, 2, 3)
        assert found.std is not None
        variance = found.mean.double().var(dims, correction=0) + found.std.double().square().mean(dims)
        result.compare(variance, torch.ones_like(variance), f"variance of the codes, {rule}")
        result.compare(
            found.mean / codec.scale + codec.shift, inner.mean, f"means, {rule}", float(inner.mean.abs().max())
        )
        result.compare(codec.decode(found.mean), codec.inner.decode(inner.mean), f"decoded means, {rule}")
        if rule == "per-channel":
            result.compare(
                found.mean.double().mean(dims), torch.zeros(len(variance)), "means of the codes of a channel"
            )
        stages = Tiled(codec)
        result.compare(stages.posterior(x).joined(), found.joined(), f"codes stage by stage, {rule}")
        result.compare(stages.decode(found.mean), codec.decode(found.mean), f"images stage by stage, {rule}")


@law(
    "codec",
    statement="tiles with overlap give the codes and the images of the whole; without overlap they do not",
    source="the definition of tiled",
    tolerance=1e-5,
    only=("tiled",),
)
def tiles_are_the_whole(case: Case, result: LawResult) -> None:
    """Images of several tiles, square or not, under the codec of the case and under a plain convolution."""
    inner = case.component.inner
    factor = 8 // inner.spec(fixtures.Pictures().spec).size[0]
    for codec, side in ((inner, factor), (Convolution(), 1)):
        x = case.normal(2, 3, 40 * side, 28 * side, dtype=torch.float32)
        tiled, found = Tiled(codec, tile=16, overlap=8), codec.posterior(x)
        joined = found.joined()
        result.compare(tiled.posterior(x).joined(), joined, "posterior", float(joined.abs().max()))
        image = codec.decode(found.mean)
        result.compare(tiled.decode(found.mean), image, "image", float(image.abs().max()))
    gap = Tiled(codec, tile=16, overlap=0).decode(found.mean) - image
    result.holds(float(gap.abs().max()) > 1e-3, "the same image without overlap", "seams, if tiles are computed at all")


@law(
    "network",
    statement="after fit, and with the network inside at 0, the denoiser is the exact one of a normal distribution",
    source="identity D1 of docs/theory/identities.md",
    tolerance=1e-4,
    only=("gaussian-start",),
)
def starts_as_gaussian(case: Case, result: LawResult) -> None:
    """The mean is that of the examples, the covariance theirs with equal variances beyond the components; of a class,
    0.3 times its own covariance and 0.7 times that within the classes.
    """
    network = copy.deepcopy(case.component).double()
    for parameter in network.inner.parameters():
        nn.init.zeros_(parameter)
    shape, schedule = network.shape, network.schedule
    values, size = shape.in_channels * math.prod(shape.size), (-1, shape.in_channels, *shape.size)
    x0 = 1.0 + case.normal(4 * values, values, stream="examples") @ case.normal(values, values) / math.sqrt(values)
    label = torch.arange(len(x0)) % 2
    network.fit(x0.view(size), None if shape.classes is None else label)
    groups: list[tuple[dict[str, Tensor], Tensor, Tensor]] = [({}, x0.mean(0), torch.cov(x0.T, correction=0))]
    if shape.classes is not None and len(network.mean) > 1:
        each = [torch.cov(x0[label == one].T, correction=0) for one in (0, 1)]
        for one in (0, 1):
            own = 0.3 * each[one] + 0.7 * (each[0] + each[1]) / 2
            groups.append(({"label": torch.full((4,), one)}, x0[label == one].mean(0), own))
    z = case.normal(4, values, stream="noisy")
    model = Model(network, network.parameterization, schedule)
    for cond, mean, covariance in groups:
        variances, axes = torch.linalg.eigh(covariance)
        beyond = values - network.axes.shape[2]
        variances[:beyond] = variances[:beyond].mean() if beyond else 0.0
        kept = axes @ torch.diag(variances) @ axes.T
        oracle = GaussianOracle(mean, (kept + kept.T) / 2)
        for u in (0.1, 0.4, 0.9):
            t = schedule.t_clean + u * (schedule.t_noise - schedule.t_clean)
            level = schedule.level(float(round(t)) if schedule.steps else t)
            x = level.add_noise(x0[:4], z)
            found, want = model(x.view(size), level, **cond), oracle(x, level)
            scale = float(want.x0.abs().max())
            result.compare(found.x0.flatten(1), want.x0, f"x0 at t = {t:.4g}, {cond or 'of all'}", scale)
            result.compare(found.eps.flatten(1), want.eps, f"eps at t = {t:.4g}, {cond or 'of all'}", scale)


class Convolution(nn.Module, Codec):
    """Two fixed convolutions whose outputs depend on positions at most 3 away."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        weight = torch.linspace(-1, 1, 3 * 3 * 7 * 7).sin().reshape(3, 3, 7, 7)
        return functional.conv2d(x, weight, padding=3)

    def decode(self, z: Tensor) -> Tensor:
        return self.encode(z)
