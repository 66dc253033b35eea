"""Compares a net in another runtime or precision with PyTorch in fp32."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmv3.convert.graph import Output
from segmv3.decode import label_map
from segmv3.errors import ModelError
from segmv3.images import UInt8Array
from segmv3.metrics import ConfusionMatrix
from segmv3.runtime.backends import Arithmetic, Backend, Size


class DisagreementError(ModelError):
    """A converted net computes something else than PyTorch."""


Truth = UInt8Array | int | None
"""Train ids of an image, uint8 H x W, the class of a picture, or nothing."""


@dataclass(frozen=True)
class Limits:
    """How far a candidate may be from PyTorch's fp32."""

    relative_rms: float | None
    """RMS of the logits' difference over RMS of the reference; None where it was not measured."""
    label_agreement: float
    """Least share of pixels with the same label, percent."""
    miou_loss: float
    """Most that mIoU may fall, points, where there are truths."""


LIMITS: Mapping[Arithmetic, Limits] = MappingProxyType(
    {
        # Another order of summing fp32 changes the logits of every net of the zoo by 3e-7 to 1.3e-6 of their size. A
        # missing bias or another rule of enlarging changes them by 1e-3 or more. Labels may differ where two classes
        # tie to the last digit.
        "fp32": Limits(1e-4, 99.9, 0.05),
        # 11 bits of mantissa, 8 times finer than bf16.
        "fp16": Limits(5e-3, 99.5, 0.2),
        # 8 bits of mantissa: each layer is off by up to 0.4 %, and sixty in a row by 0.5 to 1.9 % (seen on all nets of
        # the zoo). A trained net keeps 98.7 to 99.9 % of its labels, the least on images of a few cells; a fresh one,
        # whose logits hardly differ, may keep 96 %, and is better run in fp32.
        "bf16": Limits(0.03, 98.0, 0.5),
        # 256 steps for all values of a map: 3 to 7 % off, and 98.7 to 99.6 % of the labels (CamVid, Small). What the
        # logits are worth is what labels come out of them.
        "int8": Limits(None, 90.0, 2.0),
    }
)


def limits_of(precision: Arithmetic, output: Output) -> Limits:
    """The limits of a candidate. Few pictures prove a classifier, and int8 turns close ones: 80 % must stay."""
    limits = LIMITS[precision]
    return replace(limits, label_agreement=80.0) if (precision, output) == ("int8", "class-logits") else limits


@dataclass(frozen=True)
class SizeAgreement:
    """How well candidate and reference agree on images of one size."""

    size: Size
    """Height and width."""
    images: int
    max_logit_difference: float | None
    """None where the candidate gives labels only."""
    relative_rms: float | None
    label_agreement: float
    """Percent of all pixels; of all pictures for a classifier, whose label is its first choice."""


@dataclass(frozen=True)
class Agreement:
    """How well candidate and reference agree."""

    sizes: tuple[SizeAgreement, ...]
    """Agreement by size, in the order in which sizes came."""
    scored_images: int = 0
    """Images with a truth."""
    output: Output = "low-logits"
    """What the candidate gives."""
    miou_reference: float | None = None
    """Percent, over the images with a truth; None without any."""
    miou_candidate: float | None = None
    top1_reference: float | None = None
    """Percent of the pictures with a truth; classifiers only."""
    top1_candidate: float | None = None

    @property
    def miou_loss(self) -> float | None:
        """Points that the candidate loses; None without truths."""
        if self.miou_reference is None or self.miou_candidate is None:
            return None
        return self.miou_reference - self.miou_candidate

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, under the names of the kind of net."""
        classifies = self.output == "class-logits"
        sizes = [asdict(size) | {"size": list(size.size)} for size in self.sizes]
        for size in sizes if classifies else ():
            size["top1_agreement"] = size.pop("label_agreement")
        left_out = ("output", "miou" if classifies else "top1")
        return {k: v for k, v in asdict(self).items() if not k.startswith(left_out)} | {"sizes": sizes}


def compare(reference: Backend, candidate: Backend, images: Iterable[tuple[UInt8Array, Truth]]) -> Agreement:
    """Run both on the same images.

    Args:
        reference: gives low logits, or class logits as the candidate does.
        candidate: gives any kind of output.
        images: uint8 H x W x 3, RGB, of any sizes, each with its truth: train ids, 255 = ignore, or of a classifier its
            class; None where there is none.

    Raises:
        ModelError: there is no image, or a size that one of them does not take.
    """
    counts: dict[Size, _Counts] = {}
    hits: list[list[bool]] = []
    matrices: list[ConfusionMatrix] = []
    scored = 0
    for image, truth in images:
        size = (image.shape[0], image.shape[1])
        batch = np.ascontiguousarray(image[None])
        expected = torch.as_tensor(reference.run(batch)).cpu().float()
        labels = counts.setdefault(size, _Counts()).add(expected, _of(candidate, batch), size)
        scored += truth is not None
        if isinstance(truth, int):
            hits.append([int(each) == truth for each in labels])
        elif truth is not None:
            matrices = matrices or [ConfusionMatrix(expected.shape[1]) for _ in labels]
            for matrix, each in zip(matrices, labels, strict=True):
                matrix.update(each, truth)
    if not counts:
        raise ModelError("there is no image to compare with")
    sizes = tuple(count.result(size) for size, count in counts.items())
    if hits:
        first, second = (100 * sum(each) / len(hits) for each in zip(*hits, strict=True))
        return Agreement(sizes, scored, candidate.output, top1_reference=first, top1_candidate=second)
    if any(matrix.matrix.any() for matrix in matrices):
        return Agreement(sizes, scored, candidate.output, *(matrix.miou for matrix in matrices))
    return Agreement(sizes, output=candidate.output)


def refuse(agreement: Agreement, precision: Arithmetic, title: str) -> None:
    """Refuse a candidate that is farther from the reference than its arithmetic explains.

    Args:
        title: what was compared, for the message.

    Raises:
        DisagreementError: it is farther; the message has the numbers.
    """
    limits = limits_of(precision, agreement.output)
    for found in agreement.sizes:
        where = f"{title} disagrees with PyTorch at {found.size[0]}x{found.size[1]}"
        rms, most = found.relative_rms, limits.relative_rms
        if rms is not None and most is not None and not rms <= most:  # so written, a NaN is refused
            raise DisagreementError(
                f"{where}: the logits are off by {rms:.2g} of their size (relative RMS, limit {most:g}; "
                f"the largest difference is {found.max_logit_difference:.2g})"
            )
        if not found.label_agreement >= limits.label_agreement:
            raise DisagreementError(
                f"{where}: {found.label_agreement:.3f} % of the labels are the same (limit {limits.label_agreement} %)"
            )
    for score, was, now in (
        ("mIoU", agreement.miou_reference, agreement.miou_candidate),
        ("top-1", agreement.top1_reference, agreement.top1_candidate),
    ):
        # one picture of a few is many points
        most = max(limits.miou_loss, 200 / agreement.scored_images if score == "top-1" and was else 0)
        if was is not None and now is not None and not was - now <= most:
            raise DisagreementError(
                f"{title} falls behind PyTorch: {score} {now:.2f} instead of {was:.2f} (limit {most:.1f} points)"
            )


def _of(backend: Backend, batch: UInt8Array) -> tuple[Output, Tensor]:
    """What a backend makes of images, as a tensor of its own."""
    output = backend.run(batch)
    return backend.output, output.cpu() if isinstance(output, Tensor) else torch.from_numpy(np.array(output))


class _Counts:
    """Sums over the images of one size."""

    def __init__(self) -> None:
        self.images = 0
        self.pixels = self.same = 0
        self.largest: float | None = None
        self.squares = self.square_differences = 0.0

    def add(self, expected: Tensor, found: tuple[Output, Tensor], size: Size) -> tuple[Any, Any]:
        """Returns: the labels of reference and candidate, H x W, or of a classifier one number."""
        kind, output = found
        if kind == "class-logits":
            self._add_logits(expected, output.float())
            return self._add_labels(expected.argmax(1).numpy(), output.float().argmax(1).numpy())
        labels = label_map(expected, size).numpy()
        if kind != "labels":
            if kind == "logits":
                expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)
            self._add_logits(expected, output.float())
        guess = output.numpy() if kind == "labels" else label_map(output.float(), size).numpy()
        if guess.shape != labels.shape:
            raise DisagreementError(f"the candidate gives labels of shape {guess.shape}, PyTorch {labels.shape}")
        return self._add_labels(labels, guess)

    def _add_labels(self, labels: NDArray[Any], guess: NDArray[Any]) -> tuple[Any, Any]:
        self.images += 1
        self.pixels += labels.size
        self.same += int(np.count_nonzero(labels == guess))
        return labels[0], guess[0]

    def _add_logits(self, expected: Tensor, logits: Tensor) -> None:
        if logits.shape != expected.shape:
            raise DisagreementError(
                f"the candidate gives logits of shape {tuple(logits.shape)}, PyTorch {tuple(expected.shape)}"
            )
        difference = logits - expected
        largest = float(difference.abs().max())
        # max() would forget a NaN that it meets second
        self.largest = largest if self.largest is None or not largest <= self.largest else self.largest
        self.square_differences += float(difference.square().sum(dtype=torch.float64))
        self.squares += float(expected.square().sum(dtype=torch.float64))

    def result(self, size: Size) -> SizeAgreement:
        relative = None
        if self.largest is not None:
            zero = 0.0 if self.square_differences == 0 else math.inf
            relative = math.sqrt(self.square_differences / self.squares) if self.squares else zero
        return SizeAgreement(size, self.images, self.largest, relative, 100 * self.same / self.pixels)
