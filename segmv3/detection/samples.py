"""What a detector is shown of an image in training: SSD's crops (arXiv 1512.02325), by torchvision."""

from typing import Any, NamedTuple, cast

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from segmv3.data.loader import Sample, Samples
from segmv3.detection.coco import BoxSet
from segmv3.detection.settings import BoxData
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE

_FILL = {tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: IGNORE}  # ImageNet's mean, as other padding here
_clean = v2.SanitizeBoundingBoxes(min_size=1)


class BoxesAndLabels(NamedTuple):
    """The target of a net that also labels areas."""

    boxes: Tensor
    """As the target of a net without areas."""
    labels: Tensor
    """uint8 H x W of train ids, 255 = ignore."""

    def chunk(self, parts: int) -> "list[BoxesAndLabels]":
        """The batch in parts, as `Tensor.chunk` gives them."""
        return [BoxesAndLabels(*each) for each in zip(*(own.chunk(parts) for own in self), strict=True)]

    def to(self, device: torch.device) -> "BoxesAndLabels":
        """The same on a device, as of a tensor."""
        return BoxesAndLabels(*(own.to(device) for own in self))


class _Resize(v2.Resize):
    """Takes labels from the middle of pixels: torchvision's, from the corner, lie half a pixel beside the image."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        labels, how = inpt.as_subclass(Tensor)[None], v2.InterpolationMode.NEAREST_EXACT
        return tv_tensors.Mask(v2.functional.resize(labels, self.size, interpolation=how)[0])


def train_transforms(data: BoxData) -> v2.Compose:
    """Colours, a larger empty picture around it, a crop around some boxes, mirror, and the size of the net."""
    steps: list[v2.Transform] = [
        v2.RandomPhotometricDistort(p=data.jitter),
        v2.RandomZoomOut(fill=_FILL, side_range=(1.0, 2.0), p=data.zoom_out),
        v2.RandomApply([v2.RandomIoUCrop()], p=data.zoom_in),
        v2.RandomHorizontalFlip(data.flip),
        _Resize(list(data.crop_size), antialias=False),
    ]
    return v2.Compose(steps)


class BoxSamples(Samples):
    """The training samples of a split.

    The target of one is float32 M x 5, M being the most boxes of any image of the split: left, top, right, bottom in
    pixels of the sample, and the class from 0; -1 where there is no box. Crowds are not learnt. With areas it is
    `BoxesAndLabels`.
    """

    def __init__(self, boxes: BoxSet, data: BoxData, seed: int) -> None:
        super().__init__(len(boxes), A.Compose([]), seed)
        self.boxes, self.steps, self.most = boxes, train_transforms(data), boxes.most_boxes

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        epoch, index = address
        image, labels = self.boxes.read(index)
        boxes = self.boxes.boxes[index]
        seed = np.random.SeedSequence([self.seed, 1, epoch, index]).generate_state(2)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(int(seed[0]) << 32 | int(seed[1]))
            pixels, target = self._made(image, boxes[boxes[:, 5] == 0], labels)
        return pixels, cast(Tensor, target), None

    def _made(
        self, image: UInt8Array, boxes: NDArray[np.float32], labels: UInt8Array | None
    ) -> tuple[Tensor, Tensor | BoxesAndLabels]:
        own: dict[str, Any] = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes[:, :4]), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=image.shape[:2]
            ),
            "labels": torch.from_numpy(boxes[:, 4]),
        }
        if labels is not None:
            own["areas"] = tv_tensors.Mask(torch.from_numpy(labels))
        made = self.steps(own)
        areas = made.pop("areas", None)  # what cleans the boxes takes every mask for that of an object
        made = _clean(made)
        found = torch.full((self.most, 5), -1.0)
        found[: len(made["boxes"])] = torch.cat([made["boxes"].as_subclass(Tensor), made["labels"][:, None]], 1)
        pixels = made["image"].as_subclass(Tensor).permute(1, 2, 0).contiguous()
        return pixels, found if areas is None else BoxesAndLabels(found, areas.as_subclass(Tensor).contiguous())
