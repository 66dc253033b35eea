"""Opening classifiers, weights or exported files, behind one callable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from segmv3.checkpoint import Card
from segmv3.config import Device
from segmv3.convert.base import Target
from segmv3.data.view import View, center_crop, trained_view
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.runtime.backends import Arithmetic, Backend, BackendName, OnBackend
from segmv3.runtime.loading import Wish, open_export, target_here
from segmv3.weights.opening import open_classifier


class ClassPredictor(OnBackend):
    """`classify(image) -> [(name, share), ...]` for one net.

    Attributes:
        card: what the file says of itself; `card.names` are the classes.
        view: how a picture is resized and cropped for the net.
    """

    def __init__(self, backend: Backend, card: Card) -> None:
        super().__init__(backend, card)
        self.view = View(**trained_view(card.facts))

    def logits(self, crops: UInt8Array) -> Tensor:
        """Run the net on pictures that are cropped already.

        Args:
            crops: uint8 N x H x W x 3, RGB.

        Returns:
            float32 N x classes, on the CPU.

        Raises:
            ModelError: a size that an export of fixed size does not take.
        """
        found = self._backend.run(np.ascontiguousarray(crops))
        return found.float().cpu() if isinstance(found, Tensor) else torch.from_numpy(np.array(found, np.float32))

    def probabilities(self, image: UInt8Array) -> Tensor:
        """Of all classes, for one picture.

        Args:
            image: uint8 H x W x 3, RGB, any size.

        Returns:
            float32 classes, which sum to 1.
        """
        return self.logits(center_crop(image, self.view)[None])[0].softmax(0)

    def __call__(self, image: UInt8Array, top: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes of a picture with their probabilities, the first one first."""
        best = self.probabilities(image).topk(min(top, len(self.card.names)))
        return [(self.card.names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def load_classifier(
    source: Path | str,
    *,
    backend: Literal["auto"] | BackendName = "auto",
    threads: int | None = None,
    device: Device = "auto",
    precision: Literal["auto"] | Arithmetic = "auto",
    trust: bool = False,
    targets: Sequence[Target] = (),
) -> ClassPredictor:
    """Open a classifier: weights of segmv3 or of a project it can import, a published name, or an export.

    Args:
        source: such as "best.safetensors", "torchvision/mobilenet_v3_large" or "net.onnx".
        backend: weights run on torch; an export has its own.
        threads: CPU threads of this process; None leaves them as they are.
        device: "auto" takes a GPU when there is one, unless the source is an export.
        precision: "auto" is fp32, and an export's own.
        trust: as in `segmv3.load`.
        targets: as in `segmv3.load`.

    Returns:
        A function from an image, uint8 H x W x 3 RGB, to pairs (class, probability), the likeliest first.

    Raises:
        CheckpointError: the file cannot be used, or is no classifier.
        ModelError: a backend or precision is missing here.
        ResourceError: the device is not there.
    """
    path = Path(source)
    target = target_here(path, targets)
    wish = Wish(backend, threads, device, precision)
    wish.refuse_unknown(target)
    if target:
        return ClassPredictor(*open_export(path, target, wish, trust=trust, classifier=True))
    model, card = open_classifier(source)
    if backend not in ("auto", "torch"):
        raise ModelError(f"{source} runs with torch; segmv3 export {source} writes a file for {backend}")
    return ClassPredictor(wish.on_torch(model), card)
