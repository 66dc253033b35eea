"""How other projects name and store the tensors of the nets we share.

A `Format` knows which nets a project publishes (its variants), the place of each of our modules in its files, and
what must be recomputed on the way. Sources: the projects' own code, named at each format.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby, product
from typing import Literal

import torch
from torch import Tensor

from segmv3.models.backbones import MobileNetV3
from segmv3.models.heads import LRASPP, LRASPPDecoder
from segmv3.models.mobilenetv3 import Block, layout
from segmv3.models.nets import Classifier, Model
from segmv3.models.zoo import NETS, PAPER_NETS, state_shapes

Names = Iterator[tuple[str, str]]
"""(our module, theirs), by their dotted names."""

Tensors = dict[str, Tensor]

Size = Literal["large", "small"]
_SIZES: tuple[Size, ...] = ("large", "small")
_TAILS: tuple[Literal["full", "torchvision"], ...] = ("full", "torchvision")
_WIDTHS = (1.0, 0.75, 0.5, 0.35, 1.25)
_HALF = (127.5, 127.5, 127.5)  # inputs in [-1, 1], as TensorFlow's and Paddle's nets were trained
_CITYSCAPES_NOTE = "trained on Cityscapes, whose licence allows non-commercial use only"


@dataclass(frozen=True)
class Variant:
    """A net of a project. What tensors cannot tell (padding, input range, dilation) is told by the file's name."""

    name: str
    net: Model | Classifier
    hint: str = ""
    """Regular expression that the file's name matches when it is this variant; "" for the usual one."""


@dataclass(frozen=True)
class Format:
    """One project's weight files."""

    name: str
    mark: str
    """Regular expression of a tensor name that no other format has."""
    licence: str
    variants: Callable[[], tuple[Variant, ...]]
    modules: Callable[[Model | Classifier], Names]
    leaves: Mapping[str, str] = field(default_factory=dict)
    """The project's words for PyTorch's weight, bias, running_mean and running_var."""
    prepare: Callable[[Tensors], Tensors] = dict
    """Converts the project's tensors to PyTorch's conventions; names stay."""
    optional: str = r"num_batches_tracked$"
    """segmv3's tensors that the file need not have; they become zero."""
    unused: str = r"num_batches_tracked$"
    """Tensors of the file that segmv3's nets do not need."""


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which a file is tried."""
    return (MMSEG, FASTSEG, TORCHVISION_LRASPP, TORCHVISION, TIMM, DLI14, PADDLESEG, PADDLECLAS, OURS)


def _blocks(net: Model | Classifier) -> tuple[Block, ...]:
    assert isinstance(net.backbone, MobileNetV3)
    return layout(net.backbone)


def _word(text: str) -> str:
    """An expression for a word of a file name, set off by anything but letters and digits."""
    return rf"(?<![a-z0-9]){text}(?![a-z0-9])"


def _conv_bn(ours: str, conv: str, bn: str) -> Names:
    yield f"{ours}.0", conv
    yield f"{ours}.1", bn


# timm: models/_efficientnet_blocks.py and mobilenetv3.py ------------------------------------------------------------


def _timm_block(i: int, block: Block, theirs: str) -> Names:
    ours = f"backbone.blocks.{i}"
    convs = ["conv_pw", "conv_dw", "conv_pwl"] if block.expands else ["conv_dw", "conv_pw"]
    parts = ["expand", "depthwise", "project"] if block.expands else ["depthwise", "project"]
    for number, (part, conv) in enumerate(zip(parts, convs, strict=True), 1):
        yield from _conv_bn(f"{ours}.{part}", f"{theirs}.{conv}", f"{theirs}.bn{number}")
    if block.squeeze:
        yield f"{ours}.squeeze.reduce", f"{theirs}.se.conv_reduce"
        yield f"{ours}.squeeze.expand", f"{theirs}.se.conv_expand"


def _timm_backbone(net: Model | Classifier, place: Callable[[int, int], str], last: str) -> Names:
    """Blocks of equal output width form a stage; a last stage holds the closing convolution."""
    blocks = _blocks(net)
    table = layout(MobileNetV3(size=net.backbone.size)) if isinstance(net.backbone, MobileNetV3) else ()
    stages = [list(stage) for _, stage in groupby(range(len(blocks)), key=lambda i: table[i].out)]
    for s, stage in enumerate(stages):
        for j, i in enumerate(stage):
            yield from _timm_block(i, blocks[i], place(s, j))
    closing = last.format(len(stages))
    yield from _conv_bn("backbone.last", f"{closing}.conv", f"{closing}.bn1")


def _timm(net: Model | Classifier) -> Names:
    yield from _conv_bn("backbone.stem", "conv_stem", "bn1")
    yield from _timm_backbone(net, "blocks.{}.{}".format, "blocks.{}.0")
    yield "hidden", "conv_head"
    yield "classifier", "classifier"


@cache
def _timm_variants() -> tuple[Variant, ...]:
    variants = []
    for size, width in product(_SIZES, _WIDTHS):
        name = f"mobilenetv3_{size}_{round(100 * width):03}"
        backbone = MobileNetV3(size=size, width=width, bn_eps=1e-5)
        variants.append(Variant(f"timm/{name}", Classifier(backbone=backbone)))
        tf = Classifier(backbone=replace(backbone, padding="same", bn_eps=1e-3), mean=_HALF, std=_HALF)
        variants.append(Variant(f"timm/tf_{name}", tf, hint=_word("tf")))
    for size in _SIZES:
        backbone = MobileNetV3(size=size, minimal=True, padding="same")
        name = f"timm/tf_mobilenetv3_{size}_minimal_100"
        variants.append(Variant(name, Classifier(backbone=backbone, mean=_HALF, std=_HALF)))
    large = Classifier(backbone=MobileNetV3(bn_eps=1e-5))
    unscaled = replace(large, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    variants.append(Variant("timm/mobilenetv3_large_100.miil", unscaled, hint=_word("miil")))
    ra4 = replace(large, mean=_HALF, std=_HALF)
    variants.append(Variant("timm/mobilenetv3_large_100.ra4", ra4, hint=_word("ra4")))
    variants.append(Variant("timm/mobilenetv3_rw", Classifier(backbone=MobileNetV3(family="rw"))))
    return tuple(variants)


TIMM = Format("timm", r"^blocks\.0\.0\.conv_dw\.", "Apache-2.0 (timm)", _timm_variants, _timm)


# torchvision: models/mobilenetv3.py and models/segmentation/lraspp.py -----------------------------------------------


def _torchvision_backbone(net: Model | Classifier, prefix: str) -> Names:
    blocks = _blocks(net)
    yield from _conv_bn("backbone.stem", f"{prefix}.0.0", f"{prefix}.0.1")
    for i, block in enumerate(blocks):
        ours, theirs = f"backbone.blocks.{i}", f"{prefix}.{i + 1}.block"
        present = {"expand": block.expands, "depthwise": True, "squeeze": block.squeeze, "project": True}
        for number, part in enumerate(part for part, there in present.items() if there):
            if part == "squeeze":
                yield f"{ours}.squeeze.reduce", f"{theirs}.{number}.fc1"
                yield f"{ours}.squeeze.expand", f"{theirs}.{number}.fc2"
            else:
                yield from _conv_bn(f"{ours}.{part}", f"{theirs}.{number}.0", f"{theirs}.{number}.1")
    end = len(blocks) + 1
    yield from _conv_bn("backbone.last", f"{prefix}.{end}.0", f"{prefix}.{end}.1")


def _torchvision(net: Model | Classifier) -> Names:
    yield from _torchvision_backbone(net, "features")
    yield "hidden", "classifier.0"
    yield "classifier", "classifier.3"


def _torchvision_lraspp(net: Model | Classifier) -> Names:
    yield from _torchvision_backbone(net, "backbone")
    yield from _conv_bn("head.gated.deep", "classifier.cbr.0", "classifier.cbr.1")
    yield "head.gated.gate", "classifier.scale.1"
    yield "head.deep_classifier", "classifier.high_classifier"
    yield "head.low_classifier", "classifier.low_classifier"


@cache
def _torchvision_variants() -> tuple[Variant, ...]:
    variants = []
    for size, width, tail in product(_SIZES, _WIDTHS, _TAILS):
        backbone = MobileNetV3(size=size, width=width, family="torchvision", tail=tail)
        suffix = ("" if width == 1 else f"_{width:g}") + ("" if tail == "full" else "_reduced_tail")
        variants.append(Variant(f"torchvision/mobilenet_v3_{size}{suffix}", Classifier(backbone=backbone)))
    return tuple(variants)


@cache
def _torchvision_lraspp_variants() -> tuple[Variant, ...]:
    head = LRASPP(tap="output", gate="sigmoid", gate_bias=False)
    variants = []
    for size, tail in product(_SIZES, _TAILS):
        backbone = MobileNetV3(size=size, family="torchvision", tail=tail, output_stride=16)
        suffix = "" if tail == "full" else "_reduced_tail"
        variants.append(Variant(f"torchvision/lraspp_mobilenet_v3_{size}{suffix}", Model(backbone=backbone, head=head)))
    return tuple(variants)


TORCHVISION = Format(
    "torchvision", r"^features\.1\.block\.0\.0\.", "BSD-3-Clause (torchvision)", _torchvision_variants, _torchvision
)
TORCHVISION_LRASPP = Format(
    "torchvision LR-ASPP",
    r"^classifier\.cbr\.0\.",
    "BSD-3-Clause (torchvision)",
    _torchvision_lraspp_variants,
    _torchvision_lraspp,
)


# d-li14/mobilenetv3.pytorch: mobilenetv3.py -------------------------------------------------------------------------


def _dli14(net: Model | Classifier) -> Names:
    yield from _conv_bn("backbone.stem", "features.0.0", "features.0.1")
    for i, block in enumerate(_blocks(net)):
        ours, theirs = f"backbone.blocks.{i}", f"features.{i + 1}.conv"
        # their lists count activations and an empty squeeze too
        if block.expands:
            places = {"expand": 0, "depthwise": 3, "project": 7}
            squeeze = 5
        else:
            places = {"depthwise": 0, "project": 4}
            squeeze = 3
        for part, place in places.items():
            yield from _conv_bn(f"{ours}.{part}", f"{theirs}.{place}", f"{theirs}.{place + 1}")
        if block.squeeze:
            yield f"{ours}.squeeze.reduce", f"{theirs}.{squeeze}.fc.0"
            yield f"{ours}.squeeze.expand", f"{theirs}.{squeeze}.fc.2"
    yield from _conv_bn("backbone.last", "conv.0", "conv.1")
    yield "hidden", "classifier.0"
    yield "classifier", "classifier.3"


@cache
def _dli14_variants() -> tuple[Variant, ...]:
    variants = []
    for size, width in product(_SIZES, _WIDTHS):
        backbone = MobileNetV3(size=size, width=width, family="d-li14", bn_eps=1e-5)
        name = f"d-li14/mobilenetv3-{size}" + ("" if width == 1 else f"-{width:g}")
        variants.append(Variant(name, Classifier(backbone=backbone)))
    return tuple(variants)


DLI14 = Format("d-li14", r"^features\.1\.conv\.0\.", "MIT (d-li14/mobilenetv3.pytorch)", _dli14_variants, _dli14)


# mmsegmentation: models/backbones/mobilenet_v3.py and models/decode_heads/lraspp_head.py ----------------------------


def _mmseg(net: Model | Classifier) -> Names:
    blocks = _blocks(net)
    yield from _conv_bn("backbone.stem", "backbone.layer0.conv", "backbone.layer0.bn")
    for i, block in enumerate(blocks):
        ours, theirs = f"backbone.blocks.{i}", f"backbone.layer{i + 1}"
        parts = {"expand": "expand_conv", "depthwise": "depthwise_conv", "project": "linear_conv"}
        for part, name in parts.items():
            if part != "expand" or block.expands:
                yield from _conv_bn(f"{ours}.{part}", f"{theirs}.{name}.conv", f"{theirs}.{name}.bn")
        if block.squeeze:
            yield f"{ours}.squeeze.reduce", f"{theirs}.se.conv1.conv"
            yield f"{ours}.squeeze.expand", f"{theirs}.se.conv2.conv"
    end = f"backbone.layer{len(blocks) + 1}"
    yield from _conv_bn("backbone.last", f"{end}.conv", f"{end}.bn")
    head = "decode_head"
    yield from _conv_bn("head.gated.deep", f"{head}.aspp_conv.conv", f"{head}.aspp_conv.bn")
    yield "head.gated.gate", f"{head}.image_pool.1.conv"
    yield "head.project", f"{head}.conv_up_input"
    for i in range(2):
        yield f"head.skips.{i}", f"{head}.convs.conv{i}"
        yield from _conv_bn(f"head.fuse.{i}", f"{head}.conv_ups.conv_up{i}.conv", f"{head}.conv_ups.conv_up{i}.bn")
    yield "head.classifier", f"{head}.conv_seg"


@cache
def _mmseg_variants() -> tuple[Variant, ...]:
    def net(size: Size) -> Model:
        return Model(backbone=MobileNetV3(size=size, output_stride=8, padding="same"), head=LRASPPDecoder())

    return tuple(Variant(f"mmseg/lraspp_m-v3{'' if size == 'large' else 's'}-d8", net(size)) for size in _SIZES)


MMSEG = Format(
    "mmsegmentation",
    r"^backbone\.layer0\.conv\.",
    f"Apache-2.0 (mmsegmentation); {_CITYSCAPES_NOTE}",
    _mmseg_variants,
    _mmseg,
)


# fastseg (ekzhang/fastseg): model/lraspp.py on geffnet's trunks -----------------------------------------------------


def _fastseg(net: Model | Classifier) -> Names:
    yield from _conv_bn("backbone.stem", "trunk.early.0", "trunk.early.1")
    yield from _timm_backbone(net, "trunk.block{}.{}".format, "trunk.block{}.0")
    yield from _conv_bn("head.gated.deep", "aspp_conv1.0", "aspp_conv1.1")
    yield "head.gated.gate", "aspp_conv2.1"
    yield "head.project", "conv_up1"
    for i, (skip, fuse) in enumerate([("convs2", "conv_up3"), ("convs4", "conv_up2")]):
        yield f"head.skips.{i}", skip
        yield from _conv_bn(f"head.fuse.{i}", f"{fuse}.conv", f"{fuse}.bn")
    yield "head.classifier", "last"


@cache
def _fastseg_variants() -> tuple[Variant, ...]:
    variants = []
    for size, filters in product(_SIZES, (128, 256, 64)):
        backbone = MobileNetV3(size=size, output_stride=8, padding="same")
        head = LRASPPDecoder(channels=filters, align_corners=True, dropout=0.0, bn_eps=1e-5)
        variants.append(Variant(f"fastseg/{size}-f{filters}", Model(backbone=backbone, head=head)))
    return tuple(variants)


FASTSEG = Format("fastseg", r"^trunk\.early\.0\.", f"MIT (fastseg); {_CITYSCAPES_NOTE}", _fastseg_variants, _fastseg)


# PaddleClas: ppcls/arch/backbone/legendary_models/mobilenet_v3.py; PaddleSeg: paddleseg/models/lraspp.py ------------


def _paddle_backbone(net: Model | Classifier, prefix: str = "") -> Names:
    yield from _conv_bn("backbone.stem", f"{prefix}conv.conv", f"{prefix}conv.bn")
    for i, block in enumerate(_blocks(net)):
        ours, theirs = f"backbone.blocks.{i}", f"{prefix}blocks.{i}"
        for part, name in {"expand": "expand_conv", "depthwise": "bottleneck_conv", "project": "linear_conv"}.items():
            yield from _conv_bn(f"{ours}.{part}", f"{theirs}.{name}.conv", f"{theirs}.{name}.bn")
        if block.squeeze:
            yield f"{ours}.squeeze.reduce", f"{theirs}.mid_se.conv1"
            yield f"{ours}.squeeze.expand", f"{theirs}.mid_se.conv2"


def _paddleclas(net: Model | Classifier) -> Names:
    yield from _paddle_backbone(net)
    yield from _conv_bn("backbone.last", "last_second_conv.conv", "last_second_conv.bn")
    yield "hidden", "last_conv"
    yield "classifier", "fc"


def _paddleseg(net: Model | Classifier) -> Names:
    yield from _paddle_backbone(net, "backbone.")
    head = "lraspp_head"
    yield from _conv_bn("head.gated.deep", f"{head}.conv_v._conv", f"{head}.conv_v._batch_norm")
    yield "head.gated.gate", f"{head}.conv_w.1"
    yield "head.project", f"{head}.conv_t"
    for ours, theirs in ((0, 1), (1, 0)):  # theirs begin with the coarser skip
        yield f"head.skips.{ours}", f"{head}.convs.{theirs}"
        up = f"{head}.conv_ups.{theirs}"
        yield from _conv_bn(f"head.fuse.{ours}", f"{up}._conv", f"{up}._batch_norm")
    yield "head.classifier", f"{head}.conv_out"


def _paddle_prepare(tensors: Tensors) -> Tensors:
    """Paddle's conventions into PyTorch's.

    Its hard sigmoid has the slope 1/5 instead of 1/6, so what feeds it is scaled; its dropout scales at inference
    instead of in training, so the last layer keeps 80 %; its linear layers are stored transposed; a bias before BN
    becomes a shift of BN's mean.
    """
    result = dict(tensors)
    for name, tensor in tensors.items():
        if ".mid_se.conv2." in name:
            result[name] = tensor * 1.2
        elif name == "fc.weight" and tensor.ndim == 2:
            result[name] = 0.8 * tensor.t()
        elif name.endswith("._conv.bias"):
            mean = name.removesuffix("_conv.bias") + "_batch_norm._mean"
            if mean in tensors and tensors[mean].shape == tensor.shape:
                result[mean] = tensors[mean] - tensor
                del result[name]
    return result


_PADDLE_LEAVES = {"running_mean": "_mean", "running_var": "_variance"}
_PADDLE_OPTIONAL = r"num_batches_tracked$|^head\.(project|classifier)\.bias$"  # PaddleSeg's have none


@cache
def _paddleclas_variants() -> tuple[Variant, ...]:
    variants = []
    for size, width in product(_SIZES, _WIDTHS):
        backbone = MobileNetV3(size=size, width=width, family="paddle", bn_eps=1e-5)
        name = f"paddleclas/MobileNetV3_{size}_x{width}".replace(".", "_")
        variants.append(Variant(name, Classifier(backbone=backbone)))
    return tuple(variants)


@cache
def _paddleseg_variants() -> tuple[Variant, ...]:
    variants = []
    strides: tuple[tuple[Literal[8, 32], str], ...] = ((8, ""), (32, _word("os32")))
    pools: tuple[tuple[Literal["global", "window"], str], ...] = (("global", ""), ("window", "large_?kernel"))
    for size, (stride, stride_hint), (pool, pool_hint) in product(_SIZES, strides, pools):
        backbone = MobileNetV3(
            size=size, family="paddle", output_stride=stride, dilate_first=False, last=False, bn_eps=1e-5
        )
        head = LRASPPDecoder(skip_strides=(4, 8), pool=pool, dropout=0.0, bn_eps=1e-5)
        name = f"paddleseg/lraspp_{size}_os{stride}" + ("" if pool == "global" else "_large_kernel")
        hint = ".*".join(filter(None, (stride_hint, pool_hint)))
        variants.append(Variant(name, Model(backbone=backbone, head=head, mean=_HALF, std=_HALF), hint))
    return tuple(variants)


PADDLECLAS = Format(
    "PaddleClas",
    r"^blocks\.0\.bottleneck_conv\.",
    "Apache-2.0 (PaddleClas)",
    _paddleclas_variants,
    _paddleclas,
    leaves=_PADDLE_LEAVES,
    prepare=_paddle_prepare,
    unused=r"^StructuredToParameterName@@",
)
PADDLESEG = Format(
    "PaddleSeg",
    r"^lraspp_head\.conv_v\.",
    f"Apache-2.0 (PaddleSeg); {_CITYSCAPES_NOTE}",
    _paddleseg_variants,
    _paddleseg,
    leaves=_PADDLE_LEAVES,
    prepare=_paddle_prepare,
    optional=_PADDLE_OPTIONAL,
    unused=r"^StructuredToParameterName@@",
)


# a plain state_dict() of our own nets -------------------------------------------------------------------------------


@cache
def _our_variants() -> tuple[Variant, ...]:
    paper = {name: net for name, net in PAPER_NETS.items() if net not in NETS.values()}
    return tuple(Variant(f"segmv3/{name}", net) for name, net in {**NETS, **paper}.items())


OURS = Format(
    "segmv3",
    r"^backbone\.stem\.0\.weight$",
    "",
    _our_variants,
    lambda net: ((module, module) for module in {name.rpartition(".")[0] for name in state_shapes(net, 1)}),
)


def recognise(names: list[str]) -> Format | None:
    """The format that tensor names belong to."""
    return next((f for f in formats() if any(re.search(f.mark, name) for name in names)), None)


def reshaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A linear layer's weight as that of a 1x1 convolution, or the other way round, where that is the difference."""
    if tensor.shape != shape and {tensor.ndim, len(shape)} == {2, 4} and tensor.shape[:2] == shape[:2]:
        return tensor.reshape(shape)
    return tensor
