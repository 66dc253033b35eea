"""Averaging the weights of several runs into one net."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmv3 import checkpoint
from segmv3.checkpoint import Card, Weights
from segmv3.errors import CheckpointError
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Classifier
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import build

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector


def average(sources: Sequence[Path], output: Path) -> "Segmenter | ImageClassifier | ObjectDetector":
    """Write the mean of weight files: a uniform soup (arXiv 2203.05482).

    The nets must come from the same pretrained weights or from one run. Others lie in different minima, and their mean
    is no good net. BN statistics are averaged too, as for a moving average. The file names its sources by SHA-256. It
    carries no score, because it has none yet.

    Returns: the net of the mean.
    Raises: CheckpointError for fewer than two files, files that cannot be read, or other nets or classes; nothing is
        written then.
    """
    if len(sources) < 2:
        raise CheckpointError(f"an average needs at least two weight files, found {len(sources)}")
    first, *others = read = [checkpoint.read(path) for path in sources]
    for path, weights in zip(sources[1:], others, strict=True):
        _check_same(sources[0], first, path, weights)
    tensors = {name: _mean([weights.tensors[name] for weights in read]) for name in first.tensors}
    average_of = [origin_of(path, weights.card) for path, weights in zip(sources, read, strict=True)]
    model = build(first.net, len(first.card.names))
    model.load_state_dict(tensors)
    classes = first.card.names if isinstance(first.net, Classifier) else first.card.classes
    checkpoint.save(model, output, classes=classes, average_of=average_of)
    return model


def origin_of(path: Path, card: Card) -> dict[str, Any]:
    """A weight file for the facts of what was made of it, with its own origins: the licence must not get lost."""
    own = ("origin", "pretrained", "average_of", "adapted_from", "fitted_from")
    return {"file": path.name, "sha256": card.sha256} | {key: card.facts[key] for key in own if key in card.facts}


def _mean(tensors: list[Tensor]) -> Tensor:
    """Average in float64, so that the order does not matter. Of whole numbers (BN's batch counts) take the largest."""
    stacked = torch.stack(tensors)
    if not stacked.is_floating_point():
        return stacked.amax(0)
    return stacked.double().mean(0).to(stacked.dtype)


def _check_same(path: Path, first: Weights, other_path: Path, other: Weights) -> None:
    """Raises: CheckpointError saying what differs."""
    if differing := checkpoint.net_differences(first.net, other.net):
        name, (a, b) = next(iter(differing.items()))
        raise CheckpointError(f"{other_path} holds another net than {path}: {name} {b!r}, not {a!r}")
    if first.card.names != other.card.names:
        counts = len(first.card.names), len(other.card.names)
        raise CheckpointError(
            f"{other_path} has other classes than {path}"
            + (f": {counts[1]}, not {counts[0]}" if counts[0] != counts[1] else "")
        )
