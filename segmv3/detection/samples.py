"""What a detector is shown of an image in training: SSD's crops (arXiv 1512.02325), by torchvision."""

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

from segmv3.data.loader import Sample, Samples
from segmv3.detection.coco import BoxSet
from segmv3.detection.settings import BoxData
from segmv3.images import UInt8Array

_MEAN_COLOR = (124, 116, 104)  # ImageNet's, as other padding here


def train_transforms(data: BoxData) -> v2.Compose:
    """Colours, a larger empty picture around it, a crop around some boxes, mirror, and the size of the net."""
    steps: list[v2.Transform] = [
        v2.RandomPhotometricDistort(p=data.jitter),
        v2.RandomZoomOut(fill=_MEAN_COLOR, side_range=(1.0, 2.0), p=data.zoom_out),
        v2.RandomApply([v2.RandomIoUCrop()], p=data.zoom_in),
        v2.RandomHorizontalFlip(data.flip),
        v2.Resize(list(data.crop_size), antialias=False),
        v2.SanitizeBoundingBoxes(min_size=1),
    ]
    return v2.Compose(steps)


class BoxSamples(Samples):
    """The training samples of a split.

    The target of one is float32 M x 5, M being the most boxes of any image of the split: left, top, right, bottom in
    pixels of the sample, and the class from 0; -1 where there is no box. Crowds are not learnt.
    """

    def __init__(self, boxes: BoxSet, data: BoxData, seed: int) -> None:
        super().__init__(len(boxes), A.Compose([]), seed)
        self.boxes, self.steps, self.most = boxes, train_transforms(data), boxes.most_boxes

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        epoch, index = address
        image, boxes = self.boxes.read(index)
        seed = np.random.SeedSequence([self.seed, 1, epoch, index]).generate_state(2)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(int(seed[0]) << 32 | int(seed[1]))
            pixels, target = self._made(image, boxes[boxes[:, 5] == 0])
        return pixels, target, None

    def _made(self, image: UInt8Array, boxes: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        own = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes[:, :4]), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=image.shape[:2]
            ),
            "labels": torch.from_numpy(boxes[:, 4]),
        }
        made = self.steps(own)
        target = torch.full((self.most, 5), -1.0)
        target[: len(made["boxes"])] = torch.cat([made["boxes"].as_subclass(torch.Tensor), made["labels"][:, None]], 1)
        return made["image"].as_subclass(torch.Tensor).permute(1, 2, 0).contiguous(), target
