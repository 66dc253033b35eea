"""Losses: the settings of each, and the terms that it is the sum of.

A loss of your own is a frozen dataclass that derives from `Criterion`; `Config(loss=...)` takes it, and
examples/own_loss.py shows one. Importing this module imports no torch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from segmv3.settings import Rule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from segmv3.models.segmenter import Segmenter
    from segmv3.training.teacher import Teacher


class Seen(NamedTuple):
    """What a loss sees of a training step: one part of the batch on one process."""

    images: "Tensor"
    """N x 3 x H x W, RGB, 0..255, as the net took them."""
    targets: "Tensor"
    """uint8 N x H x W of train ids, 255 = ignore; int64 N for whole pictures."""
    logits: "Tensor"
    """What the net gave, float32: N x C x h x w at low resolution; N x C for whole pictures."""
    auxiliary: "Sequence[Tensor]" = ()
    """The same of the heads that `Criterion.wrap` added."""


@dataclass(frozen=True)
class Term:
    """A part of a loss: `weight` times a mean over all that it counts, on all processes."""

    name: str
    sums: "Callable[[Seen], tuple[Tensor, Tensor]]"
    """Gives the sum with its gradient, and the count it is a sum over: two scalars on the device."""
    denominator: "Callable[[Tensor], Tensor] | None" = None
    """Gives the count by the targets alone, which a batch in parts needs before its first part is seen. None where only
    the net can tell, as with mining: then the means of the parts are averaged."""
    weight: float = 1.0


class Criterion(ABC):
    """Settings of a loss: a frozen dataclass derives from this and says how to build its terms."""

    def rules(self, classes: int | None = None) -> list[Rule]:
        """What the settings must keep to; `classes` is their number, once the data are open."""
        return []

    def wrap(self, net: "Segmenter") -> "nn.Module":
        """The net with whatever else only training has; its `low_logits` gives the net's own first, in a list."""
        return net

    @abstractmethod
    def build(self, classes: int, device: "torch.device", class_pixels: "Callable[[], Tensor]") -> "Sequence[Term]":
        """The terms of the loss.

        Args:
            classes: their number.
            device: where the logits will be.
            class_pixels: gives the labelled pixels of each class in the training set, int64 C; it reads all labels.

        Returns:
            Terms of different names; the loss is their sum.
        """


_WEIGHTS = ("cross_entropy", "auxiliary", "dice", "focal", "focal_gamma", "lovasz")


@dataclass(frozen=True, kw_only=True)
class Loss(Criterion):
    """Cross-entropy over all labelled pixels and how much each of them counts, and other terms beside it."""

    ohem: float | None = None
    """Train only on pixels whose class has a probability below this, above 0 and at most 1. Easy road and sky no longer
    outweigh the rest (arXiv 1604.03540; mmsegmentation, BiSeNet and PIDNet take 0.7 to 0.9)."""
    min_kept: float = 0.0
    """Smallest share of the crop's pixels, the hardest, that ohem keeps. Late in training the loss then still sees
    enough of them (BiSeNet, arXiv 1808.00897: 1/16; mmsegmentation's 100,000 of 512x1024 are 0.19)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes: a net that is less sure of itself (arXiv 1512.00567)."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class's pixels, so that rare classes count. "balanced" is ENet's 1 / ln(1.02 + share of the
    training labels), 1.4 to 50 (arXiv 1606.02147), or one number a class."""
    auxiliary: float = 0.0
    """Weight of the cross-entropy of two auxiliary heads, on the 1/8 and the deepest features. Only training has them:
    the backbone gets its gradient by a shorter way (PSPNet, arXiv 1612.01105, takes 0.4; BiSeNet 1 and two heads)."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy; 0 leaves it out."""
    dice: float = 0.0
    """Weight of 1 - Dice of each class in each image (arXiv 1606.04797; segmentation-models-pytorch's DiceLoss): small
    classes count as much as large ones. It, focal and lovasz need the logits at the labels' size: more memory."""
    focal: float = 0.0
    """Weight of the focal loss of each class against the rest (arXiv 1708.02002; segmentation-models-pytorch's
    FocalLoss), the mean over classes and pixels: sure pixels count less."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss; 0 is plain binary cross-entropy."""
    lovasz: float = 0.0
    """Weight of the Lovasz-Softmax loss of each image, which stands in for the IoU itself (arXiv 1705.08790;
    segmentation-models-pytorch's LovaszLoss)."""

    def rules(self, classes: int | None = None) -> list[Rule]:
        listed = None if isinstance(self.class_weights, str) else self.class_weights
        return [
            (self.ohem is None or 0 < self.ohem <= 1, "ohem", "is a probability above 0 and at most 1"),
            (0 <= self.min_kept <= 1, "min-kept", "is a share of the crop's pixels, 0 to 1"),
            (self.ohem is not None or self.min_kept == 0, "min-kept", "needs loss.ohem"),
            (0 <= self.label_smoothing < 1, "label-smoothing", "must be at least 0 and below 1"),
            *((getattr(self, name) >= 0, name.replace("_", "-"), "must be at least 0") for name in _WEIGHTS),
            (
                max(self.cross_entropy, self.dice, self.focal, self.lovasz) > 0,
                "cross-entropy",
                "is 0, and so are loss.dice, loss.focal and loss.lovasz: nothing would be learnt",
            ),
            (
                listed is None
                or (max(listed, default=0) > 0 and all(math.isfinite(each) and each >= 0 for each in listed)),
                "class-weights",
                "are none, balanced, or a number for each class: at least 0, not all 0",
            ),
            (
                listed is None or classes in (None, len(listed)),
                "class-weights",
                f"{len(listed or ())} numbers for {classes} classes",
            ),
        ]

    def wrap(self, net: "Segmenter") -> "nn.Module":
        from segmv3.training.auxiliary import WithAuxiliaryHeads

        return WithAuxiliaryHeads(net) if self.auxiliary else net

    def build(self, classes: int, device: "torch.device", class_pixels: "Callable[[], Tensor]") -> "Sequence[Term]":
        import torch

        from segmv3.training.losses.functional import balanced_weights

        weights = None
        if self.class_weights == "balanced":
            weights = balanced_weights(class_pixels().cpu().numpy()).to(device)
        elif not isinstance(self.class_weights, str):
            weights = torch.tensor(self.class_weights, device=device)
        count = partial(_labelled, weights=weights, classes=classes) if self.ohem is None else None

        def term(name: str, weight: float, logits: "Callable[[Seen], Tensor]") -> Term:
            return Term(name, lambda seen: self._sums(logits(seen), seen.targets, weights), count, weight)

        terms = [
            term("cross_entropy", self.cross_entropy, lambda seen: seen.logits),
            term("auxiliary_fine", self.auxiliary, lambda seen: seen.auxiliary[0]),
            term("auxiliary_deep", self.auxiliary, lambda seen: seen.auxiliary[1]),
        ]
        if self.dice or self.focal or self.lovasz:
            from segmv3.training.losses.regions import region_terms

            terms += region_terms(self.dice, self.focal, self.focal_gamma, self.lovasz)
        return [each for each in terms if each.weight]

    def _sums(self, low: "Tensor", targets: "Tensor", weights: "Tensor | None") -> "tuple[Tensor, Tensor]":
        from segmv3.training.losses import functional

        return functional.cross_entropy(
            low,
            targets,
            weights=weights,
            smoothing=self.label_smoothing,
            ohem=self.ohem,
            min_kept=round(self.min_kept * targets.numel()),
        )


def _labelled(targets: "Tensor", weights: "Tensor | None", classes: int) -> "Tensor":
    """The number of labelled pixels, or the sum of their weights."""
    from segmv3.labels import IGNORE

    if weights is None:
        return (targets != IGNORE).sum()
    from torch.nn.functional import pad

    return pad(weights.double(), (0, IGNORE + 1 - classes))[targets.int()].sum()


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learning from larger nets beside the labels. They also teach on frames without labels: `data.extra_images`."""

    teacher: str | None = None
    """Where in the image each class is, by a larger net (channel-wise distillation, arXiv 2011.13256): a weight file or
    published name as for `segmv3 evaluate`, or a folder that save_pretrained of segmentation-models-pytorch or
    transformers wrote. It must know the classes of the data, in any order."""
    weight: float = 3.0
    """Weight of this loss beside the cross-entropy. The paper takes 3 for logits."""
    temperature: float = 4.0
    """Above 0. The higher it is, the more of the image counts. The paper takes 4."""
    features: str | None = None
    """A net whose deepest features the net's own learn to predict (FitNets, arXiv 1412.6550; the cosine as in AM-RADIO,
    arXiv 2312.06709): timm:NAME, such as timm:vit_small_patch14_dinov2.lvd142m, with @FILE for weights of your own; or
    weights of segmv3."""
    features_weight: float = 1.0
    """Weight of the loss on features."""

    @property
    def taught(self) -> bool:
        """Whether frames without labels teach anything."""
        return bool(self.teacher or self.features)

    def rules(self) -> list[Rule]:
        """What the settings must keep to."""
        return [
            (self.weight > 0, "weight", "must be above 0"),
            (self.temperature > 0, "temperature", "must be above 0"),
            (self.features_weight > 0, "features-weight", "must be above 0"),
        ]

    def build(self, classes: int, teacher: "Teacher | None", features: "Teacher | None" = None) -> list[Term]:
        """The terms of the teachers, where there are any.

        Args:
            classes: their number.
            teacher: from `segmv3.training.teacher.open_teacher`.
            features: from `segmv3.training.teacher.open_features`; the net's own are the last of `Seen.auxiliary`.
        """
        import torch

        from segmv3.training.losses.functional import channel_distillation, feature_distillation

        terms = []
        if teacher:
            terms.append(
                Term(
                    "distillation",
                    lambda seen: channel_distillation(seen.logits, teacher(seen.images), self.temperature),
                    lambda targets: torch.full((), len(targets) * classes, device=targets.device),
                    self.weight,
                )
            )
        if features:
            terms.append(
                Term(
                    "features",
                    lambda seen: feature_distillation(seen.auxiliary[-1], features(seen.images)),
                    lambda targets: torch.full((), len(targets), device=targets.device),
                    self.features_weight,
                )
            )
        return terms
