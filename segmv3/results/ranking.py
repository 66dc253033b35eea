"""Which images a net labels worst, and which labels look wrong."""

from dataclasses import dataclass

import numpy as np

from segmv3.metrics import percent
from segmv3.results.counts import FloatArray, confusion_of, mean_of, rows_of
from segmv3.results.result import Result


@dataclass(frozen=True)
class RankedImage:
    """An image with its own scores, percent."""

    name: str
    miou: float
    """Mean over the classes in its truth: one stray pixel of another class must not count as a class at 0 %."""
    iou: FloatArray
    """IoU of each class; NaN where the truth does not have it."""


def ranking(result: Result) -> list[RankedImage]:
    """All images with a labelled pixel, lowest mIoU first (by name where equal)."""
    counts = result.counts
    iou = np.where(counts.truth > 0, percent(counts.hits, counts.union), np.nan)
    images = [RankedImage(*row) for row in zip(result.names, mean_of(iou).tolist(), iou, strict=True)]
    return sorted((image for image in images if not np.isnan(image.miou)), key=lambda image: (image.miou, image.name))


def worst_by_class(result: Result, *, count: int = 10, share: float = 0.001) -> dict[str, list[tuple[str, float]]]:
    """For each class the images (name, IoU in percent) in which its IoU is lowest, the lowest first.

    Only images in which the class covers a share of the labelled pixels: specks of it would fill every list.

    Args:
        result: what was found.
        count: images of each class.
        share: of the labelled pixels, that a class must cover.
    """
    counts = result.counts
    iou = percent(counts.hits, counts.union)
    covers = (counts.truth > 0) & (counts.truth >= share * counts.truth.sum(1, keepdims=True))
    worst = {}
    for place, name in enumerate(result.class_names):
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
    """Percent of the image's pixels of the class `truth`."""
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

    Args:
        result: what was found.
        share: of the class in the image, percent, that must be taken for the other one.
        elsewhere: of the class in the other images, percent, that may be.
        coverage: of the image's labelled pixels, percent, that the confusion must cover.
        count: suspects at most.
    """
    images, names = [rows_of(image.counts) for image in result.per_image], result.class_names
    total = confusion_of(np.concatenate(images), len(names))
    found = []
    for name, rows, labelled in zip(result.names, images, result.counts.truth, strict=True):
        rest = total - confusion_of(rows, len(names))
        for truth, predicted, pixels in rows.tolist():
            others = int(rest[truth].sum())
            if truth == predicted or not others or 100 * pixels < coverage * labelled.sum():
                continue
            here, there = 100 * pixels / int(labelled[truth]), 100 * int(rest[truth, predicted]) / others
            if here >= share and there <= elsewhere:
                found.append(Suspect(name, names[truth], names[predicted], pixels, here, there))
    return sorted(found, key=lambda suspect: (-suspect.pixels, suspect.name))[:count]
