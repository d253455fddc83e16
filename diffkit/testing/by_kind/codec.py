"""Laws of codecs."""

from __future__ import annotations

import torch

from diffkit.codec import Codec
from diffkit.data import DataSpec

from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject


def _images(subject: Subject) -> torch.Tensor:
    return subject.normal(3, 3, 8, 8, dtype=torch.float32).clamp(-1, 1)


@law("codec", statement="decode(encode(x)) = x", source="the definition of Codec", tolerance=1e-4)
def round_trip(subject: Subject, worst: Worst) -> None:
    """What diffuses is another description of the data. Lossy codecs state their exemption."""
    codec: Codec = subject.component
    x = _images(subject)
    worst.compare(codec.decode(codec.encode(x)), x, "images 3 x 8 x 8")


@law(
    "codec",
    statement="spec tells the shape that encode gives, and decode gives the shape of the data",
    source="the definition of Codec",
    tolerance=0.0,
)
def shapes(subject: Subject, worst: Worst) -> None:
    """Networks are built for spec(data)."""
    codec: Codec = subject.component
    x = _images(subject)
    z = codec.encode(x)
    told = codec.spec(DataSpec(3, (8, 8), bounded=True, bins=256, classes=4))
    worst.holds(tuple(z.shape[1:]) == told.shape, f"encode gives {tuple(z.shape[1:])}", f"{told.shape}")
    worst.holds(codec.decode(z).shape == x.shape, f"decode gives {tuple(codec.decode(z).shape)}", f"{tuple(x.shape)}")
    worst.holds(told.classes == 4, f"spec says {told.classes} classes", "those of the data")
    if told.bounded:
        worst.holds(float(z.abs().max()) <= 1.0 + 1e-6, f"|z| up to {float(z.abs().max()):.3g}", "<= 1, as spec says")


@law(
    "codec",
    statement="each example is encoded and decoded alone, the same way twice, x unchanged",
    source="tests/pains.md, 16",
    tolerance=1e-5,
)
def each_alone(subject: Subject, worst: Worst) -> None:
    """No statistics of the batch."""
    codec: Codec = subject.component
    x = _images(subject)
    kept, z = x.clone(), codec.encode(x)
    worst.compare(codec.encode(x), z, "encode again")
    worst.compare(x, kept, "x afterwards")
    worst.compare(codec.encode(x[:1]), z[:1], "the first example alone")
    worst.compare(codec.decode(z[:1]), codec.decode(z)[:1], "the first example decoded alone")


@law(
    "codec",
    statement="z = (x - shift) scale: the mean and the spread are as told",
    source="Rombach et al. 2022 (arXiv:2112.10752), app. G",
    tolerance=1e-5,
    only=("affine",),
)
def affine_formula(subject: Subject, worst: Worst) -> None:
    """Shift first, then scale."""
    codec = subject.component
    if isinstance(codec.shift, tuple) or isinstance(codec.scale, tuple):
        raise Inapplicable("one value a channel")
    made = type(codec)(0.5, 4.0)
    x = _images(subject)
    worst.compare(made.encode(x), (x - 0.5) * 4.0, "shift 0.5, scale 4")
    worst.compare(made.decode(x), x / 4.0 + 0.5, "decoding with shift 0.5, scale 4")
