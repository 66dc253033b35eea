"""The detection net: torchvision's SSDLite head, anchors, loss and box utilities on a backbone of segmv3."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.ops import box_iou

from segmv3.models.backbones import Tap
from segmv3.models.layers import Normalize, initialise
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.nets import Detector, naming

C4 = Tap(32, "expansion")
"""The expansion of the block that goes from stride 16 to 32: the 13th of Large, the 9th of Small."""

_EXTRA = (512, 256, 256, 128)  # channels of the four maps after C5
_RATIOS = (2, 3)  # of the sides of the anchor boxes, beside squares


class ObjectDetector(nn.Module):
    """RGB in, scores and box offsets of all anchor boxes out. Normalisation is inside; any size of picture will do.

    Attributes: config: the `Detector` it was built from. num_classes: without the background. rules: torchvision's SSD,
        without a net of its own: anchors, matching, loss and the choice of the best boxes. areas: the head of the
        areas, where there is one.
    """

    def __init__(self, config: Detector, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.normalize = Normalize(config.mean, config.std)
        norm = partial(nn.BatchNorm2d, eps=config.backbone.bn_eps, momentum=config.bn_momentum)
        taps = config.areas.taps() if config.areas else ()
        self.backbone = MobileNetV3Backbone(config.backbone, (C4, *taps), bn_momentum=config.bn_momentum)
        self.backbone.apply(initialise)
        c4, *finer, c5 = self.backbone.channels
        before = (c5, *_EXTRA[:-1])
        self.extra = nn.ModuleList(_extra_block(a, b, norm) for a, b in zip(before, _EXTRA, strict=True))
        if not torch.empty(0).is_meta:
            _normal_init(self.extra)
        anchors = _TensorFlowAnchors(config) if config.anchors == "tensorflow" else _Anchors(config)
        counts = anchors.num_anchors_per_location()
        self.head = SSDLiteHead([c4, c5, *_EXTRA], counts, num_classes + 1, norm)
        self.rules = SSD(nn.Identity(), anchors, (1, 1), num_classes + 1, head=nn.Identity(), nms_thresh=0.55)
        self.areas: nn.Module | None = None
        if config.areas:
            with naming(config.areas):
                self.areas = config.areas.build((*finer, c5), num_classes, bn_momentum=config.bn_momentum)
            self.areas.apply(initialise)

    def maps(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The feature maps of both heads.

        Args:
            image: N x 3 x H x W, RGB, uint8 or float 0..255.

        Returns:
            The six maps of the boxes, C4 and C5 first; and those that the head of the areas takes.
        """
        c4, *finer, c5 = self.backbone(self.normalize(image))
        maps = [c4, c5]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return maps, [*finer, c5]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Scores and offsets, and the anchors that they are for.

        Args:
            image: N x 3 x H x W, RGB, uint8 or float 0..255.

        Returns:
            N x A x (1 + classes + 4), the background first, before the softmax, then the offsets of the box; the
            anchors, A x 4, left, top, right and bottom in pixels; and of a net with `areas` the logits of the pixels,
            N x classes x h x w at the head's own resolution.
        """
        maps, of_areas = self.maps(image)
        found = self.head(maps)
        found = torch.cat([found["cls_logits"], found["bbox_regression"]], 2)
        anchors = self.rules.anchor_generator(ImageList(image, [tuple(image.shape[2:])]), maps)[0].float()
        return [found, anchors, *([self.areas(*of_areas)] if self.areas else [])]

    def split(self, found: Tensor) -> dict[str, Tensor]:
        """The first of what `forward` gives, in torchvision's terms."""
        scores, offsets = found.float().split([self.num_classes + 1, 4], 2)
        return {"cls_logits": scores, "bbox_regression": offsets}

    def detect(
        self, image: Tensor, *, least_score: float = 0.001, most: int = 300, candidates: int = 300
    ) -> list[dict[str, Tensor]]:
        """The best boxes of each picture, chosen as torchvision does (overlap of the same class up to 0.55).

        Args:
            image: as for `forward`.
            least_score: boxes below it are left out.
            most: boxes of a picture.
            candidates: boxes of each class that are compared.

        Returns:
            For each picture `boxes`, float n x 4 in its pixels; `scores`, 0..1, falling; `labels`, int64, from 0; and
            of a net with `areas` their logits, `areas`, classes x h x w.
        """
        found, anchors, *areas = self(image)
        rules: Any = self.rules
        rules.score_thresh, rules.detections_per_img, rules.topk_candidates = least_score, most, candidates
        shapes = [tuple(image.shape[2:])] * len(image)
        chosen = rules.postprocess_detections(self.split(found), [anchors] * len(image), shapes)
        pixels = [{"areas": logits} for logits in areas[0]] if areas else [{} for _ in chosen]
        return [{**each, "labels": each["labels"] - 1, **own} for each, own in zip(chosen, pixels, strict=True)]

    def loss(self, found: Tensor, anchors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """SSD's loss (arXiv 1512.02325): cross-entropy with three hard negatives for each box, and smooth L1.

        Args:
            found: as `forward` gives it.
            anchors: as `forward` gives them.
            targets: float N x M x 5: left, top, right, bottom, class from 0; below 0 where there is no box.

        Returns:
            The sum, and the number of anchors that were matched with a box, float.
        """
        rules: Any = self.rules
        truths, matches = [], []
        for each in targets:
            boxes = each[each[:, 4] >= 0]
            truths.append({"boxes": boxes[:, :4], "labels": boxes[:, 4].long() + 1})
            matches.append(_matched(rules, boxes[:, :4], anchors))
        losses = rules.compute_loss(truths, self.split(found), [anchors] * len(targets), matches)
        matched = torch.stack([(match >= 0).sum() for match in matches]).sum()
        return sum(losses.values()) * matched.clamp(min=1), matched.float()


def _matched(rules: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """The box of each anchor, int64 A, -1 for none."""
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    return rules.proposal_matcher(box_iou(boxes, anchors))


class _Anchors(DefaultBoxGenerator):
    def __init__(self, config: Detector) -> None:
        with torch.device("cpu"):  # also of a net that is only counted
            super().__init__([list(_RATIOS)] * 6, min_ratio=config.scales[0], max_ratio=config.scales[1])


class _TensorFlowAnchors(_Anchors):
    """Three boxes on the first map, as TensorFlow's `reduce_boxes_in_lowest_layer`."""

    def __init__(self, config: Detector) -> None:
        super().__init__(config)
        scale = config.scales[0]
        wide, high = scale * 2**0.5, scale / 2**0.5
        self._wh_pairs[0] = torch.tensor([[scale / 2, scale / 2], [wide, high], [high, wide]], device="cpu")

    def num_anchors_per_location(self) -> list[int]:
        return [len(pairs) for pairs in self._wh_pairs]
