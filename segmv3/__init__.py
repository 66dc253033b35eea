"""segmv3: street-scene semantic segmentation with MobileNetV3 and LR-ASPP.

    import segmv3
    predict = segmv3.load("best.safetensors")
    labels = predict(image)  # uint8 H x W x 3 RGB -> uint8 H x W train ids

Names are loaded on first use: importing this package imports neither torch nor numpy.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Packages that report their use or ask for updates, over the internet, unless they are told before their import.
# OpenVINO and NNCF know no such switch: segmv3.convert.extras.
for _switch in ("ORT_DISABLE_TELEMETRY", "NO_ALBUMENTATIONS_UPDATE"):
    os.environ.setdefault(_switch, "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segmv3 import metrics as metrics
    from segmv3.adaptation.run import adapt as adapt
    from segmv3.checkpoint import save as save
    from segmv3.comparing import compare as compare
    from segmv3.config import Config as Config
    from segmv3.config import load_config as load_config
    from segmv3.data.importing.run import import_data as import_data
    from segmv3.detection.predictor import load_detector as load_detector
    from segmv3.evaluation.run import evaluate as evaluate
    from segmv3.evaluation.suspects import find_suspects as find_suspects
    from segmv3.exporting import export as export
    from segmv3.finetuning.run import finetune as finetune
    from segmv3.fitting.run import fit as fit
    from segmv3.images import read_image as read_image
    from segmv3.labels import Classes as Classes
    from segmv3.media.draw import colorize as colorize
    from segmv3.media.draw import overlay as overlay
    from segmv3.models.segmenter import Segmenter as Segmenter
    from segmv3.models.zoo import create_backbone as create_backbone
    from segmv3.models.zoo import create_model as create_model
    from segmv3.runtime import Predictor as Predictor
    from segmv3.runtime import load as load
    from segmv3.runtime.classifying import load_classifier as load_classifier
    from segmv3.selection.choosing import select_frames as select_frames
    from segmv3.training.loop import train as train

_ROOMS = {
    "Classes": "segmv3.labels",
    "Config": "segmv3.config",
    "Predictor": "segmv3.runtime",
    "Segmenter": "segmv3.models.segmenter",
    "adapt": "segmv3.adaptation.run",
    "compare": "segmv3.comparing",
    "colorize": "segmv3.media.draw",
    "create_backbone": "segmv3.models.zoo",
    "create_model": "segmv3.models.zoo",
    "evaluate": "segmv3.evaluation.run",
    "export": "segmv3.exporting",
    "find_suspects": "segmv3.evaluation.suspects",
    "finetune": "segmv3.finetuning.run",
    "fit": "segmv3.fitting.run",
    "import_data": "segmv3.data.importing.run",
    "load": "segmv3.runtime",
    "load_classifier": "segmv3.runtime.classifying",
    "load_config": "segmv3.config",
    "load_detector": "segmv3.detection.predictor",
    "overlay": "segmv3.media.draw",
    "read_image": "segmv3.images",
    "save": "segmv3.checkpoint",
    "select_frames": "segmv3.selection.choosing",
    "train": "segmv3.training.loop",
}

__all__ = sorted([*_ROOMS, "__version__", "metrics"])


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("segmv3.metrics")
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'segmv3' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
