"""Any net of timm as a backbone, through timm's own `features_only`."""

from typing import Any

import timm
from torch import Tensor, nn

from segmv3.errors import ModelError, one_line
from segmv3.models.backbones import Tap, Timm
from segmv3.models.layers import FeatureMaps


class TimmBackbone(FeatureMaps):
    """Normalised image in, the tapped feature maps and the deep one (the last stage's output) out.

    Attributes:
        channels: of the returned maps, the deep one last.
    """

    def __init__(self, net: Timm, taps: tuple[Tap, ...] = (), *, bn_momentum: float = 0.1) -> None:
        """Build a net of timm with fresh weights.

        Args:
            net: its name and output stride.
            taps: the maps to return before the deep one. A stage of timm gives its output alone, so "first" and "last"
                are the same map.
            bn_momentum: weight of the newest batch in BN's running statistics.

        Raises:
            ModelError: timm has no such net, it gives no maps, or not these.
        """
        super().__init__()
        # not every net takes an output stride
        dilated: dict[str, Any] = {} if net.output_stride == 32 else {"output_stride": net.output_stride}
        try:
            self.net = timm.create_model(net.name, features_only=True, **dilated)
        except Exception as error:  # each family of timm raises its own
            raise ModelError(
                f"timm cannot build {net.name!r} with output stride {net.output_stride} ({one_line(error)})"
            ) from None
        info: Any = self.net.feature_info
        if (deepest := info.reduction()[-1]) != net.output_stride:
            raise ModelError(f"{net.title} has its deepest map at stride {deepest}, not at {net.output_stride}")
        first = info.reduction()[0]
        strides = [first * 2**stage for stage in range(len(info.reduction()))]  # of the undilated net
        for tap in taps:
            if tap.stride not in strides or tap.at in ("expanded", "expansion"):
                kind = "map" if tap.at in ("first", "last") else f"{tap.at} map"
                raise ModelError(
                    f"{net.title} has no {kind} at stride {tap.stride}; it has the outputs of its stages at "
                    f"{', '.join(map(str, strides))}: choose another head or tap"
                )
        names, known = info.module_name(), {name for name, _ in self.net.named_modules()}
        names = [name if name in known else name.replace(".", "_") for name in names]
        self._ends = dict(zip(names, strides, strict=True))
        self._places = [*(strides.index(tap.stride) for tap in taps), -1]
        self.channels = tuple(info.channels()[place] for place in self._places)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum

    def layers_by_stride(self) -> dict[int, list[nn.Module]]:
        """Modules by their stride in the undilated net; all at 32 where timm does not name the ends of its stages."""
        every = self.net.named_modules()
        owners = [(name, x) for name, x in every if list(x.parameters(recurse=False)) or not list(x.children())]
        inside = [[f"{name}.".startswith(f"{end}.") for end in self._ends] for name, _ in owners]
        found: dict[int, list[nn.Module]] = {}
        place, strides = 0, list(self._ends.values())
        for before, now, (_, owner) in zip([inside[0], *inside], inside, owners, strict=False):
            place += place < len(strides) - 1 and before[place] and not now[place]  # the end of a stage is behind
            found.setdefault(strides[place], []).append(owner)
        return found if len(found) == len(strides) else {32: [self]}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """N x 3 x H x W normalised -> the taps, then the deep map."""
        maps = self.net(x)
        return tuple(maps[place] for place in self._places)
