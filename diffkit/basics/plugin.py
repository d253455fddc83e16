"""The default components that belong to no single paper: data, grids, times, guidance, codecs, metrics, a tracker."""

from __future__ import annotations

from collections.abc import Iterator

from diffkit.host import Entry, hookimpl

DIFFKIT_API = 1
HERE = "diffkit.basics"


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from _data()
    yield from _levels()
    yield Entry("network", "oracle", "diffkit.oracles.network:OracleNetwork", "Use the exact denoiser of the data")
    yield Entry("guidance", "clip", f"{HERE}.guidance:Clip", "Clamp x0 to the range of the data", "ho2020denoising")
    yield Entry(
        "guidance",
        "threshold",
        f"{HERE}.guidance:Threshold",
        "Clamp x0 at a quantile of each sample",
        "saharia2022photorealistic",
    )
    yield Entry(
        "guidance",
        "cfg",
        f"{HERE}.guidance:ClassifierFree",
        "Guide towards the label, without a classifier",
        "ho2022classifier",
    )
    yield Entry("codec", "identity", "diffkit.codec:Identity", "Diffuse the data itself")
    yield Entry(
        "codec", "affine", f"{HERE}.codec:Affine", "Shift and scale: z = (x - shift) * scale", "rombach2022high"
    )
    yield Entry("augmentation", "flip", f"{HERE}.augmentation:Flip", "Flip images horizontally with probability 1/2")
    yield from _metrics()
    yield from _training()
    yield Entry("tracker", "tensorboard", f"{HERE}.tensorboard:TensorBoard", "Write event files for TensorBoard")
    yield Entry(
        "callback", "weight-norms", f"{HERE}.callbacks:WeightNorms", "Write the norm of each parameter as training goes"
    )


def _data() -> Iterator[Entry]:
    here = f"{HERE}.data"
    yield Entry(
        "data",
        "digits",
        f"{here}.digits:Digits",
        "Load 1797 digits of 8x8, part of scikit-learn",
        "alpaydin1998optical",
    )
    yield Entry(
        "data", "gaussian", f"{here}.gaussian:Gaussian", "Draw from a normal distribution; the denoiser is exact"
    )
    yield Entry("data", "mixture", f"{here}.mixture:Mixture", "Draw from a mixture of normals; the denoiser is exact")
    yield Entry("data", "arrays", f"{here}.arrays:Arrays", "Load .npy or .npz files")
    yield Entry("data", "images", f"{here}.images:Images", "Load a folder of images")
    yield Entry("data", "mnist", f"{here}.published:MNIST", "Load 60000 digits of 28x28", "lecun1998gradient")
    yield Entry(
        "data", "fashion-mnist", f"{here}.published:FashionMNIST", "Load 60000 garments of 28x28", "xiao2017fashion"
    )
    yield Entry(
        "data", "cifar10", f"{here}.published:CIFAR10", "Load 50000 photographs of 32x32", "krizhevsky2009learning"
    )


def _levels() -> Iterator[Entry]:
    grid, ddim = f"{HERE}.grid", "song2021denoising"
    yield Entry(
        "grid", "linspace", f"{grid}:Linspace", "Take equal steps from T to 1, both included", "ho2020denoising"
    )
    yield Entry("grid", "leading", f"{grid}:Leading", "Take multiples of an integer stride; starts below T", ddim)
    yield Entry(
        "grid", "trailing", f"{grid}:Trailing", "Divide the schedule into equal parts, starting at T", "lin2024common"
    )
    yield Entry("grid", "quadratic", f"{grid}:Quadratic", "Take equal steps in sqrt(t): denser near the data", ddim)
    yield Entry("times", "uniform", "diffkit.times:UniformTimes", "Draw training times uniformly", "ho2020denoising")
    yield Entry(
        "times",
        "stratified",
        f"{HERE}.times:Stratified",
        "Draw one time per stratum of the batch, of any distribution",
        "kingma2021variational",
    )


def _training() -> Iterator[Entry]:
    rates, ways = f"{HERE}.lr_schedules", f"{HERE}.strategies"
    yield Entry(
        "optimizer", "adam", f"{HERE}.optimizers:Adam", "Adam, with weight decay in the gradient", "kingma2015adam"
    )
    yield Entry(
        "optimizer",
        "adamw",
        f"{HERE}.optimizers:AdamW",
        "Adam, with weight decay on the weights",
        "loshchilov2019decoupled",
    )
    yield Entry("lr-schedule", "constant", f"{rates}:Constant", "Keep the learning rate after the warm-up")
    yield Entry("lr-schedule", "linear", f"{rates}:Linear", "Lower the learning rate linearly to the last step")
    yield Entry(
        "lr-schedule", "cosine", f"{rates}:Cosine", "Lower the learning rate along half a cosine", "loshchilov2017sgdr"
    )
    yield Entry("lr-schedule", "wsd", f"{rates}:WSD", "Warm up, stay, decay in the last steps", "hu2024minicpm")
    yield Entry(
        "lr-schedule",
        "inverse-sqrt",
        f"{rates}:InverseSqrt",
        "Lower the learning rate as 1 / sqrt(step)",
        "vaswani2017attention",
    )
    yield Entry("strategy", "auto", f"{ways}:Auto", "Choose single for one process, ddp for several")
    yield Entry("strategy", "single", "diffkit.strategy:SingleProcess", "Train in one process, on whole batches")
    yield Entry("strategy", "ddp", f"{ways}:DDP", "Hold all weights in each process, average gradients")


def _metrics() -> Iterator[Entry]:
    here = f"{HERE}.metrics"
    yield Entry(
        "metric",
        "frechet",
        f"{here}.frechet:Frechet",
        "Compare normals fitted to features of samples and data",
        "heusel2017gans",
    )
    yield Entry(
        "metric",
        "sliced-wasserstein",
        f"{here}.sliced_wasserstein:SlicedWasserstein",
        "Compare random projections of samples and data",
        "bonneel2015sliced",
    )
    yield Entry("metric", "mmd", f"{here}.mmd:MMD", "Measure the maximum mean discrepancy", "gretton2012kernel")
    yield Entry(
        "metric",
        "nearest-neighbour",
        f"{here}.nearest_neighbour:NearestNeighbour",
        "Test whether samples copy training examples",
        "meehan2020nonparametric",
    )
    yield Entry(
        "metric",
        "classifier",
        f"{here}.classifier:Classifier",
        "Test how well a classifier separates samples from data",
    )


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.basics"
