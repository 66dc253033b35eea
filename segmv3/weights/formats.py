"""How other projects name and store the tensors of the nets we share; formats.toml is the table.

A `Format` knows which nets a project publishes (its variants), the place of each of our modules in its files, and
what must be recomputed on the way.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from segmv3.models.backbones import MobileNetV3
from segmv3.models.mobilenetv3 import layout, rows_of
from segmv3.models.nets import Detector, Net, net_from_dict
from segmv3.models.zoo import NETS, PAPER_NETS, state_shapes
from segmv3.records import packaged

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """A net of a project. What tensors cannot tell (padding, input range, dilation) is told by the file's name."""

    name: str
    net: Net
    hint: str = ""
    """Regular expression that the file's name matches when it is this variant; "" for the usual one."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One project's weight files, as formats.toml says it; the fields have its words."""

    name: str
    mark: str
    licence: str
    leaves: Mapping[str, str] = field(default_factory=dict)
    optional: str = r"num_batches_tracked$"
    unused: str = r"num_batches_tracked$"
    table: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Tensors], Tensors] = dict
    """Converts the project's tensors to PyTorch's conventions; names stay."""

    def variants(self) -> tuple[Variant, ...]:
        """The nets that the project publishes, the usual one of those with the same tensors first."""
        return _variants(self.name)

    def modules(self, net: Net) -> dict[str, str]:
        """Our modules, each with the project's, by their dotted names; some that this net lacks are among them."""
        if self is OURS:
            return {module: module for module in _modules(net)}
        assert isinstance(net.backbone, MobileNetV3)
        blocks, found = layout(net.backbone), dict[str, str]()
        stages = [list(s) for _, s in groupby(rows_of(net.backbone), key=lambda row: row.out)]
        places = [(stage, place) for stage, rows in enumerate(stages) for place in range(len(rows))]
        for i, (block, (stage, place)) in enumerate(zip(blocks, places, strict=True)):
            kind = self.table.get("expanding" if block.expands else "plain", {})
            numbers: dict[str, Any] = {
                "i": i,
                "n": i + 1,
                "end": len(blocks) + 1,
                "before": 1 + block.expands + bool(block.squeeze),
                "kept": ".lastBN" if block.shortcut else "",
                "stage": stage,
                "place": place,
                "stages": len(stages),
            }
            for ours, theirs in {**self.table["modules"], **kind}.items():
                found[ours.format(**numbers)] = theirs.format(**numbers)
        if isinstance(net, Detector):  # behind the backbone the modules are torchvision's own
            found |= {module: module for module in _modules(net) if module.startswith(("extra.", "head."))}
        return found


def _modules(net: Net) -> set[str]:
    return {name.rpartition(".")[0] for name in state_shapes(net, 1)}


def _ssdlite_prepare(tensors: Tensors) -> Tensors:
    """torchvision's detector cuts the backbone in two inside the block whose expansion is C4: names as uncut."""
    first = [int(name.split(".")[3]) for name in tensors if re.match(r"backbone\.features\.0\.\d+\.", name)]
    cut = max(first, default=0)

    def uncut(name: str) -> str:
        name = name.removeprefix("backbone.")
        if not (found := re.match(r"features\.([01])\.(\d+)\.(.*)", name)):
            return name
        half, number, rest = int(found[1]), int(found[2]), found[3]
        if not half:
            return f"features.{number}." + (f"block.0.{rest}" if number == cut else rest)
        if number:
            return f"features.{cut + number}.{rest}"
        return f"features.{cut}.block.{rest}"

    return {uncut(name): tensor for name, tensor in tensors.items()}


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


def _formats() -> tuple[Format, ...]:
    tables = packaged("segmv3.weights", "formats.toml")
    words = ("mark", "licence", "leaves", "optional", "unused")
    prepare = {"PaddleClas": _paddle_prepare, "PaddleSeg": _paddle_prepare, "torchvision SSDLite": _ssdlite_prepare}
    return tuple(
        Format(name=name, table=table, prepare=prepare.get(name, dict), **{w: table[w] for w in words if w in table})
        for name, table in tables.items()
    )


OURS = Format(name="segmv3", mark=r"^backbone\.stem\.0\.weight$", licence="")
"""A plain state_dict() of our own nets."""
_ALL = (*_formats(), OURS)
MMSEG = _ALL[0]


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which a file is tried."""
    return _ALL


@cache
def _variants(name: str) -> tuple[Variant, ...]:
    if name == OURS.name:
        paper = {name: net for name, net in PAPER_NETS.items() if net not in NETS.values()}
        return tuple(Variant(f"segmv3/{name}", net) for name, net in {**NETS, **paper}.items())
    rows = next(kind for kind in _ALL if kind.name == name).table["variants"]
    return tuple(Variant(name, net_from_dict(row["net"]), row.get("hint", "")) for name, row in rows.items())


def recognise(names: list[str]) -> Format | None:
    """The format that tensor names belong to."""
    return next((f for f in formats() if any(re.search(f.mark, name) for name in names)), None)


def reshaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A linear layer's weight as that of a 1x1 convolution, or the other way round, where that is the difference."""
    if tensor.shape != shape and {tensor.ndim, len(shape)} == {2, 4} and tensor.shape[:2] == shape[:2]:
        return tensor.reshape(shape)
    return tensor
