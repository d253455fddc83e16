"""Laws of codecs."""

from __future__ import annotations

import torch

from diffkit.codec import Codec
from diffkit.data import DataSpec

from ..case import Case
from ..law_registry import LawResult, law


def images(case: Case) -> torch.Tensor:
    """Return three images (3, 3, 8, 8) in [-1, 1]."""
    return case.normal(3, 3, 8, 8, dtype=torch.float32).clamp(-1, 1)


@law("codec", statement="decode(encode(x)) = x", source="the definition of Codec", tolerance=1e-4)
def round_trip(case: Case, result: LawResult) -> None:
    """The codes describe the same data. A lossy codec declares an exemption."""
    codec: Codec = case.component
    x = images(case)
    result.compare(codec.decode(codec.encode(x)), x, "images 3 x 8 x 8")


@law(
    "codec",
    statement="spec describes the codes that encode returns, and decode returns the shape of the data",
    source="the definition of Codec",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """Networks are built for the shape in spec(data)."""
    codec: Codec = case.component
    x = images(case)
    z = codec.encode(x)
    spec = codec.spec(DataSpec(3, (8, 8), bounded=True, bins=256, classes=4))
    result.holds(tuple(z.shape[1:]) == spec.shape, f"encode gives {tuple(z.shape[1:])}", f"{spec.shape}")
    result.holds(codec.decode(z).shape == x.shape, f"decode gives {tuple(codec.decode(z).shape)}", f"{tuple(x.shape)}")
    result.holds(spec.classes == 4, f"spec has {spec.classes} classes", "those of the data")
    if spec.bounded:
        result.holds(
            float(z.abs().max()) <= 1.0 + 1e-6,
            f"|z| up to {float(z.abs().max()):.3g}",
            "<= 1, as spec.bounded requires",
        )


@law(
    "codec",
    statement="each example is encoded and decoded independently of the batch, twice in the same way; x is not changed",
    source="tests/pains.md, 16",
    tolerance=1e-5,
)
def each_alone(case: Case, result: LawResult) -> None:
    """A codec uses no statistics of the batch."""
    codec: Codec = case.component
    x = images(case)
    kept, z = x.clone(), codec.encode(x)
    result.compare(codec.encode(x), z, "encode again")
    result.compare(x, kept, "x afterwards")
    result.compare(codec.encode(x[:1]), z[:1], "the first example alone")
    result.compare(codec.decode(z[:1]), codec.decode(z)[:1], "the first example decoded alone")
