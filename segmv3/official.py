"""The Cityscapes benchmark: its categories, its instance-weighted IoU, and its own script as a judge of our numbers.

Everything about it comes from cityscapesscripts: the tables, the average sizes, and the evaluation that
`script_scores` runs on label-id PNGs.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segmv3.errors import DataError, OfficialError
from segmv3.images import UInt8Array, decoded, read_file, write_png
from segmv3.labels import IGNORE
from segmv3.pipeline import Progress

TOLERANCE = 1e-9
"""Largest difference, in percent, at which two scores are the same."""

_FIRST_INSTANCE = 1000  # instanceIds: label id * 1000 + number; smaller values are whole classes and groups


@dataclass(frozen=True)
class Tables:
    """The 19 classes in cityscapesscripts' own terms; arrays are indexed by train id."""

    label_ids: UInt8Array
    """Label id of every train id, 256 entries; 0 (unlabeled) for everything that is no class."""
    categories: tuple[str, ...]
    category_of: tuple[int, ...]
    """Place in `categories`, by train id."""
    sizes: NDArray[np.float64]
    """Average pixels of an instance, by train id; NaN for a class without instances."""
    instance_categories: tuple[bool, ...]
    """Whether all of a category's classes have instances, by place in `categories`."""


@cache
def tables() -> Tables:
    from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args
    from cityscapesscripts.helpers.labels import category2labels, trainId2label

    labels = [trainId2label[i] for i in range(19)]
    label_ids = np.zeros(256, np.uint8)
    label_ids[:19] = [label.id for label in labels]
    categories = tuple(dict.fromkeys(label.category for label in labels))
    sizes = [args.avgClassSize[label.name] if label.hasInstances else np.nan for label in labels]
    countable = [all(x.hasInstances for x in category2labels[name] if x.id >= 0) for name in categories]
    return Tables(
        label_ids,
        categories,
        tuple(categories.index(label.category) for label in labels),
        np.array(sizes),
        tuple(countable),
    )


# --- instance-weighted IoU ---


def instance_file(label: Path) -> Path | None:
    """The `*_instanceIds.png` beside a Cityscapes label file; None when there is none."""
    stem, _, kind = label.stem.rpartition("_")
    path = label.with_name(f"{stem}_instanceIds.png")
    return path if kind in ("labelIds", "labelTrainIds") and path.is_file() else None


def coco_boxes(root: Path, split: str, progress: Progress | None = None) -> dict[str, Any]:
    """The objects of a split as boxes around their visible pixels, in COCO's form.

    Groups of objects that nobody told apart are crowds, which count neither as found nor as missed.

    Args:
        root: of a data set in Cityscapes' layout, with `leftImg8bit` and `gtFine`.
        split: such as train.
        progress: called with (images done, images in all).

    Raises:
        DataError: there are no images, or an image has no `*_instanceIds.png`.
    """
    from cityscapesscripts.helpers.labels import labels

    kinds = {label.id: label for label in labels if label.hasInstances and not label.ignoreInEval}
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    files = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not files:
        raise DataError(f"found no *_leftImg8bit.png under {root / 'leftImg8bit' / split}")
    for number, file in enumerate(files, 1):
        name = file.name.removesuffix("_leftImg8bit.png")
        path = root / "gtFine" / split / file.parent.name / f"{name}_gtFine_instanceIds.png"
        if not path.is_file():
            raise DataError(f"{path} is missing: boxes are made of it")
        pixels = read_instances(path)
        height, width = pixels.shape
        images.append({"id": number, "file_name": file.relative_to(root).as_posix(), "width": width, "height": height})
        for value in np.unique(pixels).tolist():
            kind = value // _FIRST_INSTANCE if value >= _FIRST_INSTANCE else value
            if kind in kinds:
                mask = (pixels == value).view(np.uint8)
                about = {"id": len(annotations) + 1, "image_id": number, "category_id": kind}
                box = {"bbox": list(cv2.boundingRect(mask)), "area": int(cv2.countNonZero(mask))}
                annotations.append(about | box | {"iscrowd": int(value < _FIRST_INSTANCE)})
        if progress:
            progress(number, len(files))
    categories = [{"id": number, "name": label.name} for number, label in kinds.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_instances(path: Path) -> NDArray[np.uint16]:
    """Decode an `*_instanceIds.png`, uint16 H x W.

    Raises: DataError naming the path for a file that is damaged or holds no instance ids.
    """
    pixels = np.asarray(decoded(read_file(path), path, color=False))
    if pixels.ndim != 2 or pixels.dtype == np.uint8 or not 0 <= pixels.min() <= pixels.max() < 34 * _FIRST_INSTANCE:
        raise DataError(f"{path} holds no instance ids: they are 16-bit, label id (0-33) * 1000 + number")
    return pixels.astype(np.uint16)


def instance_counts(prediction: UInt8Array, instances: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Weighted pixels of the instances of one image that were found and missed.

    A pixel weighs (average size of its class's instances) / (size of its instance), so that each instance counts as
    one of average size. Regions that are a group or void are no instances. Both arrays are H x W.

    Returns: float64 4 x 19, by class: found, missed, and the same where any class of the category is a hit.
    """
    facts, result = tables(), np.zeros((4, 19))
    inside = instances > _FIRST_INSTANCE
    ids, guess = instances[inside].astype(np.int64), prediction[inside]
    train_of = np.full(256, IGNORE, np.uint8)  # by label id
    train_of[facts.label_ids[:19]] = range(19)
    truth = train_of[ids // _FIRST_INSTANCE]
    category = np.full(256, -1)
    category[:19] = facts.category_of
    sizes = np.bincount(ids)
    hits = np.bincount(ids, guess == truth, sizes.size)
    category_hits = np.bincount(ids, category[guess] == category[truth], sizes.size)
    for instance in np.flatnonzero(sizes):
        label = train_of[instance // _FIRST_INSTANCE]
        if label == IGNORE:
            continue  # caravans and trailers are instances that the benchmark leaves out
        size = sizes[instance]
        weight = facts.sizes[label] / size
        for row, found in ((0, hits[instance]), (2, category_hits[instance])):
            result[row : row + 2, label] += found * weight, (size - found) * weight
    return result


def instance_iou(
    counts: NDArray[np.float64], confusion: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """iIoU = iTP / (iTP + FP + iFN) by class and by category, percent; FP are plain pixels.

    Args:
        counts: the sum of `instance_counts` over the images.
        confusion: int64 19 x 19 over the same images.

    Returns:
        19 classes and 7 categories; NaN for those without instances, or that do not occur.
    """
    facts = tables()
    false = confusion.sum(0) - np.diagonal(confusion)
    by_class = _ratio(counts[0], counts[1], false)
    by_class[np.isnan(facts.sizes)] = np.nan
    members = np.array(facts.category_of) == np.arange(len(facts.categories))[:, None]
    false = np.array([confusion[~own][:, own].sum() for own in members])
    by_category = _ratio(members @ counts[2], members @ counts[3], false)
    by_category[~np.array(facts.instance_categories)] = np.nan
    return by_class, by_category


def _ratio(found: NDArray[Any], missed: NDArray[Any], false: NDArray[Any]) -> NDArray[np.float64]:
    whole = found + missed + false
    return np.divide(100 * found, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


# --- the script ---


def is_truth(label: Path) -> bool:
    """Whether the script reads a label file as ground truth."""
    return label.stem.endswith("_labelIds")


def refuse_unscorable(labels: Sequence[Path]) -> None:
    """Raises: DataError when the script could not read these files as its ground truth."""
    wrong = next((path for path in labels if not is_truth(path)), None)
    if wrong:
        raise DataError(f"--official needs Cityscapes' *_labelIds.png as ground truth, found {wrong}; leave it out")


def write_prediction(folder: Path, name: str, prediction: UInt8Array) -> Path:
    """Write train ids (uint8 H x W) as the PNG of label ids that the benchmark takes; returns its path."""
    path = prediction_file(folder, name)
    write_png(path, tables().label_ids[prediction])
    return path


def prediction_file(folder: Path, name: str) -> Path:
    """Where `write_prediction` puts an image."""
    return folder / f"{name}_pred_labelIds.png"


def script_scores(
    predictions: Sequence[Path], truths: Sequence[Path], progress: Progress | None = None
) -> dict[str, Any]:
    """What cityscapesscripts' pixel-level evaluation says, as its result dictionary; IoU there are shares of 1.

    Its own instance score is switched off: it calls `numpy.in1d`, which numpy 2.4 no longer has.

    Args:
        predictions: PNGs of label ids.
        truths: PNGs of label ids, in the same order.
        progress: called with (images done, images in all).

    Raises:
        DataError: the script refuses a file; the message has its own words.
    """
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    settings = copy.copy(script.args)
    settings.evalInstLevelScore = settings.evalPixelAccuracy = settings.JSONOutput = False
    settings.quiet = True
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return script.evaluateImgLists(_Watched(predictions, progress), [str(p) for p in truths], settings)
    except SystemExit:
        reason = said.getvalue().strip().removeprefix("ERROR: ")
        raise DataError(f"the Cityscapes script stopped: {' '.join(reason.split())}") from None


class _Watched(list[str]):
    """The list of predictions; its reading by the script is the only sign of how far it is."""

    def __init__(self, paths: Sequence[Path], progress: Progress | None) -> None:
        super().__init__(map(str, paths))
        self.progress = progress or (lambda done, total: None)

    def __getitem__(self, index: Any) -> Any:
        self.progress(index, len(self))
        return super().__getitem__(index)


def agreement(official: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """Compare the script's result with ours: every class, every category, both means and every pixel count.

    Args:
        official: as `script_scores` returns it.
        scores: as `segmv3.evaluation.scores.scores` returns them.

    Returns:
        What was compared, as JSON types.

    Raises:
        OfficialError: a score differs by more than `TOLERANCE`; the first such score is named.
    """
    classes, categories = official["classScores"], official["categoryScores"]
    compared = [
        *((row["name"], row["iou"], classes[row["name"]]) for row in scores["classes"]),
        ("mean of classes", scores["miou"], official["averageScoreClasses"]),
        *((f"category {row['name']}", row["iou"], categories[row["name"]]) for row in scores["categories"]),
        ("mean of categories", scores["category_miou"], official["averageScoreCategories"]),
    ]
    largest = 0.0
    for name, value, share in compared:
        mine, other = np.nan if value is None else value, 100 * share
        if np.isnan(mine) != np.isnan(other) or abs(mine - other) > TOLERANCE:
            raise OfficialError(f"IoU of {name} is {mine!r} % here and {other!r} % by cityscapesscripts; not reported")
        largest = max(largest, 0.0 if np.isnan(mine) else abs(mine - other))
    ids = tables().label_ids[:19]
    counted = np.array(official["confMatrix"], np.int64)[np.ix_(ids, ids)]
    if not np.array_equal(counted, scores["confusion_matrix"]):
        raise OfficialError("the confusion matrix differs from that of cityscapesscripts; not reported")
    return {
        "script": f"cityscapesscripts {version('cityscapesscripts')}",
        "compared": len(compared),
        "pixels": int(counted.sum()),
        "largest_difference": largest,
        "miou": 100 * official["averageScoreClasses"],
        "category_miou": 100 * official["averageScoreCategories"],
    }
