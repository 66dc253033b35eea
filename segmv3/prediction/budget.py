"""Labels within a time budget: a smaller input, and if that is not enough, labels that are kept for some frames."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmv3.decode import label_map
from segmv3.images import UInt8Array
from segmv3.inference import resize_image, scaled_size
from segmv3.runtime.predictor import Predictor

SCALES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
_ROUNDS = 5


@dataclass(frozen=True)
class Choice:
    """How pictures of one size are labelled."""

    scale: float
    """Of the net's input."""
    stride: int
    """Every so many frames are labelled; the others get the labels before."""
    milliseconds: float
    """Of one labelled picture, the median of some."""
    agreement: float
    """Share of the pixels of the measured picture that get the label of the whole size."""

    def __str__(self) -> str:
        kept = f", every {self.stride}. frame" if self.stride > 1 else ""
        return (
            f"the net sees {self.scale:.0%} of each side{kept}: {self.milliseconds:.1f} ms a labelled picture; "
            f"{self.agreement:.1%} of the pixels get the label that they get at the whole size"
        )


class Budgeted:
    """A predictor that keeps to a time for each picture, on average, on this machine.

    It measures the net at several input sizes on the first picture, and again when pictures of another size come.
    """

    def __init__(self, net: Predictor, milliseconds: float, say: Callable[[str], None], *, frames: bool) -> None:
        """Wrap a predictor.

        Args:
            net: any predictor that takes every size.
            milliseconds: for one picture.
            say: told what was chosen.
            frames: whether the pictures are frames of one video, so that labels can be kept for some of them.
        """
        self._net, self._budget, self._say, self._frames = net, milliseconds, say, frames
        self.threads = net.threads
        self._size: tuple[int, int] | None = None
        self._choice = Choice(1.0, 1, 0.0, 1.0)
        self._logits = torch.empty(0)
        self._number = 0

    def low_logits(self, image: Tensor) -> Tensor:
        """As `Predictor.low_logits`, of a smaller picture or of one before."""
        size = (int(image.shape[2]), int(image.shape[3]))
        if size != self._size:
            self._size, self._number = size, 0
            self._choice = self._chosen(image)
            self._say(f"--budget-ms {self._budget:g}: {self._choice}")
        if self._number % self._choice.stride == 0:
            self._logits = self._at(image, self._choice.scale)
        self._number += 1
        return self._logits

    def __call__(self, image: UInt8Array) -> UInt8Array:
        """As a call of a `Predictor`, of one picture."""
        return self._labels(self.low_logits(torch.from_numpy(image).permute(2, 0, 1)[None]), image.shape[:2])

    def _labels(self, logits: Tensor, size: tuple[int, ...]) -> UInt8Array:
        return label_map(logits, (size[0], size[1]), threads=self.threads)[0].cpu().numpy()

    def _at(self, image: Tensor, scale: float) -> Tensor:
        if scale < 1:
            image = resize_image(image, scaled_size((int(image.shape[2]), int(image.shape[3])), scale))
        return self._net.low_logits(image)

    def _chosen(self, image: Tensor) -> Choice:
        """The largest input within the budget; else the smallest, and labels kept where that is possible."""
        whole = None
        for scale in SCALES:
            times = []
            for _ in range(_ROUNDS):
                start = time.perf_counter()
                labels = self._labels(self._at(image, scale), image.shape[2:])
                times.append(1000 * (time.perf_counter() - start))
            took = statistics.median(times[1:])  # the first one gets ready
            whole = labels if whole is None else whole
            if took <= self._budget or scale == SCALES[-1]:
                stride = math.ceil(took / self._budget) if self._frames else 1
                return Choice(scale, stride, took, float(np.mean(labels == whole)))
        raise AssertionError
