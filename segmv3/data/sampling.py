"""Class-uniform crops, copy-paste and extra images: how a training sample is drawn when not in plain turns.

All draws come from one generator per sample, so that batches stay a pure function of (seed, step).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.config import Data
from segmv3.data.check import class_counts
from segmv3.data.datasets import Dataset
from segmv3.errors import ConfigError
from segmv3.images import UInt8Array

RARE = 0.02
"""Share of the labelled pixels of the training set below which a class is pasted."""

_SMALLEST, _LARGEST = 20, 0.1  # pixels of a piece; share of the image that one may cover
_PIECES = 20  # of one sample

Place = tuple[int, int]
"""Row and column of a pixel."""


def draws_of(dataset: Dataset, data: Data) -> "Draws | None":
    """None where every image is taken in its turn, and as it is."""
    return Draws(dataset, data) if dataset.extra or data.class_uniform or data.copy_paste else None


class Draws:
    """What `data.class_uniform`, `data.copy_paste` and `data.extra_share` ask for."""

    def __init__(self, dataset: Dataset, data: Data) -> None:
        """The labels are counted from what `segmv3.data.facts` remembers of them.

        Raises: ConfigError when no class of the training set is rare, or no pixel is labelled.
        """
        self.dataset, self.data = dataset, data
        self.images: list[NDArray[np.intp]] = []
        """The images that show each class."""
        self.occurring = self.rare = np.empty(0, np.intp)
        if data.class_uniform or data.copy_paste:
            counts = class_counts(dataset)
            pixels = counts.sum(0)
            self.images = [np.flatnonzero(column) for column in counts.T]
            self.occurring = np.flatnonzero(pixels)
            self.rare = np.flatnonzero((pixels > 0) & (pixels < RARE * pixels.sum()))
            if not self.occurring.size:
                name = "class-uniform" if data.class_uniform else "copy-paste"
                raise ConfigError(f"data.{name}: no pixel of the training set is labelled; use 0")
            if data.copy_paste and not self.rare.size:
                least = pixels[self.occurring].min() / pixels.sum()
                raise ConfigError(
                    f"data.copy-paste: no class is rarer than {RARE:.0%} (the rarest: {least:.1%}); use 0"
                )

    def read(self, index: int, generator: np.random.Generator) -> tuple[UInt8Array, UInt8Array, Place | None]:
        """The image of one sample.

        Args:
            index: the image whose turn it is; it is taken where nothing else is drawn.

        Returns:
            Image, uint8 H x W x 3 RGB; labels, uint8 H x W of train ids; a pixel that the crop is to show.
        """
        kind, extra = generator.random(), self.dataset.extra
        share = self.data.extra_share if extra else 0.0
        if extra and kind < share:
            image, labels = extra.read(int(generator.integers(len(extra))))
            index, place = -1, None
        elif kind < share + (1 - share) * self.data.class_uniform:
            wanted = generator.choice(self.occurring)
            index = int(generator.choice(self.images[wanted]))
            image, labels = self.dataset.read(index)
            place = _pixel_of(labels, wanted, generator)
        else:
            image, labels = self.dataset.read(index)
            place = None
        if generator.random() < self.data.copy_paste:
            donor = int(generator.choice(self.images[generator.choice(self.rare)]))
            if donor != index:
                mirrored = generator.random() < self.data.flip
                image, labels = paste(image, labels, *self.dataset.read(donor), self.rare, generator, mirrored=mirrored)
        return image, labels, place


def _pixel_of(labels: UInt8Array, wanted: int, generator: np.random.Generator) -> Place | None:
    places = np.flatnonzero(labels == wanted)
    if not places.size:  # a half-size cache lost its few pixels
        return None
    row, column = divmod(int(generator.choice(places)), labels.shape[1])
    return row, column


def paste(
    image: UInt8Array,
    labels: UInt8Array,
    donor: UInt8Array,
    donor_labels: UInt8Array,
    rare: NDArray[np.intp],
    generator: np.random.Generator,
    *,
    mirrored: bool = False,
) -> tuple[UInt8Array, UInt8Array]:
    """Connected pieces of classes of one image, each with probability 1/2, in another, where they were in their own.

    In a street the place tells the size: what stood far away stays far away. Pieces of several rare classes that touch,
    such as a rider and the bicycle, stay together. Pieces under 20 pixels or over a tenth of the image are left out,
    and those beyond the first 20.

    Args:
        image: uint8 H x W x 3.
        labels: uint8 H x W of train ids.
        donor: uint8 H x W x 3, of any size. What does not fit into the image is cut off.
        donor_labels: uint8 H x W of train ids.
        rare: train ids to paste.
        mirrored: mirror the donor first.

    Returns:
        Image and labels, copies where anything was pasted.
    """
    height, width = (min(sides) for sides in zip(labels.shape, donor_labels.shape, strict=True))
    donor, donor_labels = donor[:height, :width], donor_labels[:height, :width]
    if mirrored:
        donor, donor_labels = donor[:, ::-1], donor_labels[:, ::-1]
    is_rare = np.zeros(256, np.uint8)
    is_rare[rare] = 1
    mask = cv2.LUT(np.ascontiguousarray(donor_labels), is_rare)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    sizes = stats[:, cv2.CC_STAT_AREA]
    fitting = np.flatnonzero((sizes >= _SMALLEST) & (sizes <= _LARGEST * labels.size))
    fitting = generator.permutation(fitting[fitting > 0])[:_PIECES]  # 0 is what lies between the pieces
    chosen = fitting[generator.random(len(fitting)) < 0.5]
    if chosen.size:
        image, labels = image.copy(), labels.copy()
    for piece in chosen:
        left, top, wide, high = stats[piece, :4]
        window = np.s_[top : top + high, left : left + wide]
        where = pieces[window] == piece
        image[window][where] = donor[window][where]
        labels[window][where] = donor_labels[window][where]
    return image, labels
