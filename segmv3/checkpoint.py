"""Weight files: written crash-safely, checked when read, never executed.

A weight file is one safetensors file whose header says everything needed to use it.
"""

import contextlib
import hashlib
import json
import re
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from segmv3.errors import CheckpointError, ModelError, Segmv3Warning
from segmv3.errors import one_line as one_line
from segmv3.files import make_folder, write_bytes
from segmv3.labels import Classes, Color, are_numbered, cityscapes_classes, numbered_classes
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Classifier, Detector, Model, Net, Part, net_from_dict
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import build, state_shapes
from segmv3.settings import to_dict
from segmv3.states import load_state as load_state
from segmv3.states import refuse_non_finite as refuse_non_finite
from segmv3.states import save_state as save_state
from segmv3.states import saved_steps as saved_steps

if TYPE_CHECKING:
    from segmv3.models.detector import ObjectDetector

_FORMAT = 2
_KEY = "segmv3"
MAX_BYTES = 200_000_000  # the largest net here is under 20 MB


@dataclass(frozen=True)
class Card:
    """What a weight file says of itself."""

    names: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    colors: tuple[Color, ...] = ()
    """Colours of the classes; a classifier has none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Score, step, data set, config, commit, origin: whatever the training or the import knew."""
    sha256: str = ""
    """Digest of the whole file, as read."""

    @property
    def classes(self) -> Classes:
        """Names and colours of a segmentation net's classes."""
        return Classes(self.names, self.colors)

    def fact(self, *names: str) -> Any:
        """A fact by its names, the outer ones first; None where the file does not tell it."""
        found: Any = self.facts
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


@dataclass(frozen=True)
class Weights:
    """A weight file, read and verified: the net it is for, its tensors by name, and its card."""

    net: Net
    tensors: dict[str, Tensor]
    card: Card


def save(
    model: "Segmenter | ImageClassifier | ObjectDetector",
    path: Path | str,
    *,
    classes: Classes | Sequence[str] | None = None,
    **facts: Any,
) -> None:
    """Write weights with everything needed to use them.

    Args:
        model: the net.
        path: file to write.
        classes: names and colours, or names alone for a classifier. By default Cityscapes' for a segmentation net of 19
            classes, otherwise numbered ones.
        facts: plain JSON types that are kept beside the weights, such as score, config and data set.

    Raises:
        NumericsError: a weight is not finite.
        OutputError, ResourceError: the file cannot be written.
    """
    path = Path(path)
    names, colors = _names_and_colors(model, classes)
    if len(names) != model.num_classes:
        raise CheckpointError(f"{len(names)} class names for a net with {model.num_classes} classes")
    if unseen := [name for name in names if not name.isprintable()]:  # `read` would refuse it
        raise CheckpointError(f"the class name {unseen[0]!a} holds characters that cannot be seen; nothing was saved")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    refuse_non_finite(tensors)
    header = {
        "format": _FORMAT,
        "model": to_dict(replace(model.config, pretrained=None)),  # where a run began is among its facts
        "classes": list(names),
        "palette": [list(color) for color in colors],
        "digest": _digest(tensors),
        "facts": {"version": package_version(), "commit": source_commit(), **facts},
    }
    make_folder(path.parent)
    write_bytes(path, to_safetensors(tensors, {_KEY: json.dumps(header)}))


def load(path: Path | str, parts: Iterable[Part] = ()) -> tuple[Segmenter, Card]:
    """Read the weight file of a segmentation net, written by `save`.

    Args:
        parts: classes of heads and backbones that are not segmv3's own.

    Returns:
        The net in eval mode on the CPU, and what the file says of itself.

    Raises:
        CheckpointError: the file is missing, damaged, not segmv3's, or does not fit the net it names.
    """
    return load_net(path, Model, parts)


def load_net(path: Path | str, kind: Any, parts: Iterable[Part] = ()) -> Any:
    """Read the weight file of any net, as `load` does.

    Args:
        path: the file.
        kind: the class of the net's settings, or several: `Model`, `Classifier`, `Detector`.
        parts: as for `load`.

    Raises:
        CheckpointError: as `load`, and for a net of another kind.
    """
    weights = read(path, parts)
    check_kind(weights.net, kind, path)
    model = build(weights.net, len(weights.card.names))
    model.load_state_dict(weights.tensors)
    return model.eval(), weights.card


def check_kind(net: Net, wanted: Any, source: Path | str) -> None:
    """Raises: CheckpointError for a net of another task than is `wanted`: one of the classes of `Net`, or several."""
    if not isinstance(net, wanted):
        raise wrong_kind(source, type(net))


def wrong_kind(source: Path | str, kind: type[Net]) -> CheckpointError:
    """What to say of a net of a kind that the command does not take."""
    uses: dict[type, str] = {
        Classifier: "a classifier: use it with segmv3 classify predict or segmv3 classify evaluate",
        Detector: "a detector: use it with segmv3 detect predict or segmv3 detect evaluate",
        Model: "a segmentation net: use it with segmv3 predict or segmv3 evaluate",
    }
    return CheckpointError(f"{source} is {uses[kind]}")


def file_bytes(path: Path, most: int, whose: str) -> bytes:
    """A whole weight file at once, so that what is parsed is what was hashed.

    Raises: CheckpointError when it is missing, has more than `most` bytes or cannot be read.
    """
    if not path.is_file():
        raise no_file(path)
    try:
        if path.stat().st_size > most:
            raise CheckpointError(f"{path} is larger than {most // 10**6} MB: no weight file {whose} is")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None


def no_file(path: Path) -> CheckpointError:
    """What to say of a path that should be a weight file, or an exported one, and is no file."""
    if not path.is_dir():
        return CheckpointError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    if (best := path / "best.safetensors").is_file():
        return CheckpointError(f"{path} is the folder of a run; name its weights, {best}")
    if (path / "config.json").is_file():
        return CheckpointError(
            f"{path} is a folder of another library's net, which segmv3 predict, view, evaluate and distill.teacher "
            "take; a weight file is needed here"
        )
    return CheckpointError(f"{path} is a folder; name a weight file")


def is_ours(path: Path) -> bool:
    """Whether a file begins as `save` writes it, even if the rest is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 1_000_000))
    return header.startswith(b"{") and f'"{_KEY}"'.encode() in header


def read(path: Path | str, parts: Iterable[Part] = ()) -> Weights:
    """Read and verify a weight file without building its net.

    Raises: CheckpointError when the file is missing, damaged or not segmv3's.
    """
    path = Path(path)
    data = file_bytes(path, MAX_BYTES, "of segmv3")
    header = _header(data, path)
    try:
        tensors = load_safetensors(data)
        net = net_from_dict(header["model"], parts)
        colors = tuple((r, g, b) for r, g, b in header["palette"])
        card = Card(tuple(header["classes"]), colors, dict(header["facts"]), hashlib.sha256(data).hexdigest())
        if not isinstance(net, Classifier):
            _ = card.classes  # their rules hold
        if unseen := [name for name in card.names if not (isinstance(name, str) and name.isprintable())]:
            raise ValueError(f"{unseen[0]!a} is no class name")
        digest = header["digest"]
    except ModelError as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or of another version ({one_line(error)})") from None
    if digest != _digest(tensors):
        raise CheckpointError(f"{path} fails its checksum: it was damaged after it was written; get it again")
    expected = state_shapes(net, len(card.names)) if card.names else {}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        first = ascii(wrong[0])[1:-1][:80]
        raise CheckpointError(f"{path} does not hold the net it names: {len(wrong)} tensors differ, first {first}")
    return Weights(net, tensors, card)


def _header(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON that `save` put into the safetensors metadata; safetensors has no reader for it from bytes."""
    hint = "it must be a .safetensors file written by segmv3"
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or length > 1_000_000:
        raise CheckpointError(f"{path} is cut short or no safetensors file; {hint}")
    try:
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} names no net and no classes; {hint}") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CheckpointError(f"{path} has another format than {_FORMAT}; use the segmv3 version that wrote it")
    return header


def _names_and_colors(
    model: "Segmenter | ImageClassifier | ObjectDetector", classes: Classes | Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    if isinstance(model, ImageClassifier):
        names = classes.names if isinstance(classes, Classes) else classes
        return tuple(names or (f"class_{i}" for i in range(model.num_classes))), ()
    if classes is None:
        classes = cityscapes_classes() if model.num_classes == 19 else numbered_classes(model.num_classes)
    if not isinstance(classes, Classes):
        classes = replace(numbered_classes(len(classes)), names=tuple(classes))
    return classes.names, classes.colors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes: neither safetensors nor torch.load notices a flipped bit in a weight."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def package_version() -> str:
    """Version of the installed segmv3."""
    return version("segmv3")


def source_commit(folder: Path | None = None) -> str:
    """The git commit of a folder, with "+" for uncommitted changes in it; "" without one.

    Args:
        folder: by default the checkout that this package runs from.
    """
    root = folder or Path(__file__).parents[1]
    if not folder and not (root / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commands = ["git rev-parse --short=12 HEAD", f"git status --porcelain -- {'.' if folder else 'segmv3'}"]
        head, changes = (
            subprocess.run(c.split(), cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for c in commands
        )
        return head.strip() + ("+" if changes.strip() else "")
    return ""


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings (dotted names) whose values differ between two nested configs, as (was, now)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*was, *(n for n in now if n not in was)]:
        a, b = was.get(name), now.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found[prefix + name] = (a, b)
    return found


def net_differences(was: Net, now: Net) -> dict[str, tuple[Any, Any]]:
    """As `differences`, of what counts once a net is trained."""
    found = differences(to_dict(was), to_dict(now))
    return {name: values for name, values in found.items() if name not in ("pretrained", "bn_momentum")}


def check_net(card: Card, model: Segmenter, wanted: Model, classes: Classes, path: Path) -> None:
    """Refuse weights that are not the net, or not for the classes, that a config asks for.

    Raises: CheckpointError saying what differs.
    """
    check_classes(card, classes, path)
    if differing := net_differences(model.config, wanted):
        text = ", ".join(f"{name} {a!r} (config: {b!r})" for name, (a, b) in differing.items())
        raise CheckpointError(f"{path} holds another net: {text}")


def in_order(card: Card, model: Segmenter, classes: Classes, path: Path) -> Card:
    """Put the rows of a net's classes into the order of a data set that has the same names in another one.

    Returns:
        The card with the new order. Where more than the order differs, the card as it was.

    Warns:
        Segmv3Warning: rows were moved.
    """
    if card.names == classes.names or sorted(card.names) != sorted(classes.names) or are_numbered(card.names):
        return card
    places = [card.names.index(name) for name in classes.names]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(model.config.classifiers):
                tensor.copy_(tensor[places])
    text = f"{path} has the same classes in another order; they are taken by their names"
    warnings.warn(text, Segmv3Warning, stacklevel=2)
    return replace(card, names=classes.names, colors=tuple(card.colors[place] for place in places))


def check_classes(card: Card, classes: Classes, path: Path) -> None:
    """Refuse weights, or an export of them, that are for other classes than those of a data set.

    Raises: CheckpointError saying what differs.
    """
    if card.names == classes.names:
        return
    if len(card.names) != len(classes):
        raise CheckpointError(
            f"{path}: {len(card.names)} classes stored, {len(classes)} requested; "
            "use the config it was trained with, or give it a new head: segmv3 weights import --into NET --new-head"
        )
    if not are_numbered(card.names):
        raise _other_classes(path, card.names, classes.names)
    text = f"{path} names no classes; its n-th is taken for the data's n-th ({classes.names[0]} first)"
    warnings.warn(text, Segmv3Warning, stacklevel=2)


def check_folders(card: Card, classes: tuple[str, ...], path: Path | str) -> None:
    """Refuse weights for other classes than those of a data set.

    ImageNet's folders are WordNet ids and weights often carry readable names: a thousand of each are taken to be
    the same classes in the same order, which is the usual one.

    Raises: CheckpointError saying what differs.
    """
    if len(card.names) != len(classes):
        raise CheckpointError(
            f"{path} tells {len(card.names)} classes apart, the data has {len(classes)} class folders"
        )
    if card.names == classes:
        return
    if are_numbered(card.names):
        text = f"{path} names no classes; the n-th class folder ({classes[0]} first) is taken for the n-th"
    elif len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        text = (
            f"{path}: the class folders are WordNet ids; the n-th of them is taken for the n-th class "
            f"({classes[0]} for {card.names[0]!r})"
        )
    else:
        raise _other_classes(path, card.names, classes)
    warnings.warn(text, Segmv3Warning, stacklevel=2)


def _other_classes(path: Path | str, names: tuple[str, ...], wanted: tuple[str, ...]) -> CheckpointError:
    own, other = next((a, b) for a, b in zip(names, wanted, strict=True) if a != b)
    return CheckpointError(f"{path} was trained for other classes ({own!r} where the data has {other!r})")
