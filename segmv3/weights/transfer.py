"""Starting a net from weights that were made for another one."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from segmv3.errors import CheckpointError
from segmv3.labels import are_numbered
from segmv3.models.backbones import Backbone
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Detector, Net
from segmv3.models.segmenter import Segmenter
from segmv3.weights.importing import Imported
from segmv3.weights.opening import open_weights

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector

AnyNet: TypeAlias = "Segmenter | ImageClassifier | ObjectDetector"


@dataclass(frozen=True)
class Fit:
    """Which tensors a net took from weights, and which not."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    """Tensors of the net that keep their fresh values."""
    unused: tuple[str, ...]
    """Tensors of the weights that the net has no place for."""

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded, {len(self.new)} new, {len(self.unused)} unused"
        for title, names in (("new", self.new), ("unused", self.unused)):
            if names:
                text += f"; {title}: {modules(names)}"
        return text


def transfer(source: Imported, model: AnyNet, *, new_head: bool = False) -> Fit:
    """Copy every tensor of `source` that `model` has under the same name and shape.

    Args:
        new_head: leave the layers that name classes fresh, so that the numbers of classes may differ.

    Raises:
        CheckpointError: the backbone is of another kind, size or width, or hardly fits; or the number of classes
            differs and `new_head` is not set.
    """
    theirs, ours = _kind(source.net.backbone), _kind(model.config.backbone)
    if theirs != ours:
        raise CheckpointError(f"{source.origin.get('file')} holds another net: {theirs}, wanted is {ours}")
    classifiers = source.net.classifiers if new_head else ()
    tensors = {name: tensor for name, tensor in source.tensors.items() if not name.startswith(classifiers)}
    same_task = type(source.net) is type(model.config)
    if not new_head and same_task and source.names and len(source.names) != model.num_classes:
        raise CheckpointError(
            f"{source.origin.get('file')} has {len(source.names)} classes, the net {model.num_classes}; "
            "--new-head starts the layers that tell classes apart afresh"
        )
    own = model.state_dict()
    fitting = {name for name in own if name in tensors and tensors[name].shape == own[name].shape}
    loaded = [name for name in own if name in fitting and _convolution_of(name, own) in {*fitting, name}]
    new = [name for name in own if name not in loaded]
    unused = [name for name in source.tensors if name not in loaded]
    own_backbone = [name for name in own if name.startswith("backbone.")]
    if 2 * len(set(own_backbone) & set(loaded)) < len(own_backbone):
        raise CheckpointError(
            f"{source.origin.get('file')} holds another net: most of its backbone does not fit (its channels follow "
            f"the rules of {getattr(source.net.backbone, 'family', 'another project')})"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(tensors[name])  # state_dict shares the net's memory
    return Fit(tuple(loaded), tuple(new), tuple(unused))


def start_from(model: AnyNet, source: str, say: Callable[[str], None], names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Start a net for training from a weight file or a published name (`--model.pretrained`).

    Layers that tell classes apart are copied by the names of the classes. Names that the weights lack stay fresh.
    Where one side has no names, the rows are copied by number if the counts agree. Lines say which tensors and classes
    were loaded, and which settings of the net differ from those that the weights were trained with.

    Returns: where the weights come from, with their licence and the classes whose rows were kept, for the record.
    Raises: CheckpointError when the file cannot be used or holds another backbone.
    """
    imported = open_weights(source, say=say)
    same_task = type(imported.net) is type(model.config)
    by_name = same_task and names and imported.names and names != imported.names and not are_numbered(imported.names)
    heads_differ = len(imported.names) != model.num_classes or not same_task
    fit = transfer(imported, model, new_head=bool(heads_differ or by_name))
    say(f"pretrained {source}: {fit}")
    kept = [] if heads_differ or by_name else list(names)
    if by_name:
        kept = [name for name in names if name in imported.names]
        say(f"pretrained {source}: {_copy_rows(imported, model, names, kept)}")
    elif names and not heads_differ and names != imported.names:
        say(f"pretrained {source}: it names no classes; its n-th is taken for the data's n-th ({names[0]} first)")
    for note in imported.notes:
        say(f"pretrained {source}: {note}")
    differing = differing_settings(imported.net, model.config)
    if differing:
        say(f"pretrained {source}: trained with {', '.join(differing)}; this net differs there")
    new = [name for name in names if name not in kept]
    return imported.origin | {"loaded": len(fit.loaded), "new": len(fit.new), "classes_kept": kept, "classes_new": new}


def _copy_rows(source: Imported, model: AnyNet, names: tuple[str, ...], kept: list[str]) -> str:
    """Copy what tells a class apart from the class of the same name, for the classes in `kept`.

    Returns: which classes were copied and which are new, in words.
    """
    ours, theirs = [names.index(name) for name in kept], [source.names.index(name) for name in kept]
    with torch.no_grad():
        for name, own in model.state_dict().items():
            given = source.tensors.get(name)
            if not name.startswith(model.config.classifiers) or given is None or given.shape[1:] != own.shape[1:]:
                continue
            if isinstance(model.config, Detector) and name.startswith("head."):
                # the background and the classes of one anchor box after another
                boxes, known = own.unflatten(0, (-1, len(names) + 1)), given.unflatten(0, (-1, len(source.names) + 1))
                boxes[:, [0, *(1 + place for place in ours)]] = known[:, [0, *(1 + place for place in theirs)]]
            else:
                own[ours] = given[theirs]
    new = [name for name in names if name not in kept]
    if not new:
        return f"all {len(kept)} classes are copied by their names"
    if not kept:
        return f"none of its classes is one of the data ({source.names[0]!r} where the data has {names[0]!r}): all new"
    return f"classes copied by their names: {_listed(kept)}; new: {_listed(new)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def differing_settings(trained: Net, now: Net) -> list[str]:
    """Settings that change what the same backbone computes, as the weights were trained with them."""
    names = ("padding", "bn_eps", "family")
    found = [
        f"--model.backbone.{name.replace('_', '-')} {getattr(trained.backbone, name)}"
        for name in names
        if getattr(trained.backbone, name, None) != getattr(now.backbone, name, None)
    ]
    inputs = [name for name in ("mean", "std") if getattr(trained, name) != getattr(now, name)]
    return found + [f"--model.{name} {' '.join(f'{v:g}' for v in getattr(trained, name))}" for name in inputs]


def _kind(backbone: Backbone) -> str:
    width = getattr(backbone, "width", None)
    return backbone.title if width is None else f"{backbone.title} of width {width:g}"


def _convolution_of(name: str, own: Mapping[str, Tensor]) -> str:
    """The convolution that a BN tensor belongs to; its statistics mean nothing after another convolution."""
    module = name.rpartition(".")[0]
    return f"{module.removesuffix('.1')}.0.weight" if f"{module}.running_mean" in own else name


def modules(names: tuple[str, ...]) -> str:
    """Tensor names gathered into the parts of the net they belong to: `backbone.blocks.12 (18), head.gated (3)`."""

    def part(name: str) -> tuple[str, ...]:
        words = name.split(".")
        return tuple(words[: 3 if words[1:2] == ["blocks"] else 2])

    def order(words: tuple[str, ...]) -> list[tuple[int, str]]:
        return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]

    counts = Counter(part(name) for name in names)
    return ", ".join(f"{'.'.join(words)} ({counts[words]})" for words in sorted(counts, key=order))
