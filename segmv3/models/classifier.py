"""The classification net that backbones are pretrained as."""

from torch import Tensor, nn

from segmv3.models.layers import Normalize, global_pool, initialise, make_activation
from segmv3.models.mobilenetv3 import FAMILIES, MobileNetV3Backbone, hidden_channels
from segmv3.models.nets import Classifier


class ImageClassifier(nn.Module):
    """RGB in, one logit per class out. Normalisation is inside.

    Attributes: config: the `Classifier` it was built from. num_classes: number of logits.
    """

    def __init__(self, config: Classifier, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.mean, config.std)
        self.backbone = MobileNetV3Backbone(config.backbone, bn_momentum=config.bn_momentum)
        hidden, family = hidden_channels(config.backbone), FAMILIES[config.backbone.family]
        self.hidden = nn.Linear(self.backbone.channels[-1], hidden, bias=family.hidden_bias)
        self.norm = (
            nn.BatchNorm1d(hidden, eps=config.backbone.bn_eps, momentum=config.bn_momentum)
            if family.hidden_norm
            else nn.Identity()
        )
        self.activation = make_activation("relu" if config.backbone.minimal else "hard_swish")
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(hidden, num_classes)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, RGB, uint8 or float 0..255, any H, W >= 1 -> logits N x classes."""
        (deep,) = self.backbone(self.normalize(image))
        x = self.activation(self.norm(self.hidden(global_pool(deep).flatten(1))))
        return self.classifier(self.dropout(x))
