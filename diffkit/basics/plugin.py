"""What every diffusion model needs and no paper owns: data, grids, times, guidance, codecs, metrics, a tracker."""

from __future__ import annotations

from collections.abc import Iterator

from diffkit.host import Entry, hookimpl

DIFFKIT_API = 1
HERE = "diffkit.basics"


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from _data()
    yield from _levels()
    yield Entry("network", "oracle", "diffkit.oracles.network:OracleNetwork", "the exact denoiser of the data")
    yield Entry("guidance", "clip", f"{HERE}.guidance:Clip", "x0 clamped to the range of the data", "ho2020denoising")
    yield Entry(
        "guidance", "threshold", f"{HERE}.guidance:Threshold", "dynamic thresholding", "saharia2022photorealistic"
    )
    yield Entry("guidance", "cfg", f"{HERE}.guidance:ClassifierFree", "classifier-free guidance", "ho2022classifier")
    yield Entry("codec", "identity", "diffkit.codec:Identity", "diffuse the data itself")
    yield Entry("codec", "affine", f"{HERE}.codec:Affine", "z = (x - shift) * scale", "rombach2022high")
    yield Entry("augmentation", "flip", f"{HERE}.augmentation:Flip", "horizontal flip with probability 1/2")
    yield from _metrics()
    yield Entry("tracker", "tensorboard", f"{HERE}.tensorboard:TensorBoard", "event files for TensorBoard")


def _data() -> Iterator[Entry]:
    here = f"{HERE}.data"
    yield Entry("data", "digits", f"{here}.digits:Digits", "1797 digits of 8x8, in scikit-learn", "alpaydin1998optical")
    yield Entry("data", "gaussian", f"{here}.gaussian:Gaussian", "a normal distribution, with its exact denoiser")
    yield Entry("data", "mixture", f"{here}.mixture:Mixture", "a mixture of normals, with its exact denoiser")
    yield Entry("data", "arrays", f"{here}.arrays:Arrays", "a .npy or .npz file")
    yield Entry("data", "images", f"{here}.images:Images", "a folder of images")
    yield Entry("data", "mnist", f"{here}.published:MNIST", "60000 digits of 28x28", "lecun1998gradient")
    yield Entry("data", "fashion-mnist", f"{here}.published:FashionMNIST", "60000 garments of 28x28", "xiao2017fashion")
    yield Entry("data", "cifar10", f"{here}.published:CIFAR10", "50000 photographs of 32x32", "krizhevsky2009learning")


def _levels() -> Iterator[Entry]:
    grid, ddim = f"{HERE}.grid", "song2021denoising"
    yield Entry("grid", "linspace", f"{grid}:Linspace", "even steps from T to 1, both included", "ho2020denoising")
    yield Entry("grid", "leading", f"{grid}:Leading", "multiples of an integer stride; starts below T", ddim)
    yield Entry("grid", "trailing", f"{grid}:Trailing", "equal parts of the schedule, from T", "lin2024common")
    yield Entry("grid", "quadratic", f"{grid}:Quadratic", "even steps in sqrt(t): denser near the data", ddim)
    yield Entry("times", "uniform", "diffkit.times:UniformTimes", "uniform over all times", "ho2020denoising")
    yield Entry(
        "times",
        "stratified",
        f"{HERE}.times:Stratified",
        "one number per stratum of the batch, for any distribution",
        "kingma2021variational",
    )


def _metrics() -> Iterator[Entry]:
    here = f"{HERE}.metrics"
    yield Entry("metric", "frechet", f"{here}.frechet:Frechet", "distance between fitted normals", "heusel2017gans")
    yield Entry(
        "metric",
        "sliced-wasserstein",
        f"{here}.sliced_wasserstein:SlicedWasserstein",
        "mean distance of random projections",
        "bonneel2015sliced",
    )
    yield Entry("metric", "mmd", f"{here}.mmd:MMD", "maximum mean discrepancy", "gretton2012kernel")
    yield Entry(
        "metric",
        "nearest-neighbour",
        f"{here}.nearest_neighbour:NearestNeighbour",
        "whether samples copy training examples",
        "meehan2020nonparametric",
    )
    yield Entry(
        "metric", "classifier", f"{here}.classifier:Classifier", "how well a classifier separates samples from data"
    )


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.basics"
