"""The whole segmentation net: normalisation, backbone and head in one module."""

from importlib import import_module
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.errors import ModelError
from segmv3.models.layers import Normalize, initialise
from segmv3.models.nets import Model, naming


class Segmenter(nn.Module):
    """RGB in, logits out. Normalisation is inside, so every exported form takes the same pixels.

    Attributes: config: the `Model` it was built from. num_classes: channels of the logits. origin: the weight file that
        `from_pretrained` opened, and its card.
    """

    origin: Any = None

    def __init__(self, config: Model, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.mean, config.std)
        with naming(config.head):
            taps = config.head.taps()
        with naming(config.backbone):
            self.backbone = config.backbone.build(taps, bn_momentum=config.bn_momentum)
            channels = self.backbone.channels
        with naming(config.head):
            self.head = config.head.build(channels, num_classes, bn_momentum=config.bn_momentum)
        self.apply(initialise)

    def low_logits(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255 -> logits N x classes x h x w at the head's own resolution."""
        return self.head(*self.backbone(self.normalize(image)))

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255, any H, W >= 1 -> logits float32 N x classes x H x W."""
        return F.interpolate(self.low_logits(image).float(), image.shape[2:], mode="bilinear", align_corners=False)

    @classmethod
    def from_pretrained(cls, source: Any, **options: Any) -> "Segmenter":
        """A net of the Hugging Face Hub, or of a file or run folder, in eval mode on the CPU.

        Args:
            source: USER/NAME, or a path that exists.
            options: `revision`, `token` and `local_files_only`, as huggingface_hub takes them; `parts`, the classes of
                the net's head and backbone where they are not segmv3's own.

        Raises:
            CheckpointError: there is no such net, no network, or the file is no net of segmv3.
        """
        return import_module("segmv3.weights.hub").open_net(source, **options)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Publish the net on the Hugging Face Hub with a card.

        A net that is as `from_pretrained` opened it goes up as that very file, with its score and its run's manifest.

        Args:
            name: USER/NAME.
            options: as for `segmv3.weights.hub.push`; `classes`, the names of the classes of any other net.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: the net has no class names, or the Hub refuses.
        """
        return import_module("segmv3.weights.hub").push_net(self, name, **options)

    def check_trainable(self, batch_size: int, crop_size: tuple[int, int]) -> None:
        """Refuse a batch that leaves BN one value per channel at the deepest map.

        Args:
            batch_size: number of crops in a batch.
            crop_size: height and width, pixels.

        Raises:
            ModelError: the batch is too small, or the crop.
        """
        stride = self.config.backbone.output_stride
        height, width = (-(-side // stride) for side in crop_size)
        pooled = self.config.head.normalises_pooled or self.config.backbone.normalises_pooled
        if batch_size * (1 if pooled else height * width) < 2:
            raise ModelError(
                f"a batch of {batch_size} crops of {crop_size[0]}x{crop_size[1]} leaves one value per channel at "
                f"output stride {stride}; batch normalisation needs two: use a larger crop or batch"
            )
