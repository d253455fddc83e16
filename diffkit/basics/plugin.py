"""The default components that belong to no single paper: data, grids, times, guidance, codecs, metrics, trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from diffkit.host import Entry, hookimpl

if TYPE_CHECKING:
    import click

DIFFKIT_API = 1
OF_THE_CORE: Mapping[str, Sequence[tuple[str, ...]]] = {
    "times": [("uniform", "times:UniformTimes", "Draw training times uniformly", "ho2020denoising")],
    "network": [("oracle", "oracles.network:OracleNetwork", "Use the exact denoiser of the data")],
    "codec": [("identity", "codec:Identity", "Diffuse the data itself")],
    "conditioner": [("unchanged", "conditioner:Unchanged", "Pass the condition as it is, numbers with null 0")],
    "strategy": [("single", "strategy:SingleProcess", "Train in one process, on whole batches")],
}
OWN: Mapping[str, Sequence[tuple[str, ...]]] = {
    "data": [
        ("digits", "data.digits:Digits", "Load 1797 digits of 8x8, part of scikit-learn", "alpaydin1998optical"),
        ("gaussian", "data.gaussian:Gaussian", "Draw from a normal distribution; the denoiser is exact"),
        ("mixture", "data.mixture:Mixture", "Draw from a mixture of normals; the denoiser is exact"),
        ("arrays", "data.arrays:Arrays", "Load .npy or .npz files"),
        ("images", "data.images:Images", "Load a folder of images"),
        ("dataset", "data.dataset:DatasetData", "Take a data set of torch, Hugging Face or your own"),
        ("shards", "data.shards:Shards", "Stream pictures from tar shards, local or remote"),
        ("huggingface", "data.hugging_face:HuggingFace", "Read Arrow files that Hugging Face datasets saved"),
        ("mnist", "data.published:MNIST", "Load 60000 digits of 28x28", "lecun1998gradient"),
        ("fashion-mnist", "data.published:FashionMNIST", "Load 60000 garments of 28x28", "xiao2017fashion"),
        ("cifar10", "data.published:CIFAR10", "Load 50000 photographs of 32x32", "krizhevsky2009learning"),
    ],
    "grid": [
        ("linspace", "grid:Linspace", "Take equal steps from T to 1, both included", "ho2020denoising"),
        ("leading", "grid:Leading", "Take multiples of an integer stride; starts below T", "song2021denoising"),
        ("trailing", "grid:Trailing", "Divide the schedule into equal parts, starting at T", "lin2024common"),
        ("quadratic", "grid:Quadratic", "Take equal steps in sqrt(t): denser near the data", "song2021denoising"),
    ],
    "times": [
        (
            "stratified",
            "times:Stratified",
            "Draw one time per stratum of the batch, of any distribution",
            "kingma2021variational",
        ),
    ],
    "guidance": [
        ("clip", "guidance:Clip", "Clamp x0 to the range of the data", "ho2020denoising"),
        ("threshold", "guidance:Threshold", "Clamp x0 at a quantile of each sample", "saharia2022photorealistic"),
        ("cfg", "guidance:ClassifierFree", "Guide towards the label, without a classifier", "ho2022classifier"),
    ],
    "codec": [
        ("affine", "codec:Affine", "Shift and scale: z = (x - shift) * scale", "rombach2022high"),
    ],
    "conditioner": [
        ("label", "conditioners:Label", "Pass a class as its number, or as a learned vector", "ho2022classifier"),
        ("text", "conditioners:Text", "Encode the bytes of a text by a transformer that is trained", "nichol2022glide"),
        ("concat", "conditioners:Concat", "Give the network the condition as channels beside x", "saharia2021image"),
    ],
    "augmentation": [("flip", "augmentation:Flip", "Flip images horizontally with probability 1/2")],
    "metric": [
        (
            "frechet",
            "metrics.frechet:Frechet",
            "Compare normals fitted to features of samples and data",
            "heusel2017gans",
        ),
        (
            "sliced-wasserstein",
            "metrics.sliced_wasserstein:SlicedWasserstein",
            "Compare random projections of samples and data",
            "bonneel2015sliced",
        ),
        ("mmd", "metrics.mmd:MMD", "Measure the maximum mean discrepancy", "gretton2012kernel"),
        (
            "nearest-neighbour",
            "metrics.nearest_neighbour:NearestNeighbour",
            "Test whether samples copy training examples",
            "meehan2020nonparametric",
        ),
        ("accuracy", "metrics.accuracy:Accuracy", "Accuracy of a classifier by noise level"),
        ("classifier", "metrics.classifier:Classifier", "Test how well a classifier separates samples from data"),
        (
            "bits-per-dim",
            "metrics.bits_per_dim:BitsPerDim",
            "Measure how well the model compresses held-out data",
            "ho2020denoising",
        ),
    ],
    "optimizer": [
        ("adam", "optimizers:Adam", "Adam, with weight decay in the gradient", "kingma2015adam"),
        ("adamw", "optimizers:AdamW", "Adam, with weight decay on the weights", "loshchilov2019decoupled"),
    ],
    "lr-schedule": [
        ("constant", "lr_schedules:Constant", "Keep the learning rate after the warm-up"),
        ("linear", "lr_schedules:Linear", "Lower the learning rate linearly to the last step"),
        ("cosine", "lr_schedules:Cosine", "Lower the learning rate along half a cosine", "loshchilov2017sgdr"),
        ("wsd", "lr_schedules:WSD", "Warm up, stay, decay in the last steps", "hu2024minicpm"),
        (
            "inverse-sqrt",
            "lr_schedules:InverseSqrt",
            "Lower the learning rate as 1 / sqrt(step)",
            "vaswani2017attention",
        ),
    ],
    "strategy": [
        ("auto", "strategies:Auto", "Choose single for one process, ddp for several"),
        ("ddp", "strategies:DDP", "Hold all weights in each process, average gradients"),
        ("fsdp", "sharding:FSDP", "Shard weights, moments and averages over the processes"),
    ],
    "tracker": [
        ("tensorboard", "tensorboard:TensorBoard", "Write event files for TensorBoard"),
        ("wandb", "trackers:WandB", "Send values, recipe and previews to Weights & Biases"),
        ("mlflow", "trackers:MLflow", "Send values, recipe and previews to MLflow"),
    ],
    "callback": [("weight-norms", "callbacks:WeightNorms", "Write the norm of each parameter as training goes")],
}


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield from Entry.table("diffkit", OF_THE_CORE)
    yield from Entry.table("diffkit.basics", OWN)


@hookimpl
def diffkit_laws() -> Iterator[str]:
    yield "diffkit.testing.defaults.basics"


@hookimpl
def diffkit_commands(group: click.Group) -> None:
    from .commands import shards

    group.add_command(shards)
