"""Extractors: networks on pictures, Inception-v3 with weights from a file, and the values themselves."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffkit import DataError, DataSpec, FilePath

from .extractor import Extractor, as_pictures
from .inception import SIZE, Inception

ROUNDING = "k = round(127.5 (x + 1)), uint8"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Values(Extractor):
    """The values of the examples as features and as scores of classes, without a network; for vectors and for tests."""

    cached = False

    @property
    def described(self) -> str:
        return "the values of the examples"

    def protocol(self) -> Mapping[str, str]:
        return {"extractor": "plain-values", "rounding": "none"}

    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        return x.flatten(1).float()

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        return prepared, prepared


class NetworkExtractor(Extractor):
    """Base of extractors that show pictures to a network, on a GPU if there is one."""

    @property
    @abstractmethod
    def weights_hash(self) -> str:
        """The SHA-256 of the file of the weights."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the network with its weights: pictures (B, 3, H, W) of 0 to 255 -> features, scores."""

    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        return as_pictures(x, spec)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features, scores = _placed(self, device)(prepared.to(device))
        return features.cpu(), scores.cpu()


@functools.lru_cache(maxsize=2)
def _placed(extractor: NetworkExtractor, device: str) -> nn.Module:
    return extractor.network().eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class InceptionV3(NetworkExtractor):
    """Inception-v3, the network of FID: 2048 features and 1008 classes, with the weights of torch-fidelity.

    `weights` is a safetensors file of these weights (docs/how-to/fidelity.md converts them); `sha256` is the hash that
    the file must have, if given. Pictures are resized to 299 x 299 as TensorFlow 1 does and scaled to (k - 128) / 128.
    Source: Heusel et al. 2017 (arXiv:1706.08500), sec. 4; see `diffkit_fidelity.inception` for the graph.
    """

    weights: FilePath
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @classmethod
    def law_example(cls, folder: Path) -> InceptionV3:
        """Return the extractor with random weights, which tests use."""
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in Inception().state_dict().items() if value.ndim}
        weights = {name: torch.rand(shape) if len(shape) == 1 else torch.randn(shape) for name, shape in shapes.items()}
        weights = {name: value / max(1, value[0].numel()) ** 0.5 for name, value in weights.items()}
        save_file(weights, folder / "random.safetensors")
        return cls(str(folder / "random.safetensors"))

    @property
    def described(self) -> str:
        return "2048 features of Inception-v3"

    def protocol(self) -> Mapping[str, str]:
        return {
            "extractor": "inception-v3",
            "extractor weights": self.weights_hash,
            "resize": f"bilinear as TensorFlow 1, to {SIZE} x {SIZE}",
            "rounding": ROUNDING,
        }

    @property
    def weights_hash(self) -> str:
        """The SHA-256 of the file. Raises DataError DK333 if there is none, or it is not `sha256`."""
        path = Path(self.weights)
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such file of weights",
                code="DK333",
                fix="give the path of a safetensors file: weights: FILE",
            )
        status = path.stat()
        found = file_hash(path, status.st_mtime_ns, status.st_size)
        if self.sha256 not in (None, found):
            raise other_hash(path, found, str(self.sha256), "give the file that `sha256` names, or leave it out")
        return found

    def network(self) -> nn.Module:
        """Return the network. Raises DataError DK333 unless the file holds exactly its weights, as safetensors."""
        path, _ = Path(self.weights), self.weights_hash
        convert = "convert it once, as docs/how-to/fidelity.md shows"
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise DataError(
                f"{path} is not a safetensors file, and a pickle (.pt, .pth) is never opened",
                code="DK333",
                fix=convert,
                notes=[str(error)],
            ) from None
        with torch.device("meta"):
            model = Inception()
        wanted = {name: value for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
        given = {name: value for name, value in tensors.items() if "num_batches_tracked" not in name}
        wrong = [f"{name} is missing" for name in wanted if name not in given]
        wrong += [f"{name} is unknown" for name in given if name not in wanted]
        wrong += [
            f"{name} has the shape {tuple(given[name].shape)}, not {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in given and given[name].shape != value.shape
        ]
        if wrong:
            raise DataError(
                f"{path} does not hold the weights of Inception-v3 under the names of torch-fidelity",
                code="DK333",
                fix=f"{convert}; weights of torchvision are others",
                notes=[*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])],
            )
        counters = {name: torch.tensor(0) for name in model.state_dict() if "num_batches_tracked" in name}
        model.load_state_dict({name: value.float() for name, value in given.items()} | counters, assign=True)
        return model


@functools.lru_cache(maxsize=8)
def file_hash(path: Path, changed: int, size: int) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.
        changed: Time of its last change; a file that changes is read again.
        size: Its size in bytes.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def other_hash(path: Path, found: str, wanted: str, fix: str) -> DataError:
    """Return the error for a file of weights whose hash is not the expected one.

    Args:
        path: The file.
        found: Its SHA-256.
        wanted: The expected one.
        fix: The next step for the user.

    Returns:
        The error, to be raised by the caller.
    """
    return DataError(
        f"{path} is not the expected file of weights: its SHA-256 is {found}, not {wanted}", code="DK333", fix=fix
    )
