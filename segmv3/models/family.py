"""The whole family in one table: every net of the references, counted now, with what its authors published.

Accuracies are the authors' own, with the source in brackets; nothing here was measured by segmv3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import nn

from segmv3.models.backbones import MobileNetV3
from segmv3.models.count import gmacs, parameters
from segmv3.models.heads import LRASPP, LRASPPDecoder
from segmv3.models.nets import Classifier, Model
from segmv3.models.zoo import NETS, PAPER_NETS, create_classifier, create_model

_SMALL_SIZE, _LARGE_SIZE = (224, 224), (1024, 2048)


@dataclass(frozen=True)
class Member:
    """One net of the family."""

    name: str
    net: Model | Classifier
    published: str = ""
    """Accuracy and who gives it; empty where nobody does. Classifiers: top-1 / top-5 on ImageNet val, in percent.
    Segmentation nets: mIoU on Cityscapes val unless it says otherwise."""


@dataclass(frozen=True)
class Counted:
    """A member with its size and cost: 1000 classes for a classifier, 19 for a segmentation net."""

    member: Member
    parameters: int
    mmacs: float
    """Multiply-adds at 224 x 224, in millions."""
    gmacs: float
    """Multiply-adds at 1024 x 2048, in billions."""


def count_family() -> Iterator[Counted]:
    """All members, in the order of the table."""
    for member in (*_classifiers(), *_segmenters()):
        with torch.device("meta"):
            model = (
                create_classifier(member.net) if isinstance(member.net, Classifier) else create_model(member.net)
            ).eval()
        size = parameters(model)
        for module in model.modules():  # these have no multiply-adds, but take most of the time of counting
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d | nn.Hardswish | nn.ReLU | nn.ReLU6):
                    setattr(module, name, nn.Identity())
        yield Counted(member, size, 1e3 * gmacs(model, _SMALL_SIZE), gmacs(model, _LARGE_SIZE))


_WIDTHS = (1.25, 1.0, 0.75, 0.5, 0.35)
_TIMM = {
    (
        "large",
        1.0,
    ): "75.77 / 92.54 (timm), 75.51 / 92.61 (TF port), 74.28 / 91.93 (d-li14), 74.04 / 91.34 (torchvision)",
    ("large", 0.75): "73.45 / 91.34 (TF port), 72.84 / 90.85 (d-li14)",
    (
        "small",
        1.0,
    ): "67.66 / 87.63 (timm), 67.92 / 87.68 (TF port), 67.21 / 87.30 (d-li14), 67.67 / 87.40 (torchvision)",
    ("small", 0.75): "65.24 / 85.44 (timm), 65.72 / 86.13 (TF port), 64.88 / 85.50 (d-li14)",
    ("small", 0.5): "57.89 / 80.19 (timm)",
}
_PADDLE = {"large": (76.41, 75.32, 73.14, 69.24, 64.32), "small": (70.67, 68.24, 66.02, 59.21, 53.03)}
_PAPER = (72.84, 72.56, 72.97, 72.74, 72.64, 71.91, 72.37, 72.36, 68.57, 66.83, 68.38)


def _classifiers() -> Iterator[Member]:
    """At width 1.0 the rules of timm, d-li14 and torchvision agree, at 0.75 those of timm and d-li14."""
    sizes: tuple[Literal["large", "small"], ...] = ("large", "small")
    for size, width in product(sizes, _WIDTHS):
        net = Classifier(backbone=MobileNetV3(size=size, width=width))
        yield Member(f"{size} x{width:g}", net, _TIMM.get((size, width), ""))
    for size, score in zip(sizes, ("72.24 / 90.64 (TF port)", "62.91 / 84.24 (TF port)"), strict=True):
        yield Member(f"{size} minimal", Classifier(backbone=MobileNetV3(size=size, minimal=True)), score)
    yield Member("large rw", Classifier(backbone=MobileNetV3(family="rw")), "75.63 / 92.71 (timm)")
    for size, width in product(sizes, (1.25, 0.75, 0.5, 0.35)):
        net = Classifier(backbone=MobileNetV3(size=size, width=width, family="torchvision"))
        yield Member(f"{size} x{width:g} torchvision", net)
    for size in sizes:
        for width, top1 in zip(_WIDTHS, _PADDLE[size], strict=True):
            net = Classifier(backbone=MobileNetV3(size=size, width=width, family="paddle"))
            yield Member(f"{size} x{width:g} PaddleClas", net, f"{top1:.2f} (PaddleClas)")


def _segmenters() -> Iterator[Member]:
    for number, ((name, net), miou) in enumerate(zip(PAPER_NETS.items(), _PAPER, strict=True), 1):
        shown = next((own for own, settings in NETS.items() if settings == net), name)
        yield Member(shown, net, f"{miou} from scratch (paper, row {number})")
    mmseg = ("69.54, ms+flip 70.89; scratch 67.87, 69.78", "64.11, ms+flip 66.42; scratch 62.74, 65.01")
    for name, score in zip(("lraspp_large_d8_mmseg", "lraspp_small_d8_mmseg"), mmseg, strict=True):
        yield Member(name, NETS[name], f"{score} (mmsegmentation)")
    strides: tuple[tuple[Literal[8, 32], Literal["global", "window"], str], ...] = (
        (8, "window", "73.19, ms+flip 74.49"),
        (8, "global", "72.33, ms+flip 73.87"),
        (32, "global", "70.13, ms+flip 72.14"),
    )
    for stride, pool, score in strides:
        backbone = MobileNetV3(family="paddle", output_stride=stride, dilate_first=False, last=False, bn_eps=1e-5)
        head = LRASPPDecoder(skip_strides=(4, 8), pool=pool, dropout=0.0, bn_eps=1e-5)
        net = Model(backbone=backbone, head=head)
        yield Member(f"PaddleSeg os {stride}, {pool} pool", net, f"{score} (PaddleSeg)")
    for name in ("lraspp_large_plus", "lraspp_small_plus"):
        yield Member(name, NETS[name])
    torchvision = Model(
        backbone=MobileNetV3(family="torchvision", output_stride=16),
        head=LRASPP(tap="output", gate="sigmoid", gate_bias=False),
    )
    yield Member("torchvision LR-ASPP", torchvision, "57.9 on COCO with VOC's labels (torchvision)")
