"""Labels of a video with less flicker: logits are averaged over time where the picture does not move."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.decode import label_map
from segmv3.images import UInt8Array
from segmv3.runtime.predictor import Predictor

_HOLD = 0.8  # weight of the frames before, where nothing moves
_STILL = 8.0  # grey levels, of a cell's mean, from which on it moves

_Ids = NDArray[np.intp]


class Steady:
    """`predict(frame) -> labels` for the frames of one video in their order.

    A cell of the net's own resolution (8 x 8 pixels, as a rule) keeps up to 80 % of the logits before if it and its
    neighbours look as they did. What moves is labelled as without.

    Attributes:
        flicker: (without, with): share of the cells that change their label although the picture does not move there.
        unmoved: cells that stood still, over all frames.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.threads = predictor.threads
        self._before: tuple[UInt8Array, Tensor, _Ids, _Ids] | None = None
        self._changed = np.zeros(2)
        self.unmoved = 0

    @property
    def flicker(self) -> tuple[float, float]:
        without, steady = self._changed / max(self.unmoved, 1)
        return float(without), float(steady)

    def __call__(self, frame: UInt8Array) -> UInt8Array:
        """Label a frame: uint8 H x W x 3, RGB, to uint8 H x W."""
        logits = self.low_logits(torch.from_numpy(frame).permute(2, 0, 1)[None])
        return label_map(logits, frame.shape[:2], threads=self.threads)[0].numpy()

    def low_logits(self, image: Tensor) -> Tensor:
        """The logits of a frame, averaged with those before. Another size than before begins anew.

        Args:
            image: uint8 1 x 3 x H x W, RGB.

        Returns:
            float32 1 x classes x h x w.

        Raises:
            ModelError: the net is an export that gives labels alone.
        """
        logits = self._predictor.low_logits(image).cpu().float()
        height, width = logits.shape[2:]
        cells = cv2.resize(image[0].permute(1, 2, 0).cpu().numpy(), (width, height), interpolation=cv2.INTER_AREA)
        now = best = _best(logits)
        steady = logits
        if self._before is not None and self._before[0].shape == cells.shape:
            seen, held, raw, shown = self._before
            stillness = _stillness(seen, cells)
            steady = torch.lerp(logits, held, torch.from_numpy(_HOLD * stillness))
            best, still = _best(steady), stillness > 0.5
            self.unmoved += int(np.count_nonzero(still))
            self._changed += [np.count_nonzero(change & still) for change in (raw != now, shown != best)]
        self._before = cells, steady, now, best
        return steady


def _best(logits: Tensor) -> _Ids:
    return np.argmax(logits[0].numpy(), 0)  # five times as fast as torch's


def _stillness(before: UInt8Array, now: UInt8Array) -> NDArray[np.float32]:
    """1 where a cell and its neighbours look as before, 0 where one of them moves: float32 h x w."""
    change = cv2.absdiff(before, now).max(2)
    change = cv2.dilate(change, np.ones((3, 3), np.uint8))
    return np.clip(1 - change.astype(np.float32) / np.float32(_STILL), 0, 1)
