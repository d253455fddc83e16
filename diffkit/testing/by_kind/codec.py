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
    """What diffuses is another description of the data. Lossy codecs state their exemption."""
    codec: Codec = case.component
    x = images(case)
    result.compare(codec.decode(codec.encode(x)), x, "images 3 x 8 x 8")


@law(
    "codec",
    statement="spec tells the shape that encode gives, and decode gives the shape of the data",
    source="the definition of Codec",
    tolerance=0.0,
)
def shapes(case: Case, result: LawResult) -> None:
    """Networks are built for spec(data)."""
    codec: Codec = case.component
    x = images(case)
    z = codec.encode(x)
    told = codec.spec(DataSpec(3, (8, 8), bounded=True, bins=256, classes=4))
    result.holds(tuple(z.shape[1:]) == told.shape, f"encode gives {tuple(z.shape[1:])}", f"{told.shape}")
    result.holds(codec.decode(z).shape == x.shape, f"decode gives {tuple(codec.decode(z).shape)}", f"{tuple(x.shape)}")
    result.holds(told.classes == 4, f"spec says {told.classes} classes", "those of the data")
    if told.bounded:
        result.holds(float(z.abs().max()) <= 1.0 + 1e-6, f"|z| up to {float(z.abs().max()):.3g}", "<= 1, as spec says")


@law(
    "codec",
    statement="each example is encoded and decoded alone, the same way twice, x unchanged",
    source="tests/pains.md, 16",
    tolerance=1e-5,
)
def each_alone(case: Case, result: LawResult) -> None:
    """No statistics of the batch."""
    codec: Codec = case.component
    x = images(case)
    kept, z = x.clone(), codec.encode(x)
    result.compare(codec.encode(x), z, "encode again")
    result.compare(x, kept, "x afterwards")
    result.compare(codec.encode(x[:1]), z[:1], "the first example alone")
    result.compare(codec.decode(z[:1]), codec.decode(z)[:1], "the first example decoded alone")
