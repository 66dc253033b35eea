"""The whole net: normalisation, backbone and head in one module."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.config import Model
from segmv3.errors import ModelError
from segmv3.models.heads import LRASPPHead, global_pool, window_pool
from segmv3.models.mobilenetv3 import MobileNetV3


class Segmenter(nn.Module):
    """RGB in, logits out. Normalisation is inside, so every exported form takes the same pixels.

    Attributes: config: the `Model` it was built from. num_classes: channels of the logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Model, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        # not persistent: they are settings, and are restored from the config beside the weights
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = MobileNetV3(
            config.size,
            tail=config.tail,
            output_stride=config.output_stride,
            bn_eps=config.backbone_bn_eps,
            bn_momentum=config.bn_momentum,
        )
        self.head = LRASPPHead(
            self.backbone.low_channels,
            self.backbone.deep_channels,
            num_classes,
            channels=config.head_channels,
            pool=global_pool
            if config.pool == "global"
            else partial(window_pool, window=config.pool_window, stride=config.pool_stride),
            bn_eps=config.head_bn_eps,
            bn_momentum=config.bn_momentum,
        )
        self.apply(_initialise)

    def low_logits(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255 -> logits N x classes x ceil(H/8) x ceil(W/8)."""
        low, deep = self.backbone((image.to(self.mean.dtype) - self.mean) / self.std)
        return self.head(low, deep)

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255, any H, W >= 1 -> logits float32 N x classes x H x W."""
        return F.interpolate(self.low_logits(image).float(), image.shape[2:], mode="bilinear", align_corners=False)

    def check_trainable(self, batch_size: int, crop_size: tuple[int, int]) -> None:
        """Refuse a batch that leaves BN one value per channel at the deepest map.

        Raises: ModelError.
        """
        height, width = (-(-side // self.config.output_stride) for side in crop_size)
        if batch_size * height * width < 2:
            raise ModelError(
                f"a batch of {batch_size} crops of {crop_size[0]}x{crop_size[1]} leaves one value per channel at "
                f"output stride {self.config.output_stride}; batch normalisation needs two: use a larger crop or batch"
            )


def _initialise(module: nn.Module) -> None:
    """He initialisation (fan out) for convolutions: these nets start from scratch."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
