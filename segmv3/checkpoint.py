"""Weight files and training states: written crash-safely, checked when read, never executed.

A *weight file* is one safetensors file whose header says everything needed to use it. A *training state* is
`step_00012000.pt` (plain types only) and, written after it, `step_00012000.json` with its SHA-256: a state
without a manifest that verifies does not exist.
"""

import contextlib
import hashlib
import io
import json
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from segmv3.errors import CheckpointError, ModelError, NumericsError, Segmv3Warning
from segmv3.files import make_folder, write_bytes
from segmv3.labels import Classes, Color, are_numbered, cityscapes_classes, numbered_classes
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Classifier, Model, Part, net_from_dict
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import create_classifier, create_model, state_shapes
from segmv3.records import read_json, read_regular
from segmv3.settings import to_dict

_FORMAT = 2
_KEY = "segmv3"
_STATES_KEPT = 2
_MAX_BYTES = 200_000_000  # the largest net here is under 20 MB


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


@dataclass(frozen=True)
class Weights:
    """A weight file, read and verified: the net it is for, its tensors by name, and its card."""

    net: Model | Classifier
    tensors: dict[str, Tensor]
    card: Card


def save(
    model: Segmenter | ImageClassifier,
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

    Args: parts: classes of heads and backbones that are not segmv3's own.
    Returns: the net in eval mode on the CPU, and what the file says of itself.
    Raises: CheckpointError when the file is missing, damaged, not segmv3's, or does not fit the net it names.
    """
    weights = read(path, parts)
    if not isinstance(weights.net, Model):
        raise CheckpointError(f"{path} is a classifier: use it with segmv3 classify, or as --model.pretrained")
    return _loaded(create_model(weights.net, len(weights.card.names)), weights), weights.card


def load_classifier(path: Path | str) -> tuple[ImageClassifier, Card]:
    """Read the weight file of a classification net, as `load` does.

    Raises: CheckpointError, as `load`.
    """
    weights = read(path)
    if not isinstance(weights.net, Classifier):
        raise CheckpointError(f"{path} is a segmentation net: use it with segmv3 predict or segmv3 evaluate")
    return _loaded(create_classifier(weights.net, len(weights.card.names)), weights), weights.card


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
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES // 10**6} MB: no weight file of segmv3 is")
    data = path.read_bytes()
    header = _header(data, path)
    try:
        tensors = load_safetensors(data)
        net = net_from_dict(header["model"], parts)
        colors = tuple((r, g, b) for r, g, b in header["palette"])
        card = Card(tuple(header["classes"]), colors, dict(header["facts"]), hashlib.sha256(data).hexdigest())
        if isinstance(net, Model):
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


Net = TypeVar("Net", Segmenter, ImageClassifier)


def _loaded(model: Net, weights: Weights) -> Net:
    model.load_state_dict(weights.tensors)
    return model.eval()


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
    model: Segmenter | ImageClassifier, classes: Classes | Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    if isinstance(model, ImageClassifier):
        names = classes.names if isinstance(classes, Classes) else classes
        return tuple(names or (f"class_{i}" for i in range(model.num_classes))), ()
    if classes is None:
        classes = cityscapes_classes() if model.num_classes == 19 else numbered_classes(model.num_classes)
    if not isinstance(classes, Classes):
        classes = replace(numbered_classes(len(classes)), names=tuple(classes))
    return classes.names, classes.colors


def refuse_non_finite(content: Any, name: str = "") -> None:
    """Look at every tensor in nested mappings and lists: weights, BN statistics, moments of an optimiser.

    Raises:
        NumericsError: names the first tensor with a NaN or infinity.
    """
    if isinstance(content, Tensor):
        if content.is_floating_point() and not bool(torch.isfinite(content).all()):
            raise NumericsError(f"{name} is not finite, nothing was saved; try --precision fp32 or a lower --optim.lr")
    elif isinstance(content, Mapping | list | tuple):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            refuse_non_finite(value, f"{name}.{key}" if name else str(key))


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


def source_commit() -> str:
    """The git commit of the checkout this package runs from, with "+" for uncommitted changes; "" without one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commands = ["git rev-parse --short=12 HEAD", "git status --porcelain -- segmv3"]
        head, changes = (
            subprocess.run(c.split(), cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for c in commands
        )
        return head.strip() + ("+" if changes.strip() else "")
    return ""


def save_state(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a training state: file, then manifest, then forget all but the newest two.

    Args: state: plain types and tensors only, so that it loads with weights_only=True.
    Raises: NumericsError, OutputError or ResourceError; earlier states are untouched then.
    """
    refuse_non_finite(state["model"])  # by the names of the net
    refuse_non_finite({key: value for key, value in state.items() if key != "model"})
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    make_folder(folder)
    write_bytes(_state_path(folder, step), data)
    manifest = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_bytes(_state_path(folder, step).with_suffix(".json"), json.dumps(manifest).encode())
    for old in saved_steps(folder)[_STATES_KEPT:]:
        # manifest first: a state without one does not exist, a manifest without a state would be a complaint
        _state_path(folder, old).with_suffix(".json").unlink(missing_ok=True)
        _state_path(folder, old).unlink(missing_ok=True)


def load_state(folder: Path, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest training state from which a run can go on, or None when there is none.

    Raises: CheckpointError when there are states but none is good.
    """
    broken = ""
    for step in saved_steps(folder):
        path = _state_path(folder, step)
        try:
            state = _read_state(path, step)
        except ValueError as fault:
            broken = broken or f"{path.name} {fault}"
            continue
        if broken:
            say(f"checkpoint: {broken}; resuming from {path.name}")
        return state
    if broken:
        raise CheckpointError(
            f"no training state in {folder} can be gone on from ({broken}); start again with another --run"
        )
    return None


def _read_state(path: Path, step: int) -> dict[str, Any]:
    """Raises: ValueError with what is wrong, behind the name of the file."""
    data = read_regular(path)
    if hashlib.sha256(data).hexdigest() != _manifest_digest(path):
        raise ValueError("fails its checksum")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a file may be anything
        raise ValueError(f"is no training state ({one_line(error)})") from None
    kinds = {"step": int, "seconds": float, "evaluations": list, "origin": dict, "model": dict, "optimizer": dict}
    if not (isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in kinds.items())):
        raise ValueError("is no training state")
    if state["step"] != step or not all(isinstance(each, dict) and "step" in each for each in state["evaluations"]):
        raise ValueError("is the state of another step")
    try:
        refuse_non_finite(state)
    except NumericsError as error:
        raise ValueError(f"holds a value that is not finite ({error.args[0].partition(' ')[0]})") from None
    return state


def _state_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[int]:
    """Steps of the training states in a folder, newest first; a state counts once its manifest is written."""
    names = (re.fullmatch(r"step_(\d+)\.json", path.name) for path in folder.glob("step_*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _manifest_digest(path: Path) -> str:
    try:
        return str(read_json(path.with_suffix(".json"))["sha256"])
    except (ValueError, KeyError, TypeError):
        return "no manifest"


def one_line(error: BaseException) -> str:
    """What a library says of an error, as a part of a line."""
    return " ".join(str(error).split())[:160]


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


def check_net(card: Card, model: Segmenter, wanted: Model, classes: Classes, path: Path) -> None:
    """Refuse weights that are not the net, or not for the classes, that a config asks for.

    Raises: CheckpointError saying what differs.
    """
    check_classes(card, classes, path)
    differing = differences(to_dict(model.config), to_dict(replace(wanted, pretrained=None)))
    differing.pop("bn_momentum", None)  # acts in training only
    if differing:
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
    warnings.warn(
        Segmv3Warning(f"{path} has the same classes in another order; they are taken by their names"), stacklevel=2
    )
    return replace(card, names=classes.names, colors=tuple(card.colors[place] for place in places))


def check_classes(card: Card, classes: Classes, path: Path) -> None:
    """Refuse weights, or an export of them, that are for other classes than those of a data set.

    Raises: CheckpointError saying what differs.
    """
    if card.names != classes.names and are_numbered(card.names) and len(card.names) == len(classes):
        warnings.warn(
            Segmv3Warning(f"{path} names no classes; its n-th is taken for the data's n-th ({classes.names[0]} first)"),
            stacklevel=2,
        )
    elif card.names != classes.names:
        if len(card.names) != len(classes):
            raise CheckpointError(
                f"{path}: {len(card.names)} classes stored, {len(classes)} requested; "
                "use the config it was trained with, or give it a new head: segmv3 weights import --into NET --new-head"
            )
        pair = next((a, b) for a, b in zip(card.names, classes.names, strict=True) if a != b)
        raise CheckpointError(f"{path} was trained for other classes ({pair[0]!r} where the data has {pair[1]!r})")
