"""The whole family in one table: every net of the references, counted now, with what its authors published.

Accuracies are the authors' own, with the source in brackets; nothing here was measured by segmv3. family.toml holds
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from segmv3.models.count import gmacs, parameters
from segmv3.models.nets import Classifier, Model, net_from_dict
from segmv3.models.zoo import build, net
from segmv3.records import packaged

_SMALL_SIZE, _LARGE_SIZE = (224, 224), (1024, 2048)


@dataclass(frozen=True)
class Counted:
    """One net with its size and cost: 1000 classes for a classifier, 19 for a segmentation net."""

    name: str
    parameters: int
    mmacs: float
    """Multiply-adds at 224 x 224, in millions."""
    gmacs: float
    """Multiply-adds at 1024 x 2048, in billions."""
    published: str
    """Accuracy and who gives it; empty where nobody does."""


def count_family() -> Iterator[Counted]:
    """All nets, in the order of the table."""
    for name, row in packaged("segmv3.models", "family.toml").items():
        settings = cast(Model | Classifier, net_from_dict(row["net"])) if "net" in row else net(name)
        with torch.device("meta"):
            model = build(settings, 1000 if isinstance(settings, Classifier) else 19).eval()
        size = parameters(model)
        for module in model.modules():  # these have no multiply-adds, but take most of the time of counting
            for place, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d | nn.Hardswish | nn.ReLU | nn.ReLU6):
                    setattr(module, place, nn.Identity())
        costs = 1e3 * gmacs(model, _SMALL_SIZE), gmacs(model, _LARGE_SIZE)
        yield Counted(name, size, *costs, row.get("published", ""))
