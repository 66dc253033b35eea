"""A net as the graph that other runtimes get: uint8 pixels in, low-resolution logits, logits or labels out."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmv3.models.classifier import ImageClassifier
from segmv3.models.fold import folded
from segmv3.models.segmenter import Segmenter

Output = Literal["low-logits", "logits", "labels", "class-logits"]
"""The last one is a classifier's."""

Net = Segmenter | ImageClassifier

INPUT = "image"
"""The name of a graph's one input."""


class Graph(nn.Module):
    """A copy of a net for inference. Batch norms are folded, normalisation is inside, images are channels-last.

    Args:
        model: the net; it is left as it is.
        output: what comes out.
    """

    def __init__(self, model: Net, output: Output) -> None:
        super().__init__()
        self.model = folded(model)
        self.output: Output = output
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Run the net.

        Args:
            image: uint8 N x H x W x 3, RGB.

        Returns:
            "low-logits": float32 N x C x h x w at the head's own resolution; "logits": float32 N x C x H x W; "labels":
            uint8 N x H x W; "class-logits": float32 N x C.
        """
        if isinstance(self.model, ImageClassifier):
            return self.model(image.permute(0, 3, 1, 2)).float()
        # moved while a pixel is one byte; as a float it would be four
        logits = self.model.low_logits(image.permute(0, 3, 1, 2)).float()
        if self.output == "low-logits":
            return logits
        logits = F.interpolate(logits, image.shape[1:3], mode="bilinear", align_corners=False)
        return logits if self.output == "logits" else logits.argmax(1).to(torch.uint8)


def needs_fixed_size(model: Net) -> bool:
    """Whether the net pools over windows. Their number is part of the graph, so the size of the image is fixed."""
    return isinstance(model, Segmenter) and model.config.head.fixed_size


def example(size: tuple[int, int] | None) -> Tensor:
    """An image to trace a graph with: of that size, or a small one where any size will do."""
    return torch.zeros(1, *(size or (64, 128)), 3, dtype=torch.uint8)
