"""The whole segmentation net: normalisation, backbone and head in one module."""

import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.errors import ModelError
from segmv3.models.layers import Normalize, initialise
from segmv3.models.nets import Model


class Segmenter(nn.Module):
    """RGB in, logits out. Normalisation is inside, so every exported form takes the same pixels.

    Attributes: config: the `Model` it was built from. num_classes: channels of the logits.
    """

    def __init__(self, config: Model, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.mean, config.std)
        self.backbone = config.backbone.build(config.head.taps(), bn_momentum=config.bn_momentum)
        self.head = config.head.build(self.backbone.channels, num_classes, bn_momentum=config.bn_momentum)
        self.apply(initialise)

    def low_logits(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255 -> logits N x classes x h x w at the head's own resolution."""
        return self.head(*self.backbone(self.normalize(image)))

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255, any H, W >= 1 -> logits float32 N x classes x H x W."""
        return F.interpolate(self.low_logits(image).float(), image.shape[2:], mode="bilinear", align_corners=False)

    def check_trainable(self, batch_size: int, crop_size: tuple[int, int]) -> None:
        """Refuse a batch that leaves BN one value per channel at the deepest map.

        Raises: ModelError.
        """
        stride = self.config.backbone.output_stride
        height, width = (-(-side // stride) for side in crop_size)
        pooled = self.config.head.normalises_pooled or self.config.backbone.normalises_pooled
        if batch_size * (1 if pooled else height * width) < 2:
            raise ModelError(
                f"a batch of {batch_size} crops of {crop_size[0]}x{crop_size[1]} leaves one value per channel at "
                f"output stride {stride}; batch normalisation needs two: use a larger crop or batch"
            )
