"""Reads weight files of other projects into segmv3's nets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmv3 import checkpoint
from segmv3.errors import CheckpointError
from segmv3.labels import Classes, Color, cityscapes_classes, numbered_classes
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Classifier, Detector, Model, Net
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import MOST_CLASSES, build, state_shapes
from segmv3.weights.foreign import read_foreign
from segmv3.weights.formats import MMSEG, OURS, Format, Tensors, Variant, formats, recognise, reshaped

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector


@dataclass(frozen=True)
class Imported:
    """The tensors of a weight file under our names, and the net they are for."""

    title: str
    """What the file is: a variant of a project, or segmv3's own."""
    net: Net
    names: tuple[str, ...]
    """Names of the classes; empty when the file holds only a backbone."""
    tensors: Tensors
    new: tuple[str, ...] = ()
    """Tensors that the file has no counterpart of and that mean nothing by being zero: step counts, absent biases."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the net has no place for, such as averaged copies; not BN's step counts."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Format, variant, file, sha256, licence, and score where known; for the model card."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a file of segmv3 says of itself beside that."""
    notes: tuple[str, ...] = ()
    """What the user should know: assumptions, and weights in the file that were left alone."""
    colors: tuple[Color, ...] = ()
    """Colours of the classes, where the file has them."""

    @property
    def backbone_only(self) -> bool:
        return not self.names

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes; not for a classifier, which may have more than labels can."""
        return Classes(self.names, self.colors) if self.colors else colored(self.names)

    def model(self) -> "Segmenter | ImageClassifier | ObjectDetector":
        """The net with its weights, in eval mode.

        Raises: CheckpointError when the file holds a backbone only.
        """
        if self.backbone_only:
            raise CheckpointError(
                f"{self.origin.get('file')} holds a backbone only; segmv3 weights import with --into NET, such as "
                "--into lraspp_large_d8, starts a segmentation net from it"
            )
        model = build(self.net, len(self.names))
        model.load_state_dict(self.tensors, assign=True)  # shares their memory
        return model.eval()


def colored(names: tuple[str, ...]) -> Classes:
    """Classes of these names in Cityscapes' colours where they are Cityscapes', else in evenly spaced ones."""
    cityscapes = cityscapes_classes()
    return cityscapes if names == cityscapes.names else replace(numbered_classes(len(names)), names=names)


def import_weights(path: Path | str, *, variant: str | None = None) -> Imported:
    """Read a weight file of segmv3 or of any project in `formats`, told apart by the names of its tensors.

    Args:
        variant: which net it is, where names and shapes leave a choice (input range, padding, dilation). By default the
            file's name decides, else the usual net.

    Raises:
        CheckpointError: it cannot be read, is of no known format, or has tensors missing, left over, not finite or of
            another kind than weights are.
    """
    path = Path(path)
    if path.is_file() and checkpoint.is_ours(path):
        return _ours(path, variant)
    foreign = read_foreign(path)
    raw, averaged, notes = _without_prefixes(foreign.tensors, path)
    kind = recognise(list(raw))
    if kind is None:
        known = ", ".join(kind.name for kind in formats())
        found = f"{_count(list(raw))}, first {_safe(next(iter(raw)))}" if raw else "no tensors in it"
        raise CheckpointError(f"{path} is of no known format ({found}); known are {known}")
    raw = kind.prepare(raw)
    chosen, alike = _choose(kind, raw, path, variant)
    parts = _Parts(kind, chosen.net, raw)
    used = {theirs for theirs in parts.places.values() if theirs in raw}
    unused = [name for name in raw if name not in used and not re.search(kind.unused, name)]
    if unused and not (parts.backbone_only and set(unused) <= parts.head_names):
        raise CheckpointError(
            f"{path} looks like {chosen.name}, but {_count(unused, 'belongs', 'belong')} to no such net, first "
            f"{_safe(unused[0])}; it would be loaded in part only, so it was refused"
        )
    tensors = _translate(parts, raw, path)
    origin = {
        "format": kind.name,
        "variant": chosen.name,
        "file": path.name,
        "sha256": foreign.sha256,
        "licence": kind.licence,
    }
    return Imported(
        chosen.name,
        chosen.net,
        () if parts.backbone_only else _class_names(chosen, foreign.meta, parts.num_classes),
        tensors,
        tuple(name for name, theirs in parts.places.items() if theirs not in raw),
        (*averaged, *unused),
        origin,
        notes=(*notes, *_notes(chosen, alike, variant, foreign.meta, parts)),
    )


def _ours(path: Path, variant: str | None) -> Imported:
    if variant is not None:
        raise CheckpointError(
            f"{path} was written by segmv3 and says what it is; --variant is for other projects' files"
        )
    weights = checkpoint.read(path)
    facts = {name: value for name, value in weights.card.facts.items() if name not in ("version", "commit")}
    before = facts.pop("origin", None) or {}
    origin = {"format": "segmv3", "file": path.name, "sha256": weights.card.sha256}
    if isinstance(before, dict):
        origin = before | {"sha256": before.get("sha256", weights.card.sha256)} if before else origin
    card = weights.card
    return Imported("segmv3", weights.net, card.names, weights.tensors, origin=origin, facts=facts, colors=card.colors)


def _without_prefixes(tensors: Tensors, path: Path) -> tuple[Tensors, list[str], list[str]]:
    """Tensors without the words that wrappers put in front, the names of those left out, and lines for the user.

    A hook of mmcv writes its averages beside the weights, dots replaced by underscores; alone they are the weights.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema_")}
    averaged = {name.removeprefix("ema_"): tensor for name, tensor in tensors.items() if name.startswith("ema_")}
    if not plain and averaged:
        weights, _, _ = _unwrapped(averaged, path)
        return _with_dots({name.removeprefix("module_"): tensor for name, tensor in weights.items()}), [], []
    found, left, notes = _unwrapped(plain, path)
    if kept := [f"ema_{name}" for name in averaged]:
        notes.append(f"{_count(kept)} of averaged weights (ema_) left out")
    return found, [*kept, *left], notes


_WRAPPERS = r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."
_AVERAGED = r"(?i)(ema|averag|teacher|shadow|swa)"
_NOT_WEIGHTS = r"(?i)(^|[._])(n_averaged|criterion|loss|metric|m?iou|confmat|acc|optim|ema|num_updates|decay)"


def _unwrapped(tensors: Tensors, path: Path) -> tuple[Tensors, list[str], list[str]]:
    """Tensors under the names that a format knows, without the words in front; else as `_without_prefixes`.

    A file with two nets is refused, unless one of them is the average of the other. Backbone weights of mmsegmentation
    and our own lack the word "backbone." of the segmentation nets, so it is put in front.

    Raises: CheckpointError for several nets.
    """
    bare = {re.sub(_WRAPPERS, "", name): tensor for name, tensor in tensors.items()}
    wrapped = len(bare) == len(tensors) and bare.keys() != tensors.keys()
    tensors = bare if wrapped else tensors
    notes = ["names of wrappers (such as module., _orig_mod.) taken off"] if wrapped else []
    found = _prefixes(list(tensors))
    if len(found) > 1:
        found = [prefix for prefix in found if not re.search(_AVERAGED, prefix)] or found
    if len(found) > 1:
        several = ", ".join(_safe(prefix or "(none)") for prefix in found)
        raise CheckpointError(f"{path} holds several nets, under {several}; save the one that is wanted")
    if not found:
        longer = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        return (longer if recognise(list(longer)) in (MMSEG, OURS) else tensors), [], notes
    (prefix,) = found
    others = [other for other in _prefixes(list(tensors)) if other != prefix]
    kept, left = Tensors(), list[str]()
    for name, tensor in tensors.items():
        inside = name.startswith(prefix) and not any(name.startswith(other) for other in others if other)
        if inside and (prefix or not re.search(_NOT_WEIGHTS, name.partition(".")[0])):
            kept[name.removeprefix(prefix)] = tensor
        elif re.search(_NOT_WEIGHTS, name) or any(name.startswith(other) for other in others if other):
            left.append(name)
        else:
            kept[name] = tensor  # which is refused, as it belongs to no net
    if prefix:
        notes.append(f"the prefix {_safe(prefix)} taken off")
    if left:
        notes.append(f"{_count(left)} of other things left out, first {_safe(left[0])}")
    return kept, left, notes


def _prefixes(names: list[str]) -> list[str]:
    """The prefixes of the nets in a file. A net inside another net is a part of that, unless it is an average."""
    places = {
        name[: match.start()]
        for name in names
        for kind in formats()
        if (match := re.search(kind.mark.replace("^", r"(?:^|(?<=\.))", 1), name))
    }
    parts = {p for p in places for q in places if p != q and p.startswith(q) and not re.search(_AVERAGED, p[len(q) :])}
    return sorted(places - parts)


def _with_dots(tensors: Tensors) -> Tensors:
    """Give names their dots back, by the names of the format they fit."""
    if recognise(list(tensors)):
        return tensors
    for kind in formats():
        for variant in kind.variants():
            dotted = {name.replace(".", "_"): name for name in their_names(kind, variant.net)}
            if tensors.keys() <= dotted.keys():
                return {dotted[name]: tensor for name, tensor in tensors.items()}
    return tensors


def their_names(kind: Format, net: Net) -> list[str]:
    """A project's names of the tensors of a net, in the order of segmv3's."""
    modules = dict(kind.modules(net))
    return [_their_name(kind, modules, name) for name in state_shapes(net, 1)]


def _their_name(kind: Format, modules: Mapping[str, str], name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{kind.leaves.get(leaf, leaf)}"


class _Parts:
    """Which tensors of a net a file should have, and how many classes it tells apart.

    Attributes: places: our names, each with theirs. backbone_only: the file has no classifier, so only the backbone
        counts. head_names: their names of everything behind the backbone.
    """

    def __init__(self, kind: Format, net: Net, raw: Tensors) -> None:
        self.kind = kind
        modules = dict(kind.modules(net))
        classifier = raw.get(f"{modules[net.classifiers[0].removesuffix('.')]}.weight")
        self.backbone_only = classifier is None
        rows = 1 if classifier is None or classifier.ndim < 2 else classifier.shape[0]
        rows = net.classes_of(rows) if isinstance(net, Detector) else rows
        self.num_classes = rows if 1 <= rows <= MOST_CLASSES else 1
        self.shapes = state_shapes(net, self.num_classes)
        places = {name: _their_name(kind, modules, name) for name in self.shapes}
        self.head_names = {theirs for name, theirs in places.items() if not name.startswith("backbone.")}
        if self.backbone_only:
            places = {name: theirs for name, theirs in places.items() if name.startswith("backbone.")}
        self.places = places


def _choose(kind: Format, raw: Tensors, path: Path, wanted: str | None) -> tuple[Variant, list[Variant]]:
    """The variant that the file holds, and all whose tensors look the same.

    Raises: CheckpointError when none fits; it names the one that comes nearest.
    """
    whole, backbones, nearest = list[Variant](), list[Variant](), list[tuple[int, int, str, str]]()
    for variant in kind.variants():
        parts = _Parts(kind, variant.net, raw)
        if problems := list(_problems(parts, raw)):
            nearest.append((len(problems), len(parts.places), variant.name, problems[0]))
        else:
            (backbones if parts.backbone_only else whole).append(variant)
    if not (fitting := whole or backbones):
        wrong, number, name, first = min(nearest)
        if 2 * wrong > number:
            raise CheckpointError(f"{path} has names like {kind.name}'s but is another net than those that are known")
        raise CheckpointError(
            f"{path} has {kind.name}'s names but fits none of its nets; nearest is {name}, where "
            f"{wrong} of {number} tensors are missing or differ (first: {_safe(first)})"
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


def _problems(parts: _Parts, raw: Tensors) -> Iterator[str]:
    """Tensors of the net that the file lacks or has in another shape."""
    for name, theirs in parts.places.items():
        shape = parts.shapes[name]
        if theirs not in raw:
            if not re.search(parts.kind.optional, name):
                yield f"{theirs} is missing"
        elif (found := reshaped(raw[theirs], shape).shape) != shape:
            yield f"{theirs} is {'x'.join(map(str, found))}, expected {'x'.join(map(str, shape))}"


def _translate(parts: _Parts, raw: Tensors, path: Path) -> Tensors:
    """Tensors under our names.

    Raises: CheckpointError for values that no trained net has.
    """
    tensors = Tensors()
    for name, theirs in parts.places.items():
        shape = parts.shapes[name]
        steps = name.endswith("num_batches_tracked")
        if theirs not in raw:
            tensors[name] = torch.zeros(shape, dtype=torch.int64 if steps else torch.float32)
            continue
        tensor = reshaped(raw[theirs], shape)
        if not steps:
            _refuse_values(tensor, theirs, path)
        tensors[name] = tensor.to(torch.int64 if steps else torch.float32).contiguous()
    return tensors


def _refuse_values(tensor: Tensor, name: str, path: Path) -> None:
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {_safe(name)} is {kind}, not floating point; quantised weights cannot be used")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: {_safe(name)} is not finite; the training that wrote it had failed")
    if re.search(r"running_var$|_variance$", name) and bool((tensor < 0).any()):
        raise CheckpointError(f"{path}: {_safe(name)} holds negative variances; the file is damaged")


def _class_names(variant: Variant, meta: Mapping[str, Any], number: int) -> tuple[str, ...]:
    """Class names from the file's own notes, else those of the data set that the format publishes for."""
    notes = _mapping(meta.get("meta"))
    notes = {**notes, **_mapping(notes.get("dataset_meta"))}
    stored = notes.get("CLASSES") or notes.get("classes")
    if isinstance(stored, list) and len(stored) == number and all(isinstance(n, str) for n in stored):
        # without what would command a terminal
        names = tuple("".join(c for c in name if c.isprintable())[:80].strip() for name in stored)
        if all(names) and len(set(names)) == number:
            return names
    if isinstance(variant.net, Classifier) and number == 1000:
        from torchvision.models import MobileNet_V3_Large_Weights

        return tuple(MobileNet_V3_Large_Weights.IMAGENET1K_V1.meta["categories"])
    if isinstance(variant.net, Detector) and number == 90:
        from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

        categories = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]  # ids of COCO, some without class
        return tuple(f"unused {i}" if name == "N/A" else name for i, name in enumerate(categories) if i)
    if variant.name.startswith("torchvision/") and number == 21:
        from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

        return tuple(LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"])
    if isinstance(variant.net, Model) and number == 19:
        return cityscapes_classes().names
    return tuple(f"class_{i}" for i in range(number))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _notes(
    chosen: Variant, alike: list[Variant], wanted: str | None, meta: Mapping[str, Any], parts: _Parts
) -> Iterator[str]:
    others = [variant.name for variant in alike if variant.name != chosen.name]
    if wanted is None and others:
        yield (
            f"taken for {chosen.name}; {', '.join(others)} would look the same: "
            "segmv3 weights import --variant NAME chooses"
        )
    if ignored := meta.get("other_weights"):
        yield f"read {meta.get('container')}; {', '.join(ignored)} of the same file left alone"
    if beside := meta.get("beside"):
        yield f"left out beside the weights: {', '.join(_safe(name) for name in beside[:5])}"
    if parts.kind is OURS and not parts.backbone_only and parts.num_classes == 19:
        yield "names no classes; its 19 are taken for Cityscapes'"


def _safe(name: str) -> str:
    """A name out of a file, fit to be printed."""
    return ascii(name)[1:-1][:120]


def _count(names: list[str], one: str = "", many: str = "") -> str:
    return f"1 tensor {one}".strip() if len(names) == 1 else f"{len(names)} tensors {many}".strip()
