"""Which parts of a net training leaves as they start, and when they thaw. Importing this module imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from segmv3.errors import ModelError
from segmv3.settings import Rule

if TYPE_CHECKING:
    from torch import nn

Stride = Literal[0, 2, 4, 8, 16, 32]
_STRIDES: tuple[Stride, ...] = get_args(Stride)


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Which parts start frozen, and when they thaw. The head always trains."""

    backbone: Stride = 0
    """The backbone's layers up to this stride of the undilated net start frozen: 32 is all of it, 0 none. They get no
    gradient and no weight decay, and their BN keeps its statistics."""
    thaw_at: int | None = None
    """Steps after which frozen layers train too; None leaves them frozen."""
    thaw_every: int = 0
    """Thaw by stages: the deepest first, the next after so many steps more (ULMFiT, arXiv 1801.06146). 0 thaws all at
    once."""
    bn: bool = False
    """Whether BN of the whole net keeps the statistics that it starts with, and is applied as in evaluation. Its scales
    and shifts train all the same. A pretrained net then suffers no small batches."""
    bn_thaw_at: int | None = None
    """Steps after which all BN counts again; None leaves it."""

    def rules(self) -> list[Rule]:
        """What the settings must keep to."""
        at, bn_at = self.thaw_at, self.bn_thaw_at
        return [
            (at is None or at >= 1, "thaw-at", "must be at least 1, or None to leave the layers frozen"),
            (at is None or self.backbone > 0, "thaw-at", "needs frozen layers: set freeze.backbone"),
            (self.thaw_every >= 0, "thaw-every", "must be at least 0"),
            (not self.thaw_every or at is not None, "thaw-every", "needs freeze.thaw-at, where the thawing begins"),
            (bn_at is None or bn_at >= 1, "bn-thaw-at", "must be at least 1, or None to keep the statistics"),
            (bn_at is None or self.bn, "bn-thaw-at", "needs frozen statistics: set freeze.bn"),
        ]

    def at(self, step: int) -> tuple[Stride, bool]:
        """What is frozen in step `step`, from 0: layers of the backbone up to this stride, and the statistics of BN."""
        place = _STRIDES.index(self.backbone)
        if self.thaw_at is not None and step >= self.thaw_at:
            thawed = 1 + (step - self.thaw_at) // self.thaw_every if self.thaw_every else place
            place = max(0, place - thawed)
        return _STRIDES[place], self.bn and (self.bn_thaw_at is None or step < self.bn_thaw_at)


class Freezing:
    """Freezes and thaws the parts of a net, as a function of the step alone.

    Args:
        net: with a backbone, before it is wrapped.
        freeze: the settings.
        shared: several processes train. DistributedDataParallel must see every gradient that it was made for: those of
            frozen parameters are computed there, and dropped.

    Raises:
        ModelError: the backbone cannot be frozen in part.
    """

    def __init__(self, net: Any, freeze: Freeze, *, shared: bool = False) -> None:
        self.freeze, self._net, self._shared = freeze, net, shared
        self._layers = layers_by_stride(net.backbone) if freeze.backbone else {}
        if freeze.backbone and min(self._layers) > freeze.backbone:
            raise ModelError(
                f"{net.config.backbone.title} has no stages up to stride {freeze.backbone} that could be frozen; "
                f"the first is {min(self._layers)} (freeze.backbone)"
            )
        self._frozen: list[Any] = []

    def apply(self, step: int) -> None:
        """Freeze what is frozen in this step; after `train()` on the net, which would wake BN."""
        if self.freeze == Freeze():
            return
        from torch.nn.modules.batchnorm import _BatchNorm

        stride, statistics = self.freeze.at(step)
        parts = [layer for place, layers in self._layers.items() for layer in layers if place <= stride]
        self._frozen = [parameter for part in parts for parameter in part.parameters()]
        if not self._shared:
            self._net.requires_grad_(True)
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        for part in [self._net] if statistics else parts:
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def drop_gradients(self) -> None:
        """Leave the optimiser nothing to do for frozen parameters."""
        for parameter in self._frozen:
            parameter.grad = None

    def told(self, step: int) -> str:
        """What is frozen in a step, for people; empty for nothing."""
        stride, statistics = self.freeze.at(step)
        layers = [layer for place, found in self._layers.items() if place <= stride for layer in found]
        size = sum(each.numel() for each in {parameter for layer in layers for parameter in layer.parameters()})
        until = "the backbone" if stride == max(self._layers, default=0) else f"the backbone up to stride {stride}"
        parts = [f"{until} ({size:,} parameters)"] * bool(layers) + ["all BN statistics"] * statistics
        return " and ".join(parts)

    def thawed(self, step: int) -> str:
        """What a step newly trains, and what stays frozen; empty where nothing changes."""
        if not step or self.freeze.at(step) == self.freeze.at(step - 1):
            return ""
        return f"frozen from here on: {self.told(step) or 'nothing'}"


def layers_by_stride(backbone: "nn.Module") -> "dict[int, list[nn.Module]]":
    """The layers of a backbone by their stride in the undilated net. One that does not tell them is one layer of 32."""
    tell: Any = getattr(backbone, "layers_by_stride", None)
    return tell() if callable(tell) else {32: [backbone]}
