"""Laws of the losses that train codecs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from diffkit.codec import Posterior, Reconstruction
from diffkit.reconstruction import ReconstructionLoss

from ..case import Case, rebuilt
from ..law_registry import LawResult, NotApplicable, law

STEPS = (0, 1_000_000)
"""The steps that laws call a loss with: the first, and one at which a term that starts later counts."""


def examples(case: Case, count: int = 3) -> Tensor:
    """Return examples in [-1, 1]: (count, 3, 16, 16)."""
    return case.normal(count, 3, 16, 16, dtype=torch.float32).clamp(-1, 1)


def reconstruction(case: Case, x: Tensor, *, noise: float = 0.3, spread: float = 0.5) -> Reconstruction:
    """Return a reconstruction whose x, mean and std have gradients.

    Args:
        case: the loss under test.
        x: the examples: (B, C, *S).
        noise: the size of the error of x.
        spread: the size of the mean of the posterior, and of the logarithm of its std.

    Returns:
        The reconstruction; the errors of an example do not depend on the batch.
    """
    shape = (len(x), 4, 4, 4)
    error, mean, log_std, draws = (
        case.normal(16, *size[1:], stream=name, dtype=torch.float32)[: len(x)]
        for name, size in (("error", x.shape), ("mean", shape), ("std", shape), ("noise", shape))
    )
    posterior = Posterior((spread * mean).requires_grad_(), (spread * log_std).exp().requires_grad_())
    last = nn.Parameter(torch.ones(()))
    return Reconstruction(last * (x + noise * error), posterior.sample(draws), posterior, last_layer=last)


def rows(out: Reconstruction, at: slice) -> Reconstruction:
    """Return some examples of a reconstruction."""
    std = out.posterior.std
    posterior = Posterior(out.posterior.mean[at], None if std is None else std[at])
    return replace(out, x=out.x[at], z=out.z[at], posterior=posterior)


def detached(out: Reconstruction) -> Reconstruction:
    """Return the reconstruction as a critic receives it, without gradient."""
    std = out.posterior.std
    posterior = Posterior(out.posterior.mean.detach(), None if std is None else std.detach())
    return replace(out, x=out.x.detach(), z=out.z.detach(), posterior=posterior)


@law(
    "reconstruction-loss",
    statement="the losses of B examples are (B,), finite, the same twice, and their arguments stay the same",
    source="the definition of ReconstructionLoss",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """The trainer adds the losses of each example."""
    loss: ReconstructionLoss = case.component
    for count in (1, 3):
        x = examples(case, count)
        out = reconstruction(case, x)
        kept = x.clone(), out.x.detach().clone()
        for step in STEPS:
            each = loss(out, x, step)
            result.holds(tuple(each.shape) == (count,), f"B = {count}: losses {tuple(each.shape)}", f"({count},)")
            result.holds(bool(torch.isfinite(each).all()), f"B = {count}, step {step}: {each.tolist()}", "finite")
            result.compare(loss(out, x, step), each, f"step {step} again")
        result.holds(torch.equal(x, kept[0]) and torch.equal(out.x, kept[1]), "an argument has changed", "the same")


@law(
    "reconstruction-loss",
    statement="at the identity with the posterior N(0, 1) the loss is law_minimum, and nowhere less",
    source="the definition of ReconstructionLoss",
    tolerance=1e-5,
)
def minimum(case: Case, result: LawResult) -> None:
    """A loss with a wrong sign, or of x and something else than its reconstruction, has its minimum elsewhere."""
    loss: ReconstructionLoss = case.component
    least = loss.law_minimum
    if least is None:
        raise NotApplicable("the loss states no law_minimum")
    x = examples(case)
    at = loss(reconstruction(case, x, noise=0.0, spread=0.0), x, STEPS[-1])
    result.compare(at, torch.full_like(at, least), "out.x = x, mean 0, std 1")
    values = []
    for noise in (-0.5, 0.1, 0.3, 1.0):
        each = loss(reconstruction(case, x, noise=noise, spread=noise), x, STEPS[-1])
        result.note(max(0.0, least - float(each.min())), f"error {noise}: {float(each.min()):.6g}", f">= {least}")
        values.append(float(each.mean()))
    result.holds(max(values) > least, f"the loss is {least} everywhere", "more than that elsewhere")


@law(
    "reconstruction-loss",
    statement="the gradient is finite, also at the identity, and not 0 everywhere",
    source="the definition of training",
    tolerance=0.0,
)
def gradient(case: Case, result: LawResult) -> None:
    """A root at 0 has an infinite gradient, which ends a training."""
    loss: ReconstructionLoss = case.component
    x = examples(case)
    for noise, spread in ((0.3, 0.5), (0.0, 0.0)):
        out = reconstruction(case, x, noise=noise, spread=spread)
        found = _gradients(loss(out, x, STEPS[-1]).sum(), out)
        finite = all(bool(torch.isfinite(one).all()) for one in found)
        result.holds(finite, f"error {noise}: a gradient that is not finite", "finite")
        if noise:
            result.holds(any(bool((one != 0).any()) for one in found), f"error {noise}: gradient 0", "a gradient")


@law(
    "reconstruction-loss",
    statement="the loss of an example depends on this example only",
    source="the definition of ReconstructionLoss",
    tolerance=1e-5,
)
def each_alone(case: Case, result: LawResult) -> None:
    """Losses are averaged over micro-batches and processes, whatever their number."""
    loss: ReconstructionLoss = case.component
    x = examples(case)
    out = reconstruction(case, x)
    for step in STEPS:
        each = loss(out, x, step)
        for i in range(len(x)):
            alone = loss(rows(out, slice(i, i + 1)), x[i : i + 1], step)
            result.compare(alone, each[i : i + 1], f"step {step}: example {i} alone", float(each.detach().abs().max()))


@law(
    "reconstruction-loss",
    statement="the loss is proportional to its option `weight`",
    source="the definition of ReconstructionLoss",
    tolerance=1e-5,
)
def weight(case: Case, result: LawResult) -> None:
    """The weights of a recipe compare its losses."""
    loss: ReconstructionLoss = case.component
    if "example" in case.options:
        raise NotApplicable("law_example returns an instance that cannot be built again")
    x = examples(case)
    out = reconstruction(case, x)
    once, twice = (rebuilt(case, weight=factor * loss.weight)(out, x, STEPS[-1]) for factor in (1.0, 2.0))
    result.compare(twice, 2.0 * once, "twice the weight", float(once.detach().abs().max()))


@law(
    "reconstruction-loss",
    statement="critic_loss is (B,), finite, and its gradient reaches every parameter of the critic",
    source="the definition of ReconstructionLoss",
    tolerance=0.0,
)
def critic(case: Case, result: LawResult) -> None:
    """The critic has an optimizer of its own, whose only loss this is."""
    loss: ReconstructionLoss = case.component
    if loss.critic is None:
        raise NotApplicable("the loss has no critic")
    x = examples(case)
    each = loss.critic_loss(detached(reconstruction(case, x)), x, STEPS[-1])
    result.holds(tuple(each.shape) == (len(x),), f"losses {tuple(each.shape)}", f"({len(x)},)")
    result.holds(bool(torch.isfinite(each).all()), f"{each.tolist()}", "finite")
    trained = {name: p for name, p in loss.critic.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(each.sum(), list(trained.values()), allow_unused=True)
    for name, one in zip(trained, found, strict=True):
        result.holds(one is not None and bool((one != 0).any()), f"{name} gets no gradient", "one")


def _gradients(total: Tensor, out: Reconstruction) -> list[Tensor]:
    leaves = [leaf for leaf in (out.x, out.posterior.mean, out.posterior.std) if leaf is not None]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [one for one in found if one is not None]
