"""`unet` with the weights of a UNet2DModel."""

from __future__ import annotations

from torch import Tensor

from diffkit import Network, Shape, build

from .folder import open_folder
from .refusal import not_a_model
from .unet_config import options_of, read_config
from .weights import unet_weights


class DiffusersUNet(Network):
    """The network `unet` that a folder of diffusers describes, starting from the folder's weights: to fine-tune them.

    The model's channels must be those of the data, and its labels the data's and one more, the null class.
    Raises: UsageError DK080, DK081; CheckpointError DK603.
    """

    def __init__(self, shape: Shape, folder: str) -> None:
        super().__init__()
        found = open_folder(folder)
        config = read_config(found.config())
        rows = None if shape.classes is None else shape.classes + 1
        theirs = (config.in_channels, config.out_channels, config.num_class_embeds)
        if theirs != (shape.in_channels, shape.out_channels, rows):
            ours = (shape.in_channels, shape.out_channels, rows)
            raise not_a_model(f"the model in {folder} has (channels in, out, labels) {theirs}, and this data {ours}")
        self.unet = build("network", "unet", shape=shape, **options_of(config, shape.size))
        if next(self.unet.parameters()).device.type != "meta":
            self.unet.load_state_dict(unet_weights(found.weights(), config.layout))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), c_noise: (B,), label: (B,) long -> (B, C', H, W)."""
        out: Tensor = self.unet(x, c_noise, label)
        return out
