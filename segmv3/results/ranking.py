"""The images a net is worst at, and labels that look wrong."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmv3.results.result import Result, _confusion, _iou, _mean

FloatArray = NDArray[np.float64]


# --- ranking ---


@dataclass(frozen=True)
class RankedImage:
    """An image with its own scores, percent."""

    name: str
    miou: float
    """Mean over the classes in its truth: one stray pixel of another class must not count as a class at 0 %."""
    iou: FloatArray
    """Of each class; NaN where the truth does not have it."""


def ranking(result: Result) -> list[RankedImage]:
    """All images with a labelled pixel, lowest mIoU first (by name where equal)."""
    counts = result.counts
    iou = np.where(counts.truth > 0, _iou(counts.hits, counts.union), np.nan)
    images = [RankedImage(*row) for row in zip(result.names, _mean(iou).tolist(), iou, strict=True)]
    return sorted((image for image in images if not np.isnan(image.miou)), key=lambda image: (image.miou, image.name))


def worst_by_class(result: Result, *, count: int = 10, share: float = 0.001) -> dict[str, list[tuple[str, float]]]:
    """For each class the images (name, IoU in percent) it is found worst in, worst first.

    Only images in which the class covers `share` of the labelled pixels: specks of it would fill every list.
    """
    counts = result.counts
    iou = _iou(counts.hits, counts.union)
    covers = (counts.truth > 0) & (counts.truth >= share * counts.truth.sum(1, keepdims=True))
    worst = {}
    for place, name in enumerate(result.classes):
        rows = np.flatnonzero(covers[:, place])
        rows = rows[np.argsort(iou[rows, place], kind="stable")][:count]
        worst[name] = [(result.names[row], float(iou[row, place])) for row in rows]
    return worst


@dataclass(frozen=True)
class Suspect:
    """A confusion in one image that may be the label's fault."""

    name: str
    truth: str
    predicted: str
    pixels: int
    share: float
    """Of the image's pixels of the class `truth`, percent."""
    elsewhere: float
    """The same share over all other images, percent."""


def label_suspects(
    result: Result, *, share: float = 50, elsewhere: float = 10, coverage: float = 1, count: int = 20
) -> list[Suspect]:
    """Confusions that look like wrong labels, largest (in pixels) first.

    A suspect is an image in which at least `share` percent of the pixels of a class are predicted as one other
    class, which are at least `coverage` percent of its labelled pixels, while over all other images the net makes
    that confusion in at most `elsewhere` percent of the pixels of the class. A net that knows a class everywhere
    else and denies it here is either fooled or right; someone has to look. A class in one image only has no
    elsewhere and is never suspected.
    """
    total = _confusion(np.concatenate(result.images), len(result.classes))
    found = []
    for name, rows, labelled in zip(result.names, result.images, result.counts.truth, strict=True):
        rest = total - _confusion(rows, len(result.classes))
        for truth, predicted, pixels in rows.tolist():
            others = int(rest[truth].sum())
            if truth == predicted or not others or 100 * pixels < coverage * labelled.sum():
                continue
            here, there = 100 * pixels / int(labelled[truth]), 100 * int(rest[truth, predicted]) / others
            if here >= share and there <= elsewhere:
                classes = (result.classes[truth], result.classes[predicted])
                found.append(Suspect(name, *classes, pixels, here, there))
    return sorted(found, key=lambda suspect: (-suspect.pixels, suspect.name))[:count]
