"""What a classifier is shown of a picture: in training, and when it is scored."""

import albumentations as A
import cv2
import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

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


def center_crop(image: UInt8Array, data: ImageFolder) -> UInt8Array:
    """What a classifier is scored on: shorter side resized, then the middle.

    Pillow's antialiased resize with torchvision's rounding, by which the published accuracies were measured.

    Args: image: uint8 H x W x 3, any size. data: `resize`, `interpolation` and `crop_size` count.
    Returns: uint8 crop height x crop width x 3.
    """
    mode = InterpolationMode(data.interpolation)
    resized = torchvision.resize(Image.fromarray(image), [data.resize], interpolation=mode)
    return np.array(torchvision.center_crop(resized, list(data.crop_size)))
