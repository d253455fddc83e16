"""Metrics of reconstructions: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from diffkit import Evaluation, Metric, UsageError

MOST_DECIBELS = 100.0
"""The ratio of equal images, whose error is 0."""
SIDE, SIGMA = 11, 1.5
"""Side and standard deviation in pixels of the Gaussian window of the structural similarity."""
K1, K2 = 0.01, 0.03
"""Constants of the structural similarity, as fractions of the range of values."""


def rounded(x: Tensor) -> Tensor:
    """Return what an image file of x: (N, C, H, W) in [-1, 1] holds, in [0, 1] as float64."""
    return x.double().add(1.0).mul(127.5).round().clamp(0, 255) / 255


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio -10 log10 E (x - y)^2 of images x and y: (N, C, H, W) in [0, 1], (N,)."""
    error = (x - y).square().flatten(1).mean(1)
    return (-10.0 * error.log10()).clamp(max=MOST_DECIBELS)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Compute the mean structural similarity of images x and y: (N, C, H, W) in [0, 1], (N,).

    Means, variances and covariance are those under a Gaussian window at each position whose window is inside of the
    image. The window of an image that is smaller has the odd side that fits.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13.
    """
    side = min(SIDE, *(length - (length + 1) % 2 for length in x.shape[-2:]))
    at = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    line = torch.exp(-0.5 * (at / SIGMA).square())
    line = line / line.sum()

    def local_mean(values: Tensor) -> Tensor:
        each = values.flatten(0, 1)[:, None]
        rows = functional.conv2d(each, line[None, None, :, None])
        return functional.conv2d(rows, line[None, None, None, :]).view(*x.shape[:2], *rows.shape[2:-1], -1)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


class MetricOfPairs(Metric):
    """Base of metrics that are the mean over pairs of a reconstruction and its example. Implement `of_pairs`."""

    needs = "pairs"
    lower_is_better = False

    @abstractmethod
    def of_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare images x and y: (N, C, H, W) in [0, 1] as files hold them; return (N,)."""

    def prepare(self, evaluation: Evaluation) -> Callable[[Tensor], Mapping[str, float]]:
        samples, references = evaluation.samples, evaluation.references
        if references is None or not evaluation.spec.bounded or samples.ndim != 4:
            raise UsageError(
                f"{type(self).__name__.lower()} compares reconstructions of images with values in [-1, 1]",
                code="DK083",
                fix="measure it in a run of task: codec on images, or remove the metric",
            )
        pairs = list(zip(torch.split(samples, 64), torch.split(references, 64), strict=True))
        found = evaluation.peers.in_order(lambda i: (self.of_pairs(*map(rounded, pairs[i])),), len(pairs))
        each = torch.cat([values for (values,) in found])
        name = type(self).__name__.lower()
        return lambda rows: {name: float(each[rows].mean())}

    def __call__(self, evaluation: Evaluation) -> Mapping[str, float]:
        return self.prepare(evaluation)(torch.arange(len(evaluation.samples)))


class PSNR(MetricOfPairs):
    """The mean over images of the peak signal-to-noise ratio -10 log10 E (x - y)^2 in decibels, values in 0..1.

    Images are rounded to 8 bits first; equal images count 100 dB.
    """

    definition = "mean over images of the peak signal-to-noise ratio in decibels"

    def of_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return psnr(x, y)


class SSIM(MetricOfPairs):
    """The mean structural similarity of images under a Gaussian window of 11 x 11 pixels; 1 for equal images.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13.
    """

    definition = "mean structural similarity under a Gaussian window of 11 x 11 pixels"

    def of_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return ssim(x, y)
