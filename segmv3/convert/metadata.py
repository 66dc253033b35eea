"""What an exported file says of itself, wherever its format keeps such text."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from segmv3.checkpoint import Card, package_version, source_commit
from segmv3.convert.graph import Net, Output
from segmv3.errors import CheckpointError, one_line
from segmv3.labels import Classes, Color
from segmv3.models.nets import Classifier, Model, net_from_dict
from segmv3.records import from_json, typed
from segmv3.settings import to_dict

KEY = "segmv3"
"""Name of the text in a file's own metadata: ONNX metadata_props, OpenVINO rt_info, torch.export extra files."""

_FORMAT = 1
_LONGEST = 1_000_000

FilePrecision = Literal["fp32", "int8"]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Everything needed to use an exported net, and where it came from."""

    output: Output
    size: tuple[int, int] | None
    """Height and width that it takes; None for any."""
    names: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    colors: tuple[Color, ...]
    model: dict[str, Any]
    """The net's settings, as `segmv3.config.to_dict` makes them."""
    precision: FilePrecision = "fp32"
    """Precision that the file asks for."""
    source: str = ""
    """Name of the weight file."""
    source_sha256: str = ""
    commit: str = ""
    """Commit of the segmv3 that wrote the file."""
    version: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the weight file knew of itself: score, data set, origin."""
    view: dict[str, Any] = field(default_factory=dict)
    """Of a classifier: how a picture becomes its input, the fields of `segmv3.data.view.View`."""

    @property
    def classes(self) -> Classes:
        return Classes(self.names, self.colors)

    @property
    def net(self) -> Model:
        """The settings of the net. Raises: CheckpointError where they are of no segmentation net."""
        try:
            net = net_from_dict(self.model)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"the exported file names no net that this version knows ({error})") from None
        if not isinstance(net, Model):
            raise CheckpointError("the exported file is a classifier")
        return net

    def to_text(self) -> str:
        return json.dumps({"format": _FORMAT} | asdict(self))


def describe(
    model: Net,
    card: Card,
    output: Output,
    size: tuple[int, int] | None,
    *,
    source: str,
    precision: FilePrecision,
    view: dict[str, Any] | None = None,
) -> Metadata:
    """The metadata of an export of this net."""
    return Metadata(
        output=output,
        size=size,
        names=card.names,
        colors=card.colors,
        model=to_dict(replace(model.config, pretrained=None)),
        precision=precision,
        source=source,
        source_sha256=card.sha256,
        commit=source_commit(),
        version=package_version(),
        facts=card.facts,
        view=view or {},
    )


def from_text(text: str | None, path: object) -> Metadata:
    """Read what `Metadata.to_text` wrote.

    Args:
        text: of the file; None where there is none.
        path: the file, for the message.

    Raises:
        CheckpointError: it is something else.
    """
    if text is None:
        raise CheckpointError(f"{path} was not exported by segmv3; use segmv3 export")
    try:
        if len(text) > _LONGEST:
            raise ValueError("too long")
        values = from_json(text.encode())
        if values.pop("format") != _FORMAT:
            raise CheckpointError(f"{path} was exported by another version of segmv3; export it again")
        if unknown := values.keys() - {each.name for each in fields(Metadata)}:
            raise ValueError(f"it has an unknown {unknown.pop()!r:.40}")
        metadata = typed(values, Metadata)
        if metadata.size and min(metadata.size) < 1:
            raise ValueError("its size is no size")
        if not all(name.isprintable() for name in metadata.names):
            raise ValueError("a class name is no text")
        classifies = metadata.output == "class-logits"
        if classifies != (metadata.model.get("kind") == Classifier.__name__):
            raise ValueError("its output is of another kind than its net")
        if not classifies:
            _ = metadata.classes  # their rules hold
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(error, 120)
        raise CheckpointError(f"{path} says nothing of use about itself ({reason}); export it again") from None
    return metadata
