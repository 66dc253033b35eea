"""Weights by file or by published name, whoever wrote them, as nets that are ready to use."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmv3 import checkpoint
from segmv3.checkpoint import Card
from segmv3.errors import CheckpointError, Segmv3Warning
from segmv3.labels import Classes, cityscapes_classes, numbered_classes
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
