"""Groups of layers that are narrowed together, and nets with fewer channels that keep the strongest ones."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from segmv3.errors import ModelError
from segmv3.models.backbones import MobileNetV3
from segmv3.models.mobilenetv3 import exact_widths, joined
from segmv3.models.zoo import build, state_shapes

Widths = tuple[int, ...]
_Settings = TypeVar("_Settings")
_STEP = 8
"""Channels come in multiples of this, as everywhere in MobileNetV3."""


@dataclass(frozen=True)
class Group:
    """Layers with one number of channels: an expansion, or all bottlenecks that shortcuts join.

    Attributes: places: of their numbers in the backbone's `widths`.
    """

    name: str
    places: tuple[int, ...]

    def width(self, widths: Widths) -> int:
        """Its channels."""
        return widths[self.places[0]]

    def narrowed(self, widths: Widths, width: int) -> Widths:
        """The widths of a net in which this group has `width` channels."""
        return tuple(width if place in self.places else old for place, old in enumerate(widths))

    def choices(self, widths: Widths, share: float) -> list[int]:
        """Widths below the present one, widest first.

        Args:
            widths: of the net at the start.
            share: of its channels that the group keeps in any case.
        """
        full = self.width(widths)
        least = max(_STEP, -int(-full * share // _STEP) * _STEP)
        return list(range((full - 1) // _STEP * _STEP, least - 1, -_STEP))


def groups_of(net: MobileNetV3) -> list[Group]:
    """The groups of a backbone, from the image on."""
    count = net.layers
    root = list(range(count))
    for one, other in joined(net):
        low, high = sorted((root[one], root[other]))
        root = [low if each == high else each for each in root]
    members = [[place for place in range(count) if root[place] == first] for first in sorted(set(root))]
    return [Group(_name(places, count, last=net.last), tuple(places)) for places in members]


def _name(places: list[int], count: int, *, last: bool) -> str:
    if 0 in places:
        return "stem"
    if last and count - 1 in places:
        return "closing convolution"
    if places[0] % 2:
        return f"expansion of block {places[0] // 2 + 1}"
    blocks = [str(place // 2) for place in places if place % 2 == 0]
    return f"output of block{'s' * (len(blocks) > 1)} {'-'.join(dict.fromkeys((blocks[0], blocks[-1])))}"


def with_widths(settings: _Settings, widths: Widths) -> _Settings:
    """The settings of a net whose backbone has exact widths."""
    net: Any = settings
    return replace(net, backbone=replace(net.backbone, widths=widths))


def cut(model: Any, widths: Widths) -> Any:
    """A narrower copy of a net: of each group the channels with the largest filters stay.

    The size of a filter is its L2 norm after its batch norm is folded in, over all layers of the group.

    Args:
        model: a segmentation or classification net on a MobileNetV3.
        widths: of the copy, none larger than now.

    Returns:
        The copy, in eval mode on the CPU.

    Raises:
        ModelError: a part of the net mixes channels in a way that cannot be narrowed.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    settings, now = model.config, exact_widths(model.config.backbone)
    for group in groups_of(settings.backbone):
        if group.width(widths) != group.width(now):
            after = group.narrowed(now, group.width(widths))
            ours, theirs = (state_shapes(with_widths(settings, each), model.num_classes) for each in (now, after))
            state = _narrowed(state, ours, theirs, group.width(now), group.width(after), settings.backbone.bn_eps)
            now = after
    narrow = build(replace(with_widths(settings, widths), pretrained=None), model.num_classes)
    narrow.load_state_dict(state)
    return narrow.eval()


def _narrowed(state: dict[str, Tensor], old: Any, new: Any, before: int, after: int, eps: float) -> dict[str, Tensor]:
    """The tensors of a net in which one group has `after` of its `before` channels.

    Args:
        old: shapes of all tensors before. A dimension that changes is the group's, or inside squeeze-and-excite.
        new: shapes of all tensors after.
    """
    changed = [
        (name, place, size, new[name][place])
        for name, shape in old.items()
        for place, size in enumerate(shape)
        if size != new[name][place]
    ]
    own = [(name, place) for name, place, *sizes in changed if sizes == [before, after]]
    inner = [(name, place, size) for name, place, was, size in changed if [was, size] != [before, after]]
    if other := [name for name, *_ in inner if ".squeeze." not in name]:
        raise ModelError(f"{other[0]} mixes channels of several layers; such a net cannot be narrowed")
    state = _selected(state, own, _filters(state, own, eps).topk(after).indices)
    if inner:
        rows = next(state[name].flatten(1).norm(dim=1) for name, place, _ in inner if place == 0 and "weight" in name)
        state = _selected(state, [each[:2] for each in inner], rows.topk(inner[0][2]).indices)
    return state


def _filters(state: dict[str, Tensor], own: list[tuple[str, int]], eps: float) -> Tensor:
    """The size of each channel's filters, over all convolutions that make these channels."""
    total = torch.zeros(())
    for name, place in own:
        norm = f"{name.removesuffix('0.weight')}1"
        if place == 0 and name.endswith(".0.weight") and f"{norm}.running_var" in state:
            scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + eps).sqrt()
            total = total + (state[name].flatten(1).norm(dim=1) * scale) ** 2
    return total


def _selected(state: dict[str, Tensor], own: list[tuple[str, int]], kept: Tensor) -> dict[str, Tensor]:
    state = dict(state)
    for name, place in own:
        state[name] = state[name].index_select(place, kept.sort().values)
    return state
