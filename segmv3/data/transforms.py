"""What happens to an image and its target between the disk and the net, as visible lists.

The only file that knows albumentations. All randomness comes from one generator per sample.
"""

import math
import os
import random
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from segmv3.config import Data, ImageFolder
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks PyPI for updates at import
import albumentations as A

_MEAN_COLOR = (124, 116, 104)  # ImageNet's mean: padding is zero after normalisation

Target = TypeVar("Target", bound=UInt8Array | int)
"""Labels uint8 H x W, or the class of a whole picture."""


def train_transforms(data: Data | ImageFolder) -> A.Compose:
    """What makes a training sample of an image."""
    return _street_transforms(data) if isinstance(data, Data) else _picture_transforms(data)


def _street_transforms(data: Data) -> A.Compose:
    """Random scale and crop, mirror, jitter, padding to the crop size."""
    height, width = data.crop_size
    return A.Compose(
        [
            RandomScaledCrop(data.crop_size, data.scale_range, data.cat_max_ratio),
            A.HorizontalFlip(p=data.flip),
            A.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, p=data.jitter),
            A.PadIfNeeded(height, width, position="random", fill=_MEAN_COLOR, fill_mask=IGNORE),
        ]
    )


def _picture_transforms(data: ImageFolder) -> A.Compose:
    """ImageNet's: a random share of the area, stretched by up to 4/3, as a crop of one size; mirror, jitter."""
    crop = A.RandomResizedCrop(
        data.crop_size,
        scale=data.scale_range,
        ratio=(3 / 4, 4 / 3),
        interpolation=cv2.INTER_LINEAR,
        area_for_downscale="image",  # OpenCV's bilinear skips pixels when it shrinks
    )
    jitter = A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, p=data.jitter)
    return A.Compose([crop, A.HorizontalFlip(p=data.flip), jitter])


def eval_transforms() -> A.Compose:
    """Nothing: streets are scored whole, at the size of their ground truth."""
    return A.Compose([])


def center_crop(image: UInt8Array, data: ImageFolder) -> UInt8Array:
    """What a classifier is scored on: shorter side resized, then the middle.

    Pillow's antialiased resize with torchvision's rounding, by which the published accuracies were measured.

    Args: image: uint8 H x W x 3, any size. data: `resize`, `interpolation` and `crop_size` count.
    Returns: uint8 crop height x crop width x 3.
    """
    mode = InterpolationMode(data.interpolation)
    resized = torchvision.resize(Image.fromarray(image), [data.resize], interpolation=mode)
    return np.array(torchvision.center_crop(resized, list(data.crop_size)))


def transform(
    transforms: A.Compose, image: UInt8Array, target: Target, generator: np.random.Generator
) -> tuple[UInt8Array, Target]:
    """Apply a list to an image (uint8 H x W x 3) and its target, drawing only from `generator`.

    `set_random_state` is what makes the draws independent: `set_random_seed` would seed every child alike, so
    that mirror and jitter agree.
    """
    transforms.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    if isinstance(target, int):
        return transforms(image=image)["image"], target
    result = transforms(image=image, mask=target)
    return result["image"], result["mask"]


class RandomScaledCrop(A.DualTransform):
    """Resize by a uniform random scale and crop, cropping first.

    Cutting crop / scale pixels out of the source and resizing only those gives the same distribution as
    resizing the whole image, for a fraction of the work. The crop is drawn again, up to 10 times, while one
    class covers more than `cat_max_ratio` of its labelled pixels or it has fewer than two classes
    (mmsegmentation's `RandomCrop`). Images smaller than the crop come out smaller; padding is another step's.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float],
        cat_max_ratio: float = 1.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.crop_size = crop_size
        self.scale_range = scale_range
        self.cat_max_ratio = cat_max_ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(*self.scale_range)
        taken = (
            min(height, math.ceil(self.crop_size[0] / scale)),
            min(width, math.ceil(self.crop_size[1] / scale)),
        )
        size = (
            min(self.crop_size[0], max(1, round(taken[0] * scale))),
            min(self.crop_size[1], max(1, round(taken[1] * scale))),
        )
        for _ in range(10):
            top = self.py_random.randint(0, height - taken[0])
            left = self.py_random.randint(0, width - taken[1])
            window = np.s_[top : top + taken[0], left : left + taken[1]]
            if self.cat_max_ratio >= 1 or self._varied(_resize(data["mask"][window], size, cv2.INTER_NEAREST)):
                break
        return {"window": window, "size": size}

    def _varied(self, labels: UInt8Array) -> bool:
        counts = np.bincount(labels.reshape(-1), minlength=256)[:IGNORE]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())

    def apply(self, img: UInt8Array, window: Any, size: tuple[int, int], **_: Any) -> NDArray[Any]:
        return _resize(img[window], size, cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: UInt8Array, window: Any, size: tuple[int, int], **_: Any) -> NDArray[Any]:
        return _resize(mask[window], size, cv2.INTER_NEAREST)


def _resize(array: UInt8Array, size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
