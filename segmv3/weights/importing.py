"""Foreign weight files as nets of ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from segmv3 import checkpoint
from segmv3.config import LRASPP, Classifier, Model
from segmv3.errors import CheckpointError
from segmv3.labels import cityscapes_classes
from segmv3.models.classifier import ImageClassifier
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_classifier, create_model
from segmv3.weights.foreign import read_foreign
from segmv3.weights.formats import Format, Tensors, Variant, formats, recognise, reshaped


@dataclass(frozen=True)
class Imported:
    """The tensors of a weight file under our names, and the net they are for."""

    net: Model | Classifier
    names: tuple[str, ...]
    """Of the classes; empty when the file holds a backbone only."""
    tensors: Tensors
    unused: tuple[str, ...]
    """Tensors of the file that the net has no place for, such as an optimiser's averages; not BN's step counts."""
    origin: dict[str, Any] = field(default_factory=dict)
    """For the model card: format, variant, file, sha256, licence, score where known."""
    assumed: str = ""
    """What the tensors could not tell, as a line for the user."""

    @property
    def backbone_only(self) -> bool:
        return not self.names

    def model(self) -> Segmenter | ImageClassifier:
        """The net with its weights, in eval mode.

        Raises: CheckpointError when the file holds a backbone only.
        """
        if self.backbone_only:
            raise CheckpointError(
                f"{self.origin.get('file')} holds a backbone only; add --into NET, such as --into lraspp_large_d8, "
                "to start a segmentation net from it"
            )
        model = _build(self.net, len(self.names))
        model.load_state_dict(self.tensors, assign=True)  # shares their memory
        return model.eval()


def import_weights(path: Path | str, *, variant: str | None = None) -> Imported:
    """Read a weight file of segmv3 or of any project in `formats`, told apart by the names of its tensors.

    Args: variant: which net it is, where names and shapes leave a choice (input range, padding, dilation); by
        default the file's name decides, else the usual net.
    Raises: CheckpointError when it cannot be read, is of no known format, or has tensors missing or too many.
    """
    path = Path(path)
    if path.is_file() and checkpoint.is_ours(path):
        weights = checkpoint.read(path)
        origin = {"format": "segmv3", "file": path.name, "sha256": weights.card.sha256} | {
            key: weights.card.facts[key] for key in ("origin", "score") if key in weights.card.facts
        }
        return Imported(weights.net, weights.card.names, weights.tensors, (), origin)
    foreign = read_foreign(path)
    raw, averaged = _without_prefixes(foreign.tensors)
    kind = recognise(list(raw))
    if kind is None:
        raise CheckpointError(f"{path} is of no known format ({_described(raw)}); known are {_known()}")
    raw = kind.prepare(raw)
    chosen, alike = _choose(kind, raw, path, variant)
    tensors, used = _translate(kind, chosen.net, raw)
    unused = [name for name in raw if name not in used and not re.search(kind.unused, name)]
    if unused:
        raise CheckpointError(
            f"{path} looks like {chosen.name}, but {_count(unused)} in it belong to no such net, first {unused[0]}; "
            "it would be loaded in part only, so it was refused"
        )
    classes = tensors.get(f"{_classifier(chosen.net)}.weight")
    origin = {
        "format": kind.name,
        "variant": chosen.name,
        "file": path.name,
        "sha256": foreign.sha256,
        "licence": kind.licence,
    }
    return Imported(
        chosen.net,
        () if classes is None else _class_names(chosen, foreign.meta, classes.shape[0]),
        tensors,
        tuple(averaged),
        origin,
        _assumption(chosen, alike, variant),
    )


def _without_prefixes(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors without the prefixes of wrappers (`module.`, `ema_`), and the averaged copies left out.

    A hook of mmcv writes its averages beside the weights, dots replaced by underscores; alone they are the
    weights.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items() if not name.startswith("ema_")}
    averaged = {name.removeprefix("ema_"): tensor for name, tensor in tensors.items() if name.startswith("ema_")}
    if recognise(list(plain)) or not averaged:
        return plain, [f"ema_{name}" for name in averaged]
    return _with_dots({name.removeprefix("module.").removeprefix("module_"): t for name, t in averaged.items()}), []


def _with_dots(tensors: Tensors) -> Tensors:
    """Give names their dots back, by the names of the format they fit."""
    if recognise(list(tensors)):
        return tensors
    for kind in formats():
        for variant in kind.variants():
            dotted = {name.replace(".", "_"): name for name in _their_names(kind, variant.net)}
            if tensors.keys() <= dotted.keys():
                return {dotted[name]: tensor for name, tensor in tensors.items()}
    return tensors


def _their_names(kind: Format, net: Model | Classifier) -> list[str]:
    places = dict(kind.modules(net))
    return [_their_name(kind, places, name) for name in _shapes(net, 1)]


def _their_name(kind: Format, places: Mapping[str, str], name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{places[module]}.{kind.leaves.get(leaf, leaf)}"


@lru_cache(maxsize=64)
def _shapes(net: Model | Classifier, num_classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in _build(net, num_classes).state_dict().items()}


def _build(net: Model | Classifier, num_classes: int) -> Segmenter | ImageClassifier:
    return create_model(net, num_classes) if isinstance(net, Model) else create_classifier(net, num_classes)


def _classifier(net: Model | Classifier) -> str:
    """The module whose output channels are the classes."""
    if isinstance(net, Classifier):
        return "classifier"
    return "head.deep_classifier" if isinstance(net.head, LRASPP) else "head.classifier"


def _choose(kind: Format, raw: Tensors, path: Path, wanted: str | None) -> tuple[Variant, list[Variant]]:
    """The variant that the file holds, and all whose tensors look the same.

    Raises: CheckpointError when none fits; it names the one that comes nearest.
    """
    fitting, nearest = [], list[tuple[int, str, str]]()
    for variant in kind.variants():
        problems = _problems(kind, variant.net, raw)
        if not problems:
            fitting.append(variant)
        else:
            nearest.append((len(problems), variant.name, problems[0]))
    if not fitting:
        number, name, first = min(nearest)
        raise CheckpointError(
            f"{path} has {kind.name}'s names but fits none of its nets; nearest is {name}, where {number} tensors "
            f"are missing or differ (first: {first})"
        )
    if wanted is not None:
        named = next((v for v in fitting if v.name == wanted), None)
        if named is None:
            raise CheckpointError(f"{path} is not {wanted}; it fits {', '.join(v.name for v in fitting)}")
        return named, fitting
    # a generic file name says nothing: there the folders speak
    text = (str(path) if re.match(r"(pytorch_)?model\b", path.name) else path.name).lower()
    hinted = [v for v in fitting if v.hint and re.search(v.hint, text)]
    # the most telling hint wins; without one, the usual variant
    return max(hinted, key=lambda v: len(v.hint)) if hinted else fitting[0], fitting


def _problems(kind: Format, net: Model | Classifier, raw: Tensors) -> list[str]:
    """Tensors of ours that the file lacks or has in another shape."""
    places = dict(kind.modules(net))
    classes = raw.get(f"{places[_classifier(net)]}.weight")
    problems = []
    for name, shape in _shapes(net, 1 if classes is None else classes.shape[0]).items():
        if _left_to_heads(net, name, raw, places):
            continue
        theirs = _their_name(kind, places, name)
        if theirs not in raw:
            if not re.search(kind.optional, name):
                problems.append(f"{theirs} is missing")
        elif (found := reshaped(raw[theirs], shape).shape) != shape:
            problems.append(f"{theirs} is {'x'.join(map(str, found))}, expected {'x'.join(map(str, shape))}")
    return problems


def _left_to_heads(net: Model | Classifier, name: str, raw: Tensors, places: Mapping[str, str]) -> bool:
    """Whether a tensor belongs to a classifier that a backbone-only file does not have."""
    if not isinstance(net, Classifier) or name.startswith("backbone."):
        return False
    return not any(f"{places[module]}.weight" in raw for module in ("hidden", "classifier"))


def _translate(kind: Format, net: Model | Classifier, raw: Tensors) -> tuple[Tensors, set[str]]:
    """Tensors under our names, and the names of theirs that were used."""
    places = dict(kind.modules(net))
    classes = raw.get(f"{places[_classifier(net)]}.weight")
    tensors, used = Tensors(), set[str]()
    for name, shape in _shapes(net, 1 if classes is None else classes.shape[0]).items():
        if _left_to_heads(net, name, raw, places):
            continue
        theirs = _their_name(kind, places, name)
        if theirs in raw:
            used.add(theirs)
            dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
            tensors[name] = reshaped(raw[theirs], shape).to(dtype).contiguous()
        else:
            tensors[name] = torch.zeros(shape, dtype=torch.int64 if not shape else torch.float32)
    return tensors, used


def _class_names(variant: Variant, meta: Mapping[str, Any], number: int) -> tuple[str, ...]:
    """Class names from the file's own notes, else those of the data set that the format publishes for."""
    notes = meta.get("meta") if isinstance(meta.get("meta"), Mapping) else {}
    notes = {**notes, **(notes.get("dataset_meta") or {})} if isinstance(notes, Mapping) else {}
    stored = notes.get("CLASSES") or notes.get("classes")
    if isinstance(stored, list | tuple) and len(stored) == number and all(isinstance(n, str) for n in stored):
        return tuple(stored)
    if isinstance(variant.net, Classifier) and number == 1000:
        from torchvision.models import MobileNet_V3_Large_Weights

        return tuple(MobileNet_V3_Large_Weights.IMAGENET1K_V1.meta["categories"])
    if variant.name.startswith("torchvision/") and number == 21:
        from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

        return tuple(LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"])
    if isinstance(variant.net, Model) and number == 19:
        return cityscapes_classes().names
    return tuple(f"class_{i}" for i in range(number))


def _assumption(chosen: Variant, alike: list[Variant], wanted: str | None) -> str:
    others = [variant.name for variant in alike if variant.name != chosen.name]
    if wanted is not None or not others:
        return ""
    return f"taken for {chosen.name}; {', '.join(others)} would look the same: --variant NAME chooses"


def _described(tensors: Tensors) -> str:
    if not tensors:
        return "no tensors in it"
    return f"{len(tensors)} tensors, first {next(iter(tensors))}"


def _known() -> str:
    return ", ".join(kind.name for kind in formats())


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
