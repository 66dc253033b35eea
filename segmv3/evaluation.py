"""The loop over a validation set, used by training and by `segmv3 evaluate`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmv3.config import Precision
from segmv3.data.datasets import Dataset
from segmv3.data.loader import read_ahead
from segmv3.data.transforms import eval_transforms, transform
from segmv3.decode import label_map
from segmv3.images import UInt8Array
from segmv3.inference import MULTI_SCALES, multi_scale_flip
from segmv3.metrics import ConfusionMatrix
from segmv3.models.segmenter import Segmenter

LabelsFunction = Callable[[Tensor], Tensor]
"""Image uint8 1 x 3 x H x W (RGB) to labels uint8 1 x H x W."""


def single_scale(model: Segmenter) -> LabelsFunction:
    """The net on the image as it is."""
    return lambda image: label_map(model.low_logits(image).float(), (image.shape[2], image.shape[3]))


def multi_scale(model: Segmenter) -> LabelsFunction:
    """Multi-scale and flip, as in the mmsegmentation table."""
    return lambda image: multi_scale_flip(model, image).argmax(1).to(torch.uint8)


def evaluate(
    labels_of: LabelsFunction,
    dataset: Dataset,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConfusionMatrix:
    """Score a net on a split, one image at a time, at the size of its ground truth.

    Args: indices: the images to score, all by default. progress: called with (images done, images in all).
    """
    indices = range(len(dataset)) if indices is None else indices
    confusion, transforms = ConfusionMatrix(len(dataset.classes)), eval_transforms()

    def read(index: int) -> tuple[UInt8Array, UInt8Array]:
        return transform(transforms, *dataset.read(index), np.random.default_rng(index))

    for done, (image, truth) in enumerate(read_ahead(read, indices), 1):
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), autocast:
            prediction = labels_of(pixels.contiguous(memory_format=torch.channels_last))
        confusion.update(prediction[0].cpu(), truth)
        if progress:
            progress(done, len(indices))
    return confusion


def scores(confusion: ConfusionMatrix, dataset: Dataset, *, images: int, multi_scale_flip: bool) -> dict[str, Any]:
    """All scores with what they were measured on, as JSON types; percent, None for a class that is absent."""
    labelled = confusion.matrix.sum(1)
    share = 100 * labelled / max(1, labelled.sum())
    rows = zip(dataset.classes.names, confusion.iou, confusion.accuracy, share, strict=True)
    return {
        "dataset": dataset.title,
        "split": dataset.split,
        "images": images,
        "images_in_split": len(dataset),
        "scales": list(MULTI_SCALES) if multi_scale_flip else [1.0],
        "flip": multi_scale_flip,
        "miou": _number(confusion.miou),
        "mean_accuracy": _number(confusion.mean_accuracy),
        "pixel_accuracy": _number(confusion.pixel_accuracy),
        "classes": [
            {"name": name, "iou": _number(iou), "accuracy": _number(accuracy), "share": float(part)}
            for name, iou, accuracy, part in rows
        ],
        "absent": [name for name, iou in zip(dataset.classes.names, confusion.iou, strict=True) if math.isnan(iou)],
        "confusion_matrix": confusion.matrix.tolist(),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
