"""A net's answers fitted to what was asked: a part of the picture, classes merged into fewer."""

from collections.abc import Callable

import cv2
import numpy as np

from segmv3.errors import ConfigError, DataError
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE
from segmv3.prediction.contract import Found, both
from segmv3.prediction.shapes import Box


def check_crop(box: Box) -> None:
    """Raises: ConfigError for a region that no picture has."""
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1:
        raise ConfigError(f"--crop is {left} {top} {width} {height}: left and top from 0, width and height from 1")


def cropped(predict: Callable[[UInt8Array], Found], box: Box, image: UInt8Array) -> Found:
    """Label a region. What is outside of it is ignored (255), so that labels still fit the picture.

    Raises:
        DataError: the region is not inside of the picture.
    """
    left, top, width, height = box
    if left + width > image.shape[1] or top + height > image.shape[0]:
        size = f"{image.shape[1]} wide and {image.shape[0]} high"
        raise DataError(f"the crop {left} {top} {width} {height} is not inside of the picture, which is {size}")
    inside = slice(top, top + height), slice(left, left + width)
    labels, confidence = both(predict(image[inside]))
    whole = np.full(image.shape[:2], IGNORE, np.uint8)
    whole[inside] = labels
    if confidence is None:
        return whole
    sure = np.zeros(image.shape[:2], np.uint8)
    sure[inside] = confidence
    return whole, sure


def merged(found: Found, table: UInt8Array) -> Found:
    """Labels through a table of train ids (uint8 256). The confidence stays that of the class that won before."""
    labels, confidence = both(found)
    return cv2.LUT(labels, table), confidence
