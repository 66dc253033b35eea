"""What a classifier is shown of a picture in training."""

import albumentations as A
import cv2

from segmv3.data.class_folders import Pictures
from segmv3.data.loader import Samples
from segmv3.data.transforms import ColorJitter
from segmv3.imagenet.settings import ImageFolder
from segmv3.images import UInt8Array


def train_transforms(data: ImageFolder) -> A.Compose:
    """What makes a training sample of a picture, as usual for ImageNet.

    A random share of the area, stretched by up to 4/3, becomes a crop of one size; mirror, jitter.
    """
    crop = A.RandomResizedCrop(
        data.crop_size,
        scale=data.scale_range,
        ratio=(3 / 4, 4 / 3),
        interpolation=cv2.INTER_LINEAR,
        area_for_downscale="image",  # OpenCV's bilinear skips pixels when it shrinks
    )
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, p=data.jitter)
    return A.Compose([crop, A.HorizontalFlip(p=data.flip), jitter])


class PictureSamples(Samples):
    """The training samples of a split: a random crop of each picture, with its class."""

    def __init__(self, pictures: Pictures, data: ImageFolder, seed: int) -> None:
        super().__init__(len(pictures), train_transforms(data), seed)
        self.pictures = pictures

    def read(self, epoch: int, index: int) -> tuple[UInt8Array, int, None]:
        return *self.pictures.read(index), None
