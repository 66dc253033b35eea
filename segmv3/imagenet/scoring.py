"""Top-1 and top-5: the loop over pictures, used by training and by `segmv3 classify`."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmv3.checkpoint import Card
from segmv3.config import Precision, mistyped
from segmv3.data.loader import read_ahead
from segmv3.errors import CheckpointError, ConfigError, Segmv3Warning
from segmv3.imagenet.pictures import Pictures
from segmv3.imagenet.settings import ImageFolder
from segmv3.imagenet.transforms import center_crop
from segmv3.images import UInt8Array
from segmv3.labels import are_numbered
from segmv3.models.classifier import ImageClassifier

_TOP = 5
_BATCH = 64
_VIEW = ("resize", "crop_size", "interpolation")


def count_hits(
    model: ImageClassifier,
    pictures: Pictures,
    data: ImageFolder,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a net over a split, on the centre crop of each picture.

    Args: data: how the crop is made. indices: the pictures to score, all by default. progress: called with
        (pictures done, pictures in all).
    Returns: int64 classes x 3: pictures of each class, how many of them are the net's first choice, and how many
        are among its first five. Counts of disjoint shares of a split add up.
    """
    indices = range(len(pictures)) if indices is None else indices
    hits = torch.zeros(model.num_classes, 3, dtype=torch.int64)

    def read(index: int) -> tuple[UInt8Array, int]:
        image, target = pictures.read(index)
        return center_crop(image, data), target

    done = 0
    samples = read_ahead(read, indices, threads=min(16, os.cpu_count() or 2))
    while batch := list(islice(samples, _BATCH)):
        target = torch.tensor([target for _, target in batch])
        logits = _logits(model, np.stack([image for image, _ in batch]), device, precision)
        right = logits.topk(min(_TOP, model.num_classes)).indices.cpu() == target[:, None]
        row = torch.stack([torch.ones_like(target), right[:, 0].long(), right.any(1).long()], dim=1)
        hits.index_add_(0, target, row)
        done += len(batch)
        if progress:
            progress(done, len(indices))
    return hits


def _logits(model: ImageClassifier, images: UInt8Array, device: torch.device, precision: Precision) -> Tensor:
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # channels last already
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(pixels).float()


def accuracies(hits: Tensor, pictures: Pictures, data: ImageFolder) -> dict[str, Any]:
    """Scores with what they were measured on, as JSON types; percent, None for what cannot be told.

    Args: hits: from `count_hits`, summed over everything that was scored.
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


def probabilities(model: ImageClassifier, image: UInt8Array, data: ImageFolder, *, device: torch.device) -> Tensor:
    """Of all classes, for one picture.

    Args: image: uint8 H x W x 3, RGB, any size. data: how the centre crop is made.
    Returns: float32 classes, on the CPU.
    """
    return _logits(model, center_crop(image, data)[None], device, "fp32")[0].softmax(0).cpu()


def view_of(data: ImageFolder) -> dict[str, Any]:
    """The settings that decide what a net is shown of a picture."""
    return {name: getattr(data, name) for name in _VIEW}


def trained_view(card: Card) -> dict[str, Any]:
    """The settings of `view_of` that a net was trained with, as far as its weight file knows them."""
    config, origin = card.facts.get("config"), card.facts.get("origin")
    data = config.get("data") if isinstance(config, dict) else origin.get("view") if isinstance(origin, dict) else None
    stored = data if isinstance(data, dict) else {}
    view: dict[str, Any] = {name: stored[name] for name in _VIEW if name in stored}
    view = {name: tuple(value) if isinstance(value, list) else value for name, value in view.items()}
    try:
        usable = not mistyped(replace(ImageFolder(root=Path()), **view))
    except (ConfigError, TypeError):
        usable = False
    return view if usable else {}


def differing_view(card: Card, data: ImageFolder) -> str:
    """The flags that would show a net pictures as in its training; "" where `data` does so."""
    now, trained = view_of(data), trained_view(card)
    differing = {name: value for name, value in trained.items() if now[name] != value}
    return " ".join(
        f"--data.{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in differing.items()
    )


def as_trained(card: Card, data: ImageFolder) -> ImageFolder:
    """Settings that show a net pictures as in its training."""
    return replace(data, **trained_view(card))


def check_classes(card: Card, classes: tuple[str, ...], path: Path | str) -> None:
    """Refuse weights for other classes than those of a data set.

    ImageNet's folders are WordNet ids and weights often carry readable names: a thousand of each are taken to be
    the same classes in the same order, which is the usual one.

    Raises: CheckpointError saying what differs.
    """
    if len(card.names) != len(classes):
        raise CheckpointError(
            f"{path} tells {len(card.names)} classes apart, the data has {len(classes)} class folders"
        )
    if card.names == classes:
        return
    if are_numbered(card.names):
        warnings.warn(
            Segmv3Warning(f"{path} names no classes; the n-th class folder ({classes[0]} first) is taken for the n-th"),
            stacklevel=2,
        )
        return
    if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        warnings.warn(
            Segmv3Warning(
                f"{path}: the class folders are WordNet ids; the n-th of them is taken for the n-th class "
                f"({classes[0]} for {card.names[0]!r})"
            ),
            stacklevel=2,
        )
        return
    pair = next((a, b) for a, b in zip(card.names, classes, strict=True) if a != b)
    raise CheckpointError(f"{path} was trained for other classes ({pair[0]!r} where the data has {pair[1]!r})")
