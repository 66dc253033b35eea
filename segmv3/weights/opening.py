"""Weights by file or by published name, whoever wrote them, as nets that are ready to use."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3 import checkpoint
from segmv3.checkpoint import Card
from segmv3.errors import CheckpointError, Segmv3Warning
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Classifier, Detector, Model, Part
from segmv3.models.segmenter import Segmenter
from segmv3.screen import print_line
from segmv3.weights.hub import PREFIX, pull
from segmv3.weights.importing import Imported, import_weights
from segmv3.weights.names import find

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".pdparams")


def open_weights(
    source: Path | str, *, variant: str | None = None, offline: bool = False, say: Callable[[str], None] = print_line
) -> Imported:
    """Read a weight file of segmv3 or of another project, or fetch one by its published name or `hub:USER/NAME`.

    Raises: CheckpointError for what is neither, cannot be had or cannot be read.
    """
    path = Path(source := _local(source, offline=offline))
    if variant is not None and not path.exists():
        raise CheckpointError(f"--variant is for files; {source} says by its name what it is")
    if path.exists() or path.is_absolute() or path.suffix.lower() in SUFFIXES:
        return import_weights(path, variant=variant)
    return find(str(source), offline=offline, say=say)


def open_segmenter(source: Path | str, parts: Iterable[Part] = ()) -> tuple[Segmenter, Card]:
    """A segmentation net in eval mode on the CPU, and what its file says of itself.

    Args:
        source: a weight file, a published name or `hub:USER/NAME`.
        parts: classes of heads and backbones that are not segmv3's own.

    Raises:
        CheckpointError: as `open_weights`, and for weights of another kind.

    Warns:
        Segmv3Warning: a part of the net was never trained, or the file leaves something open.
    """
    return _opened(source, Model, parts)


def open_classifier(source: Path | str) -> tuple[ImageClassifier, Card]:
    """A classification net, as `open_segmenter`."""
    return _opened(source, Classifier)


def open_detector(source: Path | str) -> "tuple[ObjectDetector, Card]":
    """A detection net, as `open_segmenter`."""
    return _opened(source, Detector)


def open_net(source: Path | str, parts: Iterable[Part] = ()) -> tuple[Segmenter | ImageClassifier, Card]:
    """A net that labels pixels or whole pictures, as `open_segmenter`."""
    return _opened(source, Model | Classifier, parts)


def _opened(source: Path | str, kind: Any, parts: Iterable[Part] = ()) -> Any:
    """A net of this kind, or of one of these, and its card."""
    source = _local(source)
    path = Path(source)
    if path.is_file() and checkpoint.is_ours(path):
        model, card = checkpoint.load_net(path, kind, parts)
        if new := card.facts.get("untrained"):
            text = f"{source} is a start for training: {new} was never trained, so its labels mean nothing"
            warnings.warn(Segmv3Warning(text), stacklevel=3)
        return model, card
    imported = open_weights(source)
    checkpoint.check_kind(imported.net, kind, source)
    model = imported.model()
    for note in imported.notes:
        warnings.warn(Segmv3Warning(f"{source}: {note}"), stacklevel=3)
    colors = imported.classes.colors if not isinstance(imported.net, Classifier) else ()
    facts = {"version": checkpoint.package_version(), "commit": "", "origin": imported.origin}
    return model, Card(imported.names, colors, facts, imported.origin["sha256"])


def _local(source: Path | str, *, offline: bool = False) -> Path | str:
    """The file of a net on the Hub; anything else as it is."""
    return pull(str(source), offline=offline) if str(source).startswith(PREFIX) else source
