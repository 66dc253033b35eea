"""What a net is unsure of in a picture, and which pictures differ most."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segmv3.images import UInt8Array
from segmv3.inference import resize_image
from segmv3.models.segmenter import Segmenter
from segmv3.selection.settings import Settings

_CELLS = 12  # along the shorter side of a picture
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What a net makes of one picture."""

    features: Vectors
    """Its deepest map, averaged over the picture: float32, one number for each channel."""
    logits: Tensor
    """Float 1 x classes x h x w."""
    unsure: Tensor
    """Of each pixel of the logits, float h x w of 0..1."""
    value: float
    """Mean of the most unsure cells, 0..1."""
    between: tuple[int, int]
    """The classes that are first and second most often in these cells: train ids, rising."""


def look_at(net: Segmenter, image: UInt8Array, settings: Settings) -> Look:
    """Run a net of two classes or more, in eval mode, over a picture (uint8 H x W x 3, RGB)."""
    pixels = torch.from_numpy(np.require(image, requirements=["W"])).permute(2, 0, 1)[None]
    if settings.size:
        pixels = resize_image(pixels, settings.size)
    with torch.inference_mode():
        maps = net.backbone(net.normalize(pixels.to(next(net.parameters()).device)))
        logits = net.head(*maps).float()
        chances = logits[0].softmax(0)
        top, pairs = chances.topk(2, dim=0)
        entropy = torch.special.entr(chances).sum(0) / math.log(len(chances))
        unsure = entropy if settings.measure == "entropy" else 1 - (top[0] - top[1])
        value, inside = most_unsure(unsure, settings.worst)
    ((first, second), _), *_ = Counter(map(tuple, pairs.sort(0).values[:, inside].T.tolist())).most_common(1)
    return Look(maps[-1].float().mean((0, 2, 3)).cpu().numpy(), logits, unsure, value, (first, second))


def most_unsure(unsure: Tensor, worst: float) -> tuple[float, Tensor]:
    """The mean of the most unsure cells, and where they are.

    Args:
        unsure: h x w of 0..1.
        worst: share of the cells.

    Returns:
        The mean, 0..1, and a mask, bool h x w.
    """
    height, width = unsure.shape
    cell = min(height, width) / _CELLS
    grid = min(height, round(height / cell)), min(width, round(width / cell))
    cells = F.adaptive_avg_pool2d(unsure[None, None], grid).flatten()
    value, places = cells.topk(max(1, round(worst * cells.numel())))
    mask = torch.zeros_like(cells).index_fill_(0, places, 1).view(1, 1, *grid)
    return value.mean().item(), F.interpolate(mask, (height, width), mode="nearest")[0, 0] > 0


def k_centre(features: Vectors, centres: Vectors, count: int) -> list[tuple[int, float, int]]:
    """Take greedily what is farthest from all centres and is a centre from then on (arXiv 1708.00489).

    Args:
        features: N x C, what can be taken. Of equal ones the first is.
        centres: M x C, what is there already.
        count: at most so many are taken.

    Returns:
        Of each its place, its distance when it was taken, and the centre that was nearest then: up to M one of
        `centres`, M and above one taken before, -1 and infinitely far for the first without any.
    """
    nearest, whose = np.full(len(features), np.inf), np.full(len(features), -1)
    taken: list[tuple[int, float, int]] = []
    known = list(centres)
    for number in range(len(known) + min(count, len(features))):
        if number == len(known):
            place = int(nearest.argmax())
            taken.append((place, float(nearest[place]), int(whose[place])))
            known.append(features[place])
            nearest[place] = -1
        distance = np.linalg.norm(features.astype(np.float64) - known[number], axis=1)
        closer = distance < nearest
        nearest[closer], whose[closer] = distance[closer], number
    return taken
