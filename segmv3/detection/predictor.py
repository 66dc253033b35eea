"""Opening detectors behind one callable."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segmv3.checkpoint import Card
from segmv3.config import Device
from segmv3.detection.scoring import found_in
from segmv3.detection.settings import BoxData
from segmv3.errors import CheckpointError
from segmv3.images import UInt8Array
from segmv3.models.detector import ObjectDetector
from segmv3.runtime import use_device
from segmv3.weights.opening import open_detector


class Box(NamedTuple):
    """One object of an image."""

    name: str
    score: float
    """How sure the net is, 0 to 1."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image."""


class BoxPredictor:
    """`find(image) -> [Box, ...]` for one net, the surest box first.

    Attributes:
        net: in eval mode. card: what its file says of itself; `card.classes` are names and colours. size: height and
        width at which it sees images.
    """

    def __init__(self, net: ObjectDetector, card: Card, device: torch.device, size: tuple[int, int] | None) -> None:
        self.net, self.card, self.device = net.to(device), card, device
        self.size = size or trained_size(card)

    def rows(self, image: UInt8Array, score: float = 0.4) -> NDArray[np.float32]:
        """The boxes of an image in numbers.

        Args:
            image: uint8 H x W x 3, RGB, any size.
            score: boxes below it are left out.

        Returns:
            float32 n x 6: left, top, right, bottom in pixels of the image, class, score.
        """
        return self.look(image, score)[0]

    def look(self, image: UInt8Array, score: float = 0.4) -> tuple[NDArray[np.float32], UInt8Array | None]:
        """Boxes and areas of an image, in one pass. It takes what `rows` takes.

        Returns:
            What `rows` gives; and the labels, uint8 H x W of class numbers, None of a net without areas.
        """
        return found_in(self.net, image, self.size, self.device, score)

    def __call__(self, image: UInt8Array, score: float = 0.4) -> list[Box]:
        """The boxes of an image; the arguments are those of `rows`."""
        found: Any = self.rows(image, score).tolist()
        return [Box(self.card.names[int(label)], share, tuple(box)) for *box, label, share in found]


def trained_size(card: Card) -> tuple[int, int]:
    """Height and width at which a net saw images in its training; 320 x 320 where its file does not say.

    Raises:
        CheckpointError: the file says something else than a size.
    """
    size = card.fact("config", "data", "crop_size") or list(BoxData.crop_size)
    sides = size if isinstance(size, list) and len(size) == 2 else [0]
    if not all(type(side) is int and 32 <= side <= 8192 for side in sides):
        raise CheckpointError("the weight file says a size of training images that is none; name one with --size")
    return sides[0], sides[1]


def load_detector(
    source: Path | str, *, device: Device = "auto", threads: int | None = None, size: tuple[int, int] | None = None
) -> BoxPredictor:
    """Open a detector: weights of segmv3, torchvision's file, or a published name.

    Args:
        source: such as "best.safetensors" or "torchvision/ssdlite320_mobilenet_v3_large".
        device: "auto" takes a GPU when there is one.
        threads: CPU threads of this process; None leaves them as they are.
        size: height and width at which the net sees images; that of its training by default.

    Returns:
        A function from an image, uint8 H x W x 3 RGB, to the boxes that it finds.

    Raises:
        CheckpointError: the file cannot be used, or is no detector.
        ResourceError: the device is not there.
    """
    place = use_device(device, threads)
    return BoxPredictor(*open_detector(source), place, size)
