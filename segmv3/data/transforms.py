"""What happens to an image and its target between the disk and the net, as visible lists.

All randomness comes from one generator per sample.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.config import Data
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE

_MEAN_COLOR = (124, 116, 104)  # ImageNet's mean: padding is zero after normalisation
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as OpenCV's grey
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_FACTORS = ("brightness", "contrast", "saturation", "hue")

Target = TypeVar("Target", bound=UInt8Array | int)
"""Labels uint8 H x W, or the class of a whole picture."""


class Colors(NamedTuple):
    """How the colours of one image change, which is left to the device: `segmv3.training.photometric`."""

    matrix: NDArray[np.float32]
    """3 x 4, from (R, G, B, 1)."""
    table: UInt8Array | None
    """3 x 256, through which the channels go before that; not with plain jitter."""
    inside: tuple[int, int, int, int] | None
    """Top, left, bottom, right of the picture; None where nothing is padded. Padding keeps its colour."""


def train_transforms(data: Data) -> A.Compose:
    """What makes a training sample of an image: the two lists, and padding to the crop size."""
    height, width = data.crop_size
    padding = A.PadIfNeeded(height, width, position="random", fill=_MEAN_COLOR, fill_mask=IGNORE)
    return A.Compose([*geometric(data), *photometric(data), padding])


def geometric(data: Data) -> list[A.DualTransform]:
    """What moves pixels, of image and labels alike: mmsegmentation's and DeepLab's random scale, crop and mirror."""
    return [
        RandomScaledCrop(data.crop_size, data.scale_range, data.cat_max_ratio),
        A.HorizontalFlip(p=data.flip),
    ]


def photometric(data: Data) -> list[A.ImageOnlyTransform]:
    """What changes colours, of the image alone, by the kind of `data.photometric`."""
    policies: dict[str, list[A.ImageOnlyTransform]] = {
        # contrast and saturation as in mmsegmentation's PhotoMetricDistortion, brightness and hue a little narrower
        "jitter": [ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, p=data.jitter)],
        # two operations of nine, arXiv 1909.13719
        "randaugment": [RandAugment(p=data.jitter)],
    }
    return policies[data.photometric]


def transform(
    transforms: A.Compose,
    image: UInt8Array,
    target: Target,
    place: tuple[int, int] | None,
    generator: np.random.Generator,
) -> tuple[UInt8Array, Target, Colors | None]:
    """Apply a list to an image (uint8 H x W x 3) and its target, drawing only from `generator`.

    `set_random_state` is what makes the draws independent: `set_random_seed` would seed every child alike, so
    that mirror and jitter agree.

    Args:
        place: row and column of a pixel that the crop must show.

    Returns:
        Image, target, and what is to become of the colours: None where they never change.
    """
    transforms.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    if isinstance(target, int):
        image = transforms(image=image)["image"]
        return image, target, _drawn_colors(transforms, image)
    result = transforms(image=image, mask=target, place=place)
    return result["image"], result["mask"], _drawn_colors(transforms, result["image"])


def _drawn_colors(transforms: A.Compose, image: UInt8Array) -> Colors | None:
    """What the transforms drew for the image they just made."""
    drawn = {type(each): each for each in transforms.transforms}
    colors = drawn.get(ColorJitter) or drawn[RandAugment]
    if not colors.p:
        return None
    unchanged = np.arange(256, dtype=np.uint8)[None].repeat(3, 0) if isinstance(colors, RandAugment) else None
    pad = drawn[A.PadIfNeeded].params if A.PadIfNeeded in drawn else {}
    inside = None
    if any(pad.get(f"pad_{side}") for side in ("top", "left", "bottom", "right")):
        height, width = image.shape[:2]
        inside = pad["pad_top"], pad["pad_left"], height - pad["pad_bottom"], width - pad["pad_right"]
    return Colors(
        colors.params.get("matrix", np.eye(3, 4, dtype=np.float32)), colors.params.get("table", unchanged), inside
    )


class RandomScaledCrop(A.DualTransform):
    """Resize by a uniform random scale and crop, cropping first.

    Cutting crop / scale pixels out of the source and resizing only those gives the same distribution as
    resizing the whole image, for a fraction of the work. The crop is drawn again, up to 10 times, while one
    class covers more than `cat_max_ratio` of its labelled pixels or it has fewer than two classes
    (mmsegmentation's `RandomCrop`). Images smaller than the crop come out smaller; padding is another step's. Where a
    `place` is given, a pixel, the crop shows it, wherever in the crop (NVIDIA's class-uniform sampling).
    """

    def __init__(self, crop_size: tuple[int, int], scale_range: tuple[float, float], cat_max_ratio: float) -> None:
        super().__init__(p=1.0)
        self.crop_size, self.scale_range, self.cat_max_ratio = crop_size, scale_range, cat_max_ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        row, column = data.get("place") or (None, None)
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
            top = self._start(height, taken[0], row)
            left = self._start(width, taken[1], column)
            window = np.s_[top : top + taken[0], left : left + taken[1]]
            labels = _resize(data["mask"][window], size, cv2.INTER_NEAREST)  # the image is not looked at
            if self.cat_max_ratio >= 1 or self._varied(labels):
                break
        return {"window": window, "size": size, "labels": labels}

    def _start(self, length: int, taken: int, shown: int | None) -> int:
        if shown is None:
            return self.py_random.randint(0, length - taken)
        return min(max(0, self.py_random.randint(shown - taken + 1, shown)), length - taken)

    def _varied(self, labels: UInt8Array) -> bool:
        counts = cv2.calcHist([labels], [0], None, [IGNORE], [0, IGNORE])
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())

    def apply(self, img: UInt8Array, window: Any, size: tuple[int, int], **_: Any) -> NDArray[Any]:
        return _resize(img[window], size, cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: UInt8Array, labels: UInt8Array, **_: Any) -> NDArray[Any]:
        return labels


class ColorJitter(A.ColorJitter):
    """albumentations' draws of brightness, contrast, saturation and hue, as one linear map of the colours.

    Each of them is linear in R, G, B when hue is a rotation about grey that keeps the luma (YIQ) instead of a shift
    in HSV, and values are clipped once, at the end. That is what NVIDIA DALI's `ColorTwist` does. The pixels stay:
    applying the matrix is the device's work.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        drawn = {name: params[name] for name in (*_FACTORS, "order")}
        return {"matrix": color_matrix(np.array(cv2.mean(data["image"])[:3]), **drawn)}

    def apply(self, img: UInt8Array, **_: Any) -> UInt8Array:
        return img


class RandAugment(A.ImageOnlyTransform):
    """Two of nine photometric operations, each of any strength in its range (after arXiv 1909.13719).

    They are those that a table for each channel and one matrix can express. Tables act first, whatever was drawn first:
    gamma, fewer grey levels (posterize), bright ones inverted (solarize), contrast stretched towards the full range,
    a gain for each channel. Then the matrix: brightness, contrast, saturation, hue. Equalising fits into no such
    range of strengths, sharpness looks at neighbours, and moving pixels is the crop's work: none of these is here.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        between = self.py_random.uniform
        histogram = np.stack([cv2.calcHist([data["image"]], [c], None, [256], [0, 256]).ravel() for c in range(3)])
        shares = histogram.astype(float) / data["image"][..., 0].size
        levels = np.tile(np.arange(256.0), (3, 1))
        factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
        order = []
        for name in self.py_random.sample((*_FACTORS, "gamma", "posterize", "solarize", "stretch", "gain"), 2):
            if name in _FACTORS:
                factors[name] = between(-0.1, 0.1) if name == "hue" else between(0.4, 1.6)
                order.append(_FACTORS.index(name))
            elif name == "gamma":
                levels = 255 * (levels / 255) ** 2 ** between(-1, 1)
            elif name == "posterize":
                step = 2 ** self.py_random.randint(1, 4)
                levels = levels // step * step
            elif name == "solarize":
                levels = np.where(levels < between(128, 256), levels, 255 - levels)
            elif name == "stretch":
                levels += between(0, 1) * (_stretched(levels, shares) - levels)
            else:
                levels *= np.array([between(0.7, 1.3) for _ in range(3)])[:, None]
            levels = levels.clip(0, 255)
        table = levels.round().astype(np.uint8)
        return {"table": table, "matrix": color_matrix((shares * table).sum(1), order=order, **factors)}

    def apply(self, img: UInt8Array, **_: Any) -> UInt8Array:
        return img


def _stretched(levels: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each channel from its darkest to its brightest percent over 0..255; `shares` of the pixels by level before."""
    stretched = levels.copy()
    for channel, each in enumerate(levels):
        order = np.argsort(each)
        below = np.cumsum(shares[channel][order])
        dark, bright = (each[order][np.searchsorted(below, limit).clip(0, 255)] for limit in (0.01, 0.99))
        if dark < bright:
            stretched[channel] = (each - dark) * 255 / (bright - dark)
    return stretched


def color_matrix(
    mean: NDArray[np.float64],
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    order: Sequence[int] = (0, 1, 2, 3),
) -> NDArray[np.float32]:
    """The 3 x 4 matrix that turns the colours (R, G, B, 1) of an image into jittered ones, before clipping.

    Args:
        mean: mean R, G and B of the image. Contrast stretches about its luma.
        brightness: factor, 1 = unchanged.
        contrast: factor, 1 = unchanged.
        saturation: factor, 1 = unchanged.
        hue: share of a full turn, 0 = unchanged.
        order: the order in which they act: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """
    matrix = np.eye(3, 4)
    for step in order:
        if step == 0:
            matrix *= brightness
        elif step == 1:
            luma = _LUMA @ (matrix[:, :3] @ mean + matrix[:, 3])
            matrix *= contrast
            matrix[:, 3] += (1 - contrast) * luma
        elif step == 2:
            matrix = saturation * matrix + (1 - saturation) * (_LUMA @ matrix)
        else:
            cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
            turn = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])  # red towards yellow, as in HSV
            matrix = _FROM_YIQ @ turn @ _TO_YIQ @ matrix
    return matrix.astype(np.float32)


def _resize(array: UInt8Array, size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    if array.shape[:2] == size:
        return array.copy()  # never a view: pixels of a packed data set cannot be written to
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
