"""Whole nets as settings: a backbone and what comes after it, and their way through a weight file's header."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from traceback import extract_tb
from typing import Any, Literal

from segmv3.errors import ModelError, Segmv3Error, is_out_of_memory, one_line
from segmv3.models.backbones import Backbone, MobileNetV2, MobileNetV3, Timm
from segmv3.models.heads import LRASPP, RASPP, Head, LRASPPDecoder, LRASPPPlus, MobileSeg
from segmv3.settings import Rule, mistyped, written_at

Part = type[Backbone] | type[Head]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A segmentation net. `segmv3.models.zoo` names the ones that are used; parameters are counted there."""

    backbone: Backbone = field(default_factory=MobileNetV3)
    head: Head = field(default_factory=LRASPP)
    bn_momentum: float = 0.1
    """Weight of the newest batch in BN's running statistics (PyTorch's sense)."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB, 0..255, subtracted inside the model (ImageNet's)."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pretrained: str | None = None
    """Weights to start from, a file or a name of `segmv3 weights list`: what fits is taken, the rest is listed."""

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors with one row for each class."""
        return tuple(f"head.{name}." for name in self.head.classifiers)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classification net: backbone, global mean, two linear layers."""

    backbone: MobileNetV3 = field(default_factory=MobileNetV3)
    dropout: float = 0.2
    """Share of the hidden layer that training drops."""
    bn_momentum: float = 0.1
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pretrained: str | None = None
    """Weights to start from, a file or a name of `segmv3 weights list`."""

    classifiers = ("classifier.",)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detection net: torchvision's SSDLite on a backbone (arXiv 1801.04381, section 6.2; 1905.02244, section 6.3).

    C4 is the expansion of the block that goes from stride 16 to 32, C5 the deep map. The backbone's `tail` halves the
    channels between them.
    """

    backbone: MobileNetV3 = field(default_factory=MobileNetV3)
    scales: tuple[float, float] = (0.2, 0.95)
    """Smallest and largest side of the anchor boxes, as a share of the picture's; those between are evenly spaced."""
    anchors: Literal["torchvision", "tensorflow"] = "torchvision"
    """Six boxes in each cell of all maps, or three on the first map, one of them of half the smallest scale."""
    bn_momentum: float = 0.03
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    areas: Head | None = None
    """A segmentation head on the same backbone: the net then also labels every pixel, in the same pass. Boxes and areas
    share one list of classes; `data.areas` says where the labels are."""
    pretrained: str | None = None
    """Weights to start from, a file or a name of `segmv3 weights list`: a detector, or a classifier's backbone."""

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors with rows for each class."""
        of_areas = self.areas.classifiers if self.areas else ()
        return (
            *(f"head.classification_head.module_list.{level}.1." for level in range(6)),
            *(f"areas.{name}." for name in of_areas),
        )

    def classes_of(self, rows: int) -> int:
        """How many classes a net tells apart whose first classifier has so many rows."""
        return rows // (3 if self.anchors == "tensorflow" else 6) - 1

    def rules(self) -> list[Rule]:
        """What its values must keep to."""
        rising = 0 < self.scales[0] < self.scales[1] <= 1
        return [
            (rising, "scales", "must be two rising shares of the picture, above 0 and at most 1"),
            (self.backbone.last, "backbone.last", "must be there: its output is the map C5"),
            *((holds, f"areas.{name}", wrong) for holds, name, wrong in (self.areas.rules() if self.areas else ())),
        ]


Net = Model | Classifier | Detector


def net_rules(net: Net) -> list[Rule]:
    """What the settings of a net must keep to, whoever wrote them: a config file, a flag, a weight file."""
    rules = [(holds, f"backbone.{name}", wrong) for holds, name, wrong in net.backbone.rules()]
    if isinstance(net, Model):
        rules += [(holds, f"head.{name}", wrong) for holds, name, wrong in net.head.rules()]
    elif isinstance(net, Detector):
        rules += net.rules()
    else:
        rules += [(0 <= net.dropout < 1, "dropout", "must be at least 0 and below 1")]
    return [
        *rules,
        (0 < net.bn_momentum <= 1, "bn-momentum", "must be above 0 and at most 1"),
        (min(net.std) > 0, "std", "must be above 0"),
    ]


_BACKBONES, _HEADS = (MobileNetV3, MobileNetV2, Timm), (LRASPP, LRASPPDecoder, RASPP, LRASPPPlus, MobileSeg)
_OURS: dict[str, type] = {kind.__name__: kind for kind in (Model, Classifier, Detector, *_BACKBONES, *_HEADS)}


def net_from_dict(values: dict[str, Any], parts: Iterable[Part] = ()) -> Net:
    """The settings of a net from what `segmv3.settings.to_dict` made of them.

    Args:
        values: as in the header of a weight file.
        parts: classes of heads and backbones that are not segmv3's own. Those that are imported are known without.

    Raises:
        ModelError: a part is not here or lacks a method, or two have one name.
        ValueError, KeyError, TypeError: the values are of another kind, or the net is none that can be built.
    """
    if isinstance(parts, type):
        raise ModelError(f"parts is the class {parts.__name__}; give a list of classes, parts=[{parts.__name__}]")
    given = list(parts)
    for part in given:
        if not (isinstance(part, type) and is_dataclass(part) and issubclass(part, Backbone | Head)):
            name = getattr(part, "__name__", part)
            raise ModelError(f"{name} is no dataclass that inherits Head or Backbone of segmv3.config")

    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            kind = _part(value["kind"], given)
            return kind(**{name: typed(v) for name, v in value.items() if name != "kind"})
        return tuple(value) if isinstance(value, list) else value

    net = typed(values)
    if not isinstance(net, Net):
        raise TypeError(f"{values['kind']} is no whole net")
    if wrong := mistyped(net):
        raise ValueError(f"{wrong[0][0]} cannot be {_shown(net, wrong[0][0])}")
    for holds, name, text in net_rules(net):
        if not holds:
            raise ValueError(f"{name} {text}")
    return net


def _part(name: str, given: list[Part]) -> type:
    """The class of this name: segmv3's own or one of those given, else one that is imported.

    Of a class that was defined twice by the same file the later one counts.

    Raises:
        ModelError: there is none, it lacks a method, or there are two of different files.
        KeyError: the name is none.
    """
    imported = [*_subclasses(Backbone), *_subclasses(Head)]
    named = [part for part in (_OURS.get(name), *given) if part and part.__name__ == name]
    found = {part.__module__: part for part in named or imported if part.__name__ == name}
    if len(found) > 1:
        raise ModelError(f"two parts have the name {name} ({' and '.join(found)}); rename one")
    if not found and str(name).isidentifier():
        raise ModelError(
            f"its net has the part {name[:80]}, which segmv3 does not have: import the class and give it as "
            "segmv3.load(..., parts=[...]), or name its file with --parts FILE.py"
        )
    kind = next(iter(found.values())) if found else _OURS[name]
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ModelError(f"the part {name}{written_at(kind)} lacks {' and '.join(lacking)}")
    return kind


@contextmanager
def naming(part: Backbone | Head) -> Iterator[None]:
    """While a part builds its module: where the code of one that is not segmv3's own fails, the error names its place.

    Raises:
        ModelError: in one line, what failed at which line of which file.
    """
    try:
        yield
    except Exception as error:
        kind = type(part)
        if kind in _OURS.values() or isinstance(error, Segmv3Error) or is_out_of_memory(error):
            raise
        file = getattr(getattr(kind.build, "__code__", None), "co_filename", "")
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
        place = f" ({file}, line {lines[-1]})" if lines else written_at(kind)
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"the part {kind.__name__} cannot be built: it fails with {reason}{place}") from error


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    subclass: type[Any]
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _shown(net: Net, name: str) -> str:
    value: Any = net
    for part in name.split("."):
        value = getattr(value, part)
    return ascii(value)[:60]
