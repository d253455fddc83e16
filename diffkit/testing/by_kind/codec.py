"""Laws of codecs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.codec import Codec, TrainableCodec
from diffkit.data import Data, DataSpec, stack
from diffkit.errors import DiffkitError

from .. import fixtures
from ..case import Case, rebuilt
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, reference_of
from ..variants import for_options


def images(case: Case) -> Tensor:
    """Return three examples in [-1, 1], in the shape of the data of the case: images (3, 3, 8, 8) in general."""
    return case.normal(3, *data_spec(case).shape, dtype=torch.float32).clamp(-1, 1)


def data_spec(case: Case) -> DataSpec:
    """Return the spec of the data that the codec is tested with."""
    data: Data = case.context.get("data", fixtures.Pictures())
    return replace(data.spec, bounded=True, bins=256, classes=4)


def _require_learning(case: Case) -> None:
    """Raise NotApplicable for a codec that learns nothing, or contains one that is trained, and for vectors."""
    codec, cls = case.component, type(case.component)
    parts = codec.modules() if isinstance(codec, nn.Module) else [codec]
    if not any(isinstance(one, TrainableCodec) for one in parts) and isinstance(
        case.context.get("data"), fixtures.Pictures
    ):
        if "data" in getattr(cls.__init__, "__annotations__", {}):
            return
        if cls.fit is not Codec.fit:
            other = copy.deepcopy(codec)
            if other.fit(fixtures.Pictures(contrast=0.5)) or not torch.equal(
                other.encode(images(case)), codec.encode(images(case))
            ):
                return
    raise NotApplicable("the codec does not learn from the data")


def training_examples(data: Data) -> Tensor:
    """Return all training examples in the range of the model: (N, C, *S) float32."""
    split = data.split("train")
    return data.to_model_range(stack(split, range(len(split)))[0])


@law("codec", statement="decode(encode(x)) = x", source="the definition of Codec", tolerance=1e-4)
@for_options
def round_trip(case: Case, result: LawResult) -> None:
    """The codes describe the same data. A lossy codec declares an exemption."""
    codec: Codec = case.component
    if isinstance(codec, TrainableCodec):
        raise NotApplicable("the codec is trained, so it is lossy")
    x = images(case)
    z = codec.encode(x)
    result.compare(codec.decode(z), x, "images 3 x 8 x 8")
    if z.numel() == x.numel():
        codes = case.normal(*z.shape, stream="z", dtype=torch.float32) * z.std() + z.mean()
        result.compare(codec.encode(codec.decode(codes)), codes, "encode(decode(z))")


@law("codec", name="reference", statement=STATEMENT, source=SOURCE, tolerance=5e-3)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of x: (B, C, *S) float64, and data, the training examples, that returns z; or {moment: value}.

    The moments are those of the codes of the training examples: mean, std, channel_mean, channel_std, covariance (that
    of all dimensions is the value times the identity), and norm, |z| / |x| of each example.
    """
    stated = reference_of(case)
    codec: Codec = case.component
    train = training_examples(case.context.get("data", fixtures.Pictures()))
    if callable(stated):
        x = images(case)
        want = evaluate(stated, {"x": x.double(), "data": train.double()})
        got = codec.encode(x)
        result.compare(got, want, "code", float(want.abs().max()))
        return
    codes = codec.encode(train)
    for name, value in stated.items():
        if name not in MOMENTS:
            raise TypeError(f"law_reference has the moment {name}; allowed are {', '.join(MOMENTS)}")
        got = MOMENTS[name](train.double(), codes.double())
        want = torch.eye(len(got)).double() * value if name == "covariance" else torch.full_like(got, value)
        result.compare(got, want, f"{name} of the codes")


def _channels(z: Tensor) -> Tensor:
    return z.transpose(0, 1).flatten(1)


MOMENTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda x, z: z.mean(),
    "std": lambda x, z: z.std(),
    "channel_mean": lambda x, z: _channels(z).mean(1),
    "channel_std": lambda x, z: _channels(z).std(1),
    "covariance": lambda x, z: torch.cov(z.flatten(1).T),
    "norm": lambda x, z: z.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1),
}
"""Moments of codes z of examples x that a law_reference may state."""


@law(
    "codec",
    statement="spec describes the codes that encode returns, and decode returns the shape of the data",
    source="the definition of Codec",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """Networks are built for the shape in spec(data)."""
    codec = _in_use(case)
    x = images(case)
    z = codec.encode(x)
    spec = codec.spec(data_spec(case))
    result.holds(tuple(z.shape[1:]) == spec.shape, f"encode gives {tuple(z.shape[1:])}", f"{spec.shape}")
    result.holds(codec.decode(z).shape == x.shape, f"decode gives {tuple(codec.decode(z).shape)}", f"{tuple(x.shape)}")
    for name, value in (("encode", z), ("decode", codec.decode(z))):
        result.holds(value.dtype == x.dtype, f"{name} gives {value.dtype}", f"{x.dtype}, that of x")
    result.holds(spec.classes == 4, f"spec has {spec.classes} classes", "those of the data")
    if spec.bounded:
        extreme = torch.cat([x, torch.ones_like(x[:1]), -torch.ones_like(x[:1])])
        top = float(codec.encode(extreme).abs().max())
        result.holds(top <= 1.0 + 1e-6, f"|z| up to {top:.3g}", "<= 1, as spec.bounded requires")


@law(
    "codec",
    statement="each example is encoded and decoded independently of the batch, twice in the same way; x is not changed",
    source="tests/pains.md, 16",
    tolerance=1e-5,
)
def each_alone(case: Case, result: LawResult) -> None:
    """A codec uses no statistics of the batch."""
    codec = _in_use(case)
    x = images(case)
    kept, z = x.clone(), codec.encode(x)
    size = max(1.0, float(z.abs().max()))
    result.compare(codec.encode(x), z, "encode again")
    result.compare(x, kept, "x afterwards")
    result.compare(codec.encode(x[:1]), z[:1], "the first example alone", size)
    codes = z.clone()
    result.compare(codec.decode(z[:1]), codec.decode(z)[:1], "the first example decoded alone")
    result.compare(z, codes, "z after decode")


@law(
    "codec",
    statement="a codec that takes the data learns from all training examples, in the range of the model, and only them",
    source="the definition of Codec",
    tolerance=1e-3,
)
def learned(case: Case, result: LawResult) -> None:
    """A run that is opened again builds its codec again: it must be the same codec."""
    _require_learning(case)
    x = images(case)
    z = case.component.encode(x)
    size = float(z.abs().max())
    for title, data in (
        ("built again", fixtures.Pictures()),
        ("other held-out examples", fixtures.Pictures(shift=0.3)),
        ("training examples in another order", fixtures.Pictures(order=1)),
        ("the same data stored as uint8", fixtures.Pictures(stored=True)),
    ):
        result.compare(rebuilt(case, {"data": data}).encode(x), z, f"code, {title}", size)
    other = rebuilt(case, {"data": fixtures.Pictures(contrast=0.5)}).encode(x)
    result.holds(not torch.allclose(other, z, 1e-3), "the same codec for data of half the contrast", "another codec")


@law(
    "codec",
    statement="the state of a codec that learned from some data, loaded into one that learned from other data, is all "
    "that it has learned",
    source="the definition of Codec.fit",
    tolerance=1e-5,
)
def state(case: Case, result: LawResult) -> None:
    """A run stores the state dict of its codec; samples decode with it, even if the data has changed since."""
    _require_learning(case)
    codec: Codec = case.component
    if not isinstance(codec, nn.Module):
        fits = type(codec).fit is not Codec.fit
        result.holds(not fits, "fit is overridden, but the codec has no state dict", "an nn.Module")
        return
    other: Any = rebuilt(case, {"data": fixtures.Pictures(contrast=0.5)})
    other.load_state_dict(codec.state_dict())
    x = images(case)
    z = codec.encode(x)
    result.compare(other.encode(x), z, "code after the state is loaded", float(z.abs().max()))
    result.compare(other.decode(z), codec.decode(z), "decoded after the state is loaded")


@law(
    "codec",
    statement="for data with a constant channel the codes are finite, or the codec raises an error",
    source="the definition of Codec",
    tolerance=1e-3,
)
def constant_channel(case: Case, result: LawResult) -> None:
    """Division by a standard deviation of 0 would give nan in every sample."""
    _require_learning(case)
    data = fixtures.Pictures(flat=True)
    try:
        codec: Codec = rebuilt(case, {"data": data})
    except (ValueError, DiffkitError):
        result.holds(True, "refused", "")
        return
    x = training_examples(data)[:8]
    z = codec.encode(x)
    result.holds(bool(torch.isfinite(z).all()), "codes that are not finite", "finite")
    result.compare(codec.decode(z), x, "decode(encode(x)) of training examples")


def _in_use(case: Case) -> Codec:
    """Return the codec as it encodes and decodes for a diffusion: a module in evaluation mode."""
    codec: Codec = case.component
    return copy.deepcopy(codec).eval() if isinstance(codec, nn.Module) else codec


def _trainable(case: Case) -> TrainableCodec:
    """Return the codec in training mode."""
    if not isinstance(case.component, TrainableCodec):
        raise NotApplicable("the codec is not trained by a recipe")
    return copy.deepcopy(case.component).train()


@law(
    "codec",
    statement="encode is a sample of the posterior, the mean without noise; forward decodes it, its terms are (B,)",
    source="Kingma & Welling 2014 (arXiv:1312.6114), sec. 2.4",
    tolerance=1e-5,
)
def posterior(case: Case, result: LawResult) -> None:
    """Training, latents on disk and sampling use the same codes."""
    codec = _trainable(case).eval()
    x = images(case)
    found = codec.posterior(x)
    noise = case.normal(*found.mean.shape, stream="noise", dtype=torch.float32)
    result.compare(codec.encode(x), found.mean, "encode(x)")
    std = torch.zeros_like(found.mean) if found.std is None else found.std
    result.holds(bool((std >= 0).all()), "a negative std", ">= 0")
    result.compare(codec.encode(x, noise), found.mean + std * noise, "encode(x, noise)")
    for given, title in ((None, "without noise"), (noise, "with noise")):
        out = codec(x, given)
        result.compare(out.z, codec.encode(x, given), f"forward {title}: z")
        result.compare(out.x, codec.decode(out.z), f"forward {title}: x")
        for name, term in out.terms.items():
            result.holds(tuple(term.shape) == (len(x),), f"the term {name} is {tuple(term.shape)}", f"({len(x)},)")


@law(
    "codec",
    statement="the gradient of a reconstruction, its posterior and its terms reaches every parameter",
    source="the definition of training",
    tolerance=0.0,
)
def gradients(case: Case, result: LawResult) -> None:
    """A parameter without gradient is not connected."""
    codec = _trainable(case)
    trained = {name: p for name, p in codec.named_parameters() if p.requires_grad}
    result.holds(bool(trained), "no parameter is trained", "a trained parameter")
    x = images(case)
    found = codec.posterior(x)
    noise = case.normal(*found.mean.shape, stream="noise", dtype=torch.float32)
    out = codec(x, noise)
    parts = [out.x, out.posterior.mean, *([] if out.posterior.std is None else [out.posterior.std])]
    weighted = [(one * case.normal(*one.shape, stream="target", dtype=torch.float32)).sum() for one in parts]
    torch.autograd.backward(sum([*weighted, *(term.sum() for term in out.terms.values())], torch.zeros(())))
    for name, parameter in trained.items():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        result.holds(reached, f"{name} {tuple(parameter.shape)} gets no gradient", "one")
    last = codec.last_layer
    inside = last is None or any(last is one for one in trained.values())
    result.holds(inside, "last_layer is not a trained parameter of the codec", "one, or None")
