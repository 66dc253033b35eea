"""Top-1 and top-5: the loop over pictures, used by training and by `segmv3 classify`."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmv3.checkpoint import Card
from segmv3.data.class_folders import Pictures
from segmv3.data.view import VIEW, center_crop, trained_view
from segmv3.imagenet.settings import ImageFolder
from segmv3.images import UInt8Array
from segmv3.models.classifier import ImageClassifier
from segmv3.pipeline import CORES, work_ahead
from segmv3.runtime.classifying import ClassPredictor

_TOP = 5
_BATCH = 64


def count_hits(
    model: ImageClassifier | ClassPredictor,
    pictures: Pictures,
    data: ImageFolder,
    *,
    device: torch.device | None = None,
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a net over a split, on the centre crop of each picture.

    Args:
        model: a net, or a predictor.
        data: how the crop is made.
        device: where to run a net; a predictor has a device of its own.
        indices: the pictures to score, all by default.
        progress: called with (pictures done, pictures in all).

    Returns:
        int64 classes x 3: pictures of each class, how many of them are the net's first choice, and how many are among
        its first five. Counts of disjoint shares of a split add up.
    """
    indices = range(len(pictures)) if indices is None else indices
    hits = torch.zeros(len(pictures.classes), 3, dtype=torch.int64)

    def read(index: int) -> tuple[UInt8Array, int]:
        image, target = pictures.read(index)
        return center_crop(image, data), target

    done = 0
    with work_ahead(read, indices, threads=min(16, CORES)) as samples:
        while batch := list(islice(samples, _BATCH)):
            target = torch.tensor([target for _, target in batch])
            logits = _logits(model, np.stack([image for image, _ in batch]), device)
            right = logits.topk(min(_TOP, logits.shape[1])).indices.cpu() == target[:, None]
            row = torch.stack([torch.ones_like(target), right[:, 0].long(), right.any(1).long()], dim=1)
            hits.index_add_(0, target, row)
            done += len(batch)
            if progress:
                progress(done, len(indices))
    return hits


def _logits(model: ImageClassifier | ClassPredictor, images: UInt8Array, device: torch.device | None) -> Tensor:
    if isinstance(model, ClassPredictor):
        return model.logits(images)
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # channels last already
    with torch.inference_mode():
        return model(pixels).float()


def accuracies(hits: Tensor, pictures: Pictures, data: ImageFolder) -> dict[str, Any]:
    """Scores with what they were measured on, as JSON types; percent, None for what cannot be told.

    Args:
        hits: from `count_hits`, summed over everything that was scored.
    """
    total, top1, top5 = (int(count) for count in hits.sum(0))
    five = len(pictures.classes) >= _TOP  # with fewer classes it would be 100 % or no top-5 at all
    return {
        "dataset": pictures.title,
        "split": pictures.split,
        "images": total,
        "images_in_split": len(pictures),
        "top1": _percent(top1, total),
        "top5": _percent(top5, total) if five else None,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in view_of(data).items()},
        "classes": [
            {
                "name": name,
                "images": count,
                "top1": _percent(first, count),
                "top5": _percent(among, count) if five else None,
            }
            for name, (count, first, among) in zip(pictures.classes, hits.tolist(), strict=True)
        ],
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def view_of(data: ImageFolder) -> dict[str, Any]:
    """The settings that decide what a net is shown of a picture."""
    return {name: getattr(data, name) for name in VIEW}


def differing_view(card: Card, data: ImageFolder) -> str:
    """The flags that would show a net pictures as in its training; "" where `data` does so."""
    now, trained = view_of(data), trained_view(card.facts)
    differing = {name: value for name, value in trained.items() if now[name] != value}
    return " ".join(
        f"--data.{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in differing.items()
    )
