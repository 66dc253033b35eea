"""The page of an evaluation, `evaluation.html`: which images it shows, and their pictures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from segmv3.files import make_folder
from segmv3.images import UInt8Array
from segmv3.labels import IGNORE, Classes, Color
from segmv3.media.draw import WRONG, draw_errors, occurring
from segmv3.report.html import data_uri, write_page
from segmv3.report.samples import Sample, cells, shrunk
from segmv3.report.tables import images, mode, over, size
from segmv3.results.ranking import RankedImage, Suspect, label_suspects, ranking, worst_by_class
from segmv3.results.result import Result
from segmv3.results.uncertainty import FEWEST_IMAGES, bootstrap_iou

PAGE = "evaluation.html"
_WORST = 12  # images of the ranking
_OF_CLASS = 3  # images of each class
_SUSPECTS = 12
_LOWEST = 3  # classes named below an image
_FOUND: Color = (58, 130, 246)
_EXTRA: Color = (245, 176, 40)
_KEY = ((_FOUND, "found"), (WRONG, "missed"), (_EXTRA, "seen where it is not"))

SamplesOf = Callable[[Sequence[str]], Iterable[Sample]]
"""The images of these names, in this order, with labels and predictions."""


def write_evaluation_page(folder: Path, result: Result, classes: Classes, samples_of: SamplesOf) -> Path:
    """Write `folder/evaluation.html`, complete or not at all.

    Args:
        folder: where it goes; made where it is missing.
        result: what the evaluation found.
        classes: those of the data set.
        samples_of: asked once, for the images shown.

    Returns:
        The path of the page.

    Raises:
        OutputError: it cannot be written.
    """
    worst = ranking(result)[:_WORST]
    by_class = worst_by_class(result, count=_OF_CLASS)
    suspects = label_suspects(result, count=_SUSPECTS)
    pictures = _draw(worst, by_class, suspects, classes, samples_of)
    present = (result.counts.truth > 0).sum(0).tolist()
    bounds = [
        each if count >= FEWEST_IMAGES and not np.isnan(each).any() else None
        for each, count in zip(bootstrap_iou(result.counts), present, strict=True)
    ]
    conditions = [images(result), size(result), mode(result), f"{len(result.classes)} classes"]
    if result.absent:
        conditions.append(f"no pixel of {', '.join(result.absent)}: mean{over(result, names=False)} classes")
    return write_page(
        make_folder(folder) / PAGE,
        "evaluation.html",
        title=f"{result.dataset} {result.split}: evaluation",
        result=result,
        conditions=conditions,
        rows=list(zip(result.classes, classes.colors, bounds, present, strict=True)),
        fewest=FEWEST_IMAGES,
        worst=[(image.name, image.miou, _lowest(image, classes), pictures.worst[image.name]) for image in worst],
        suspects=[(suspect, pictures.suspects[suspect]) for suspect in suspects],
        by_class=[
            (name, color, [(image, iou, pictures.by_class[name, image]) for image, iou in by_class[name]])
            for name, color in zip(classes.names, classes.colors, strict=True)
            if by_class[name]
        ],
        present=classes.key(pictures.present),
        key=_KEY,
    )


def write_suspects_page(
    path: Path, result: Result, suspects: Sequence[Suspect], classes: Classes, samples_of: SamplesOf
) -> Path:
    """Write the page of the labels in doubt alone, in their order; otherwise as `write_evaluation_page`."""
    pictures = _draw([], {}, suspects, classes, samples_of)
    return write_page(
        path,
        "suspects.html",
        title=f"{result.dataset} {result.split}: labels in doubt",
        result=result,
        images=len({suspect.name for suspect in suspects}),
        suspects=[(suspect, pictures.suspects[suspect]) for suspect in suspects],
        present=classes.key(pictures.present),
    )


def _lowest(image: RankedImage, classes: Classes) -> list[str]:
    rows = sorted((float(iou), name) for iou, name in zip(image.iou, classes.names, strict=True) if not np.isnan(iou))
    return [f"{name} {iou:.1f}" for iou, name in rows[:_LOWEST]]


@dataclass
class _Pictures:
    """Finished pictures, so that no image is kept at its own size."""

    worst: dict[str, list[tuple[str, Markup]]] = field(default_factory=dict)
    """(caption, address) of each, by image."""
    by_class: dict[tuple[str, str], str] = field(default_factory=dict)
    """Pictures by (class, image)."""
    suspects: dict[Suspect, list[tuple[str, Markup]]] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    """Train ids that occur in the pictures."""


def _draw(
    worst: Sequence[RankedImage],
    by_class: dict[str, list[tuple[str, float]]],
    suspects: Sequence[Suspect],
    classes: Classes,
    samples_of: SamplesOf,
) -> _Pictures:
    ranked, pictures = {image.name for image in worst}, _Pictures()
    of_classes = (name for rows in by_class.values() for name, _ in rows)
    names = dict.fromkeys([*(image.name for image in worst), *of_classes, *(suspect.name for suspect in suspects)])
    for large in samples_of(list(names)):
        sample = shrunk(large)
        own = [suspect for suspect in suspects if suspect.name == sample.name]
        if own or sample.name in ranked:
            pictures.present |= occurring(sample.truth, classes) | occurring(sample.prediction, classes)
        if sample.name in ranked:
            pictures.worst[sample.name] = cells(sample, classes)
        for place, name in enumerate(classes.names):
            if sample.name in (image for image, _ in by_class.get(name, ())):
                pictures.by_class[name, sample.name] = data_uri(class_picture(sample, place), "JPEG")
        for suspect in own:
            truth, predicted = classes.names.index(suspect.truth), classes.names.index(suspect.predicted)
            marked = _marked(sample, {WRONG: (sample.truth == truth) & (sample.prediction == predicted)})
            pictures.suspects[suspect] = [*cells(sample, classes)[:-1], ("in doubt", data_uri(marked, "JPEG"))]
    return pictures


def class_picture(sample: Sample, place: int) -> UInt8Array:
    """Where one class was found, missed, and seen where it is not, on the image in dim grey.

    Args:
        sample: an image with labels and prediction.
        place: train id of the class.
    """
    truth, predicted = sample.truth == place, sample.prediction == place
    return _marked(sample, {_FOUND: truth & predicted, WRONG: truth & ~predicted, _EXTRA: predicted & ~truth})


def _marked(sample: Sample, masks: dict[Color, NDArray[np.bool_]]) -> UInt8Array:
    """The image in dim grey, ignored pixels hatched, with masks in colours."""
    picture = draw_errors(sample.image, sample.truth, sample.truth)
    labelled = sample.truth != IGNORE
    for color, mask in masks.items():
        picture[mask & labelled] = color
    return picture
