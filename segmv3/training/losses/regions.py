"""Dice, focal and Lovasz of segmentation-models-pytorch, as sums and what they were summed over.

Each is a sum over images or pixels, so that parts of a batch and several processes add up to the whole. All of them
need the logits at the size of the labels, which the cross-entropy never holds.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch import Tensor

from segmv3.labels import IGNORE
from segmv3.training.losses import Seen, Term


def region_terms(dice: float, focal: float, gamma: float, lovasz: float) -> list[Term]:
    """The three terms with their weights.

    Args:
        dice: weight of 1 - Dice (arXiv 1606.04797), the mean over the classes that each image has.
        focal: weight of the focal loss (arXiv 1708.02002) of each class against the rest, the mean over classes and
            labelled pixels.
        gamma: the focal loss's exponent.
        lovasz: weight of the Lovasz-Softmax loss (arXiv 1705.08790), the mean over images of that over their classes.
    """
    of_image = {"dice": DiceLoss("multiclass", ignore_index=IGNORE), "lovasz": LovaszLoss("multiclass", False, IGNORE)}
    pixels = FocalLoss("multiclass", gamma=gamma, ignore_index=IGNORE, reduction="sum")
    return [
        Term("dice", _sums(lambda x, y: of_image["dice"](x, y) * x.shape[1], _classes), _classes, dice),
        Term("focal", _sums(pixels, _pixels, whole=True), _pixels, focal),
        Term("lovasz", _sums(lambda x, y: of_image["lovasz"](x, y).sum(), _images), _images, lovasz),
    ]


def _sums(
    loss: Callable[[Tensor, Tensor], Tensor], count: Callable[[Tensor], Tensor], *, whole: bool = False
) -> Callable[[Seen], tuple[Tensor, Tensor]]:
    """A term's sums; `whole` takes all images at once, where the loss is a sum over pixels anyhow."""

    def sums(seen: Seen) -> tuple[Tensor, Tensor]:
        logits = F.interpolate(seen.logits, seen.targets.shape[1:], mode="bilinear", align_corners=False)
        step = len(logits) if whole else 1
        each = [loss(x, y) for x, y in zip(logits.split(step), seen.targets.split(step), strict=True)]
        return torch.stack(each).sum(), count(seen.targets)

    return sums


def _present(targets: Tensor) -> Tensor:
    """Which values of 0..254 each image has: bool N x 255."""
    found = torch.zeros(len(targets), IGNORE + 1, dtype=torch.bool, device=targets.device)
    return found.scatter_(1, targets.flatten(1).long(), True)[:, :IGNORE]


def _classes(targets: Tensor) -> Tensor:
    return _present(targets).sum()


def _images(targets: Tensor) -> Tensor:
    return _present(targets).any(1).sum()


def _pixels(targets: Tensor) -> Tensor:
    return (targets != IGNORE).sum()
