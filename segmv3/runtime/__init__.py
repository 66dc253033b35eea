"""Running a trained net on images, behind one callable, by the fastest means that a machine has."""

from segmv3.runtime.device import use_device
from segmv3.runtime.loading import load
from segmv3.runtime.predictor import Predictor

__all__ = ["Predictor", "load", "use_device"]
