"""The components and laws of this package; this file imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from diffkit import Entry, Kind, hookimpl

DIFFKIT_API = 1
COMPONENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "metric": [
        ("fid", "metrics:FID", "Compare normals fitted to features of samples and data", "heusel2017gans"),
        ("kid", "metrics:KID", "Compare features by a cubic kernel, without bias", "binkowski2018demystifying"),
        (
            "precision-recall",
            "metrics:PrecisionRecall",
            "Measure quality and diversity by nearest neighbours of features",
            "kynkaanniemi2019improved",
        ),
        (
            "inception-score",
            "metrics:InceptionScore",
            "Measure how sure and how varied a classifier finds the samples",
            "salimans2016improved",
        ),
    ],
    "extractor": [
        (
            "efficientnet-lite0",
            "efficientnet:EfficientNetLite0",
            "1280 features, installed by pip",
            "tan2019efficientnet",
        ),
        (
            "inception-v3",
            "inception:InceptionV3",
            "2048 features, weights from a file; the network of FID",
            "szegedy2016rethinking",
        ),
        ("plain-values", "extractor:Values", "The values of the examples themselves, for vectors"),
    ],
}


@hookimpl
def diffkit_kinds() -> Iterator[Kind]:
    yield Kind("extractor", "diffkit_fidelity.extractor:Extractor", "a network whose features metrics compare")


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit_fidelity", COMPONENTS)


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit_fidelity.laws"
