"""The callable that `segmv3.load` returns."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmv3.checkpoint import Card
from segmv3.convert.graph import Output
from segmv3.decode import label_map, label_map_and_confidence
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.runtime.backends import Backend, OnBackend

STAGES = ("prepare", "net", "labels")
"""What `Predictor.timings` tells apart: checking the pixels, the net itself, from low-resolution logits to labels."""


class Predictor(OnBackend):
    """`predict(image) -> labels` for one net.

    It may be called from several threads at once, and in a forked process (there with one thread, on the CPU). Pickling
    keeps the name and the digest of the file and how it was opened; the other process opens the file again.

    Attributes:
        card: what the weight file says of itself.
    """

    def __init__(
        self, backend: Backend, card: Card, again: tuple[Callable[..., "Predictor"], tuple[Any, ...]] | None = None
    ) -> None:
        """`again` is a function that opens the same net in another process, and its arguments."""
        super().__init__(backend, card)
        self._again = again
        self._own = threading.local()

    def __reduce__(self) -> tuple[Callable[..., "Predictor"], tuple[Any, ...]]:
        if self._again is None:
            raise ModelError("this predictor was not opened from a file, so no other process can; use segmv3.load")
        return self._again

    def __copy__(self) -> Self:
        return self  # nothing in it ever changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of each of `STAGES` in the last call of this thread; empty before its first."""
        return dict(getattr(self._own, "timings", {}))

    @property
    def classes(self) -> Classes:
        """Names and colours of the train ids."""
        return self.card.classes

    @property
    def threads(self) -> int:
        """CPU threads of the net."""
        return self._backend.threads

    @property
    def size(self) -> tuple[int, int] | None:
        """The only (height, width) that a fixed-size export takes; None for any."""
        return self._backend.size

    @property
    def output(self) -> Output:
        """What the net gives: low-logits, logits, or labels alone."""
        return self._backend.output

    def refuse_labels_alone(self) -> None:
        """Refuse an export that gives labels alone, where logits are needed.

        Raises:
            ModelError: this is one.
        """
        if self.output == "labels":
            raise ModelError("this export gives labels alone; export it again with --output-kind low-logits")

    def low_logits(self, image: Tensor) -> Tensor:
        """What the labels are made of, before it is enlarged to the image.

        Args:
            image: uint8 N x 3 x H x W, RGB.

        Returns:
            float N x classes x h x w on the CPU or GPU; h x w is the net's own resolution, or H x W for an export with
            output "logits".

        Raises:
            ModelError: as for a call, and for an export that gives labels alone.
        """
        self.refuse_labels_alone()
        output = self._backend.run(_checked(image.permute(0, 2, 3, 1).cpu().numpy()))
        return output if isinstance(output, Tensor) else torch.from_numpy(np.array(output))  # its memory is reused

    def labels_of(self, image: Tensor) -> Tensor:
        """Label a batch of tensors: uint8 N x 3 x H x W, RGB, to uint8 N x H x W."""
        return torch.from_numpy(self(image.permute(0, 2, 3, 1).cpu().numpy()))

    def __call__(self, image: UInt8Array) -> UInt8Array:
        """Label every pixel.

        Args:
            image: uint8 H x W x 3, RGB, any size; or a batch, uint8 N x H x W x 3.

        Returns:
            uint8 H x W, train ids 0..classes-1; for a batch uint8 N x H x W.

        Raises:
            ModelError: the array has another shape or dtype, or a size that a fixed-size export does not take.
        """
        return self._timed(image, self._labels)

    def labels_and_confidence(self, image: UInt8Array) -> tuple[UInt8Array, NDArray[np.float32]]:
        """As a call, and how sure the net is of each pixel.

        Both are made from the low-resolution logits: no map of all classes is held at full size.

        Args:
            image: as for a call.

        Returns:
            The labels, and float32 of the same shape: the probability (softmax) of the class of each pixel.

        Raises:
            ModelError: as a call, and for an export that gives labels alone.
        """
        self.refuse_labels_alone()
        return self._timed(image, lambda output, size: label_map_and_confidence(output, size, threads=self.threads))

    def _labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        # cloned, for what a runtime returns may be its own memory
        return output.clone() if self.output == "labels" else label_map(output, size, threads=self.threads)

    def _timed(self, image: UInt8Array, decode: Callable[[Tensor, tuple[int, int]], Any]) -> Any:
        """Run the net, then `decode` its output: one tensor, or several. Note how long each stage takes."""
        start = time.perf_counter()
        images = _checked(image)
        prepared = time.perf_counter()
        output = torch.as_tensor(self._backend.run(images))
        if self.device == "cuda":
            torch.cuda.synchronize()
        calculated = time.perf_counter()
        decoded = decode(output, (images.shape[1], images.shape[2]))
        several = isinstance(decoded, tuple)
        found = [each.cpu().numpy() for each in (decoded if several else (decoded,))]
        end = time.perf_counter()
        self._own.timings = dict(zip(STAGES, (prepared - start, calculated - prepared, end - calculated), strict=True))
        if np.ndim(image) == 3:
            found = [each[0] for each in found]
        return tuple(found) if several else found[0]

    def stream(self, images: Iterable[UInt8Array]) -> Iterator[UInt8Array]:
        """The labels of each image in turn, one at a time in memory.

        Args:
            images: uint8 H x W x 3, RGB, of any size; they may differ in size.
        """
        return map(self, images)


def _checked(image: UInt8Array) -> UInt8Array:
    """Make a batch that every runtime takes without copying it."""
    image = np.asarray(image)
    if image.dtype != "uint8" or image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        raise ModelError(f"an image must be uint8 H x W x 3 (RGB), found {image.dtype} {image.shape}")
    return np.require(image if image.ndim == 4 else image[None], requirements=["C", "W"])
