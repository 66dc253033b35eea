"""Our backbones as encoders of segmentation-models-pytorch (0.5 or newer), for its U-Net, FPN, DeepLabV3+ and others.

    import segmentation_models_pytorch as smp
    from segmv3.models.smp import register
    from segmv3.weights.opening import open_segmenter

    register()
    model = smp.DeepLabV3Plus("segmv3_large_d8", encoder_weights=None, classes=19)
    trained, _ = open_segmenter("best.safetensors")  # an lraspp_large_d8; names and shapes agree
    model.encoder.backbone.load_state_dict(trained.backbone.state_dict())

`encoder_weights=None` is needed: smp's default asks for ImageNet weights, which these names do not offer. Images are
normalised outside the net, as usual with smp: RGB in 0..1, ImageNet's mean and std (segmv3's weights expect the same).

The output stride is the decoder's choice and changes no shape of a weight. DeepLabV3+ asks for 16 (or 8) and gets the
dilated net; U-Net and FPN ask for 32 and get the same layers with their strides, to which weights trained at 16 have to
adapt. `smp.Unet(..., output_stride=16)` takes the dilated net too; smp's FPN takes none, it doubles every map.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from segmv3.models.backbones import MobileNetV3, Tap
from segmv3.models.layers import initialise
from segmv3.models.mobilenetv3 import MobileNetV3Backbone

ENCODERS: Mapping[str, MobileNetV3] = MappingProxyType(
    {
        # as for classification; 960 and 576 channels in the deep map
        "segmv3_large": MobileNetV3(size="large"),
        "segmv3_small": MobileNetV3(size="small"),
        # of `lraspp_large_d8` and `lraspp_small_d8`, which they equal at output stride 16: 480 and 288 channels
        "segmv3_large_d8": MobileNetV3(size="large", tail="rf2"),
        "segmv3_small_d8": MobileNetV3(size="small", tail="rf2"),
    }
)

_TAPS = tuple(Tap(stride) for stride in (2, 4, 8, 16))


class Encoder(nn.Module, EncoderMixin):
    """The image, the last map of each stage at strides 2 to 16, and the deep map after the closing 1x1 convolution.

    Args:
        net: the backbone; its output stride is replaced.
        depth: how many maps after the image, 1 to 5. Layers that no map needs are left out, so that weights of a whole
            backbone load with `strict=False` below 5.
        output_stride: 8, 16 or 32.

    Raises:
        ValueError: another depth or output stride, as smp's own encoders.
    """

    _is_torch_scriptable = False  # part of smp's contract; tracing, export and compilation work

    def __init__(self, net: MobileNetV3, *, depth: int = 5, output_stride: Literal[8, 16, 32] = 32) -> None:
        if not 1 <= depth <= len(_TAPS) + 1:
            raise ValueError(f"Encoder depth should be in range [1, {len(_TAPS) + 1}], got {depth}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"Output stride should be 8, 16 or 32, got {output_stride}")
        super().__init__()
        self.backbone = MobileNetV3Backbone(replace(net, output_stride=output_stride), _TAPS[:depth])
        self._out_channels = [3, *self.backbone.channels]
        self._in_channels = 3
        self._depth = depth
        self._output_stride = output_stride
        if depth <= len(_TAPS):
            blocks, _ = self.backbone.taps[-1]
            self.backbone.blocks = self.backbone.blocks[:blocks]
            self.backbone.last = nn.Identity()
        self.backbone.apply(initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        """N x C x H x W, normalised -> `depth` + 1 maps, the image first."""
        return [image, *self.backbone(image)][: self._depth + 1]

    def make_dilated(self, output_stride: int) -> None:
        """Do nothing: the net was built with its dilation. smp calls this after asking for an output stride.

        Raises: ValueError for another output stride than it was built with.
        """
        if output_stride != self._output_stride:
            raise ValueError(f"Output stride is {self._output_stride} since construction, got {output_stride}")


def register() -> None:
    """Make the names of `ENCODERS` known to segmentation-models-pytorch; a second call changes nothing."""
    for name, net in ENCODERS.items():
        encoders[name] = {"encoder": Encoder, "pretrained_settings": {}, "params": {"net": net}}
