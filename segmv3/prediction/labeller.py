"""A net as `segmv3 predict` uses it: from a picture to its labels, and to the confidence where it is asked for."""

from collections.abc import Callable
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from segmv3.decode import label_map, label_map_and_confidence
from segmv3.images import UInt8Array
from segmv3.inference import resize_image
from segmv3.labels import IGNORE
from segmv3.prediction.adapting import cropped, merged
from segmv3.prediction.budget import Budgeted
from segmv3.prediction.contract import Found
from segmv3.prediction.shapes import Box
from segmv3.prediction.steady import Steady
from segmv3.runtime.predictor import Predictor


class Logits(Protocol):
    """What gives low-resolution logits: a net, or something around one."""

    @property
    def threads(self) -> int:
        """CPU threads."""
        ...

    def low_logits(self, image: Tensor) -> Tensor:
        """uint8 N x 3 x H x W, RGB -> float N x classes x h x w."""
        ...


class Labeller:
    """`label(image) -> labels, or labels and confidence`, with everything that a user asked for.

    Attributes:
        flicker: of `--steady`, as `segmv3.prediction.steady.Steady` has it; None without.
    """

    def __init__(
        self,
        net: Predictor,
        *,
        confidence: bool = False,
        size: tuple[int, int] | None = None,
        budget: Callable[[Predictor], Budgeted] | None = None,
        steady: bool = False,
        crop: Box | None = None,
        merge: UInt8Array | None = None,
        least_confidence: float = 0.0,
    ) -> None:
        """Put the parts together.

        Args:
            net: the net.
            confidence: whether to give the confidence as well, uint8 of 0..1.
            size: show the net every picture at this height and width.
            budget: what keeps it to a time for each picture.
            steady: average over time where the picture does not move.
            crop: label this region alone.
            merge: uint8 256, the train id that each of the net's becomes.
            least_confidence: pixels of which the net is less sure than this, 0..1, become 255.

        Raises:
            ModelError: the net is an export that gives labels alone, and more is asked for.
        """
        self._net, self._crop, self._merge = net, crop, merge
        self._least_confidence = least_confidence
        self._confident = confidence or least_confidence > 0
        self._source: Any = net
        if size:
            self._source = _Resized(self._source, size)
        if budget:
            self._source = budget(self._source)
        if steady:
            self._source = Steady(self._source)
        if self._confident or self._source is not net:
            net.refuse_labels_alone()

    @property
    def flicker(self) -> tuple[float, float] | None:
        return self._source.flicker if isinstance(self._source, Steady) else None

    def __call__(self, image: UInt8Array) -> Found:
        """Label one picture, uint8 H x W x 3, RGB."""
        found = cropped(self._label, self._crop, image) if self._crop else self._label(image)
        return found if self._merge is None else merged(found, self._merge)

    def _label(self, image: UInt8Array) -> Found:
        if self._source is self._net and not self._confident:
            return self._net(image)
        size, threads = (image.shape[0], image.shape[1]), self._net.threads
        writable = np.require(image, requirements=["W"])
        logits = self._source.low_logits(torch.from_numpy(writable).permute(2, 0, 1)[None])
        if not self._confident:
            return label_map(logits, size, threads=threads)[0].cpu().numpy()
        labels, sure = label_map_and_confidence(logits, size, threads=threads)
        labels.masked_fill_(sure < self._least_confidence, IGNORE)
        return labels[0].cpu().numpy(), cv2.convertScaleAbs(sure[0].cpu().numpy(), alpha=255)


class _Resized:
    def __init__(self, source: Logits, size: tuple[int, int]) -> None:
        self._source, self._size = source, size
        self.threads = source.threads

    def low_logits(self, image: Tensor) -> Tensor:
        return self._source.low_logits(resize_image(image, self._size))
