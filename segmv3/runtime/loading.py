"""Opening weights and exported files for prediction, by the fastest backend that computes the same as PyTorch."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from segmv3.checkpoint import Card, no_file, wrong_kind
from segmv3.config import Device
from segmv3.convert.base import FileBackend, Target, open_file, refuse_missing
from segmv3.convert.graph import needs_fixed_size
from segmv3.convert.metadata import describe
from segmv3.convert.receipt import digest_of, files_of, receipt_path, verify_receipt
from segmv3.convert.targets import find_target, target_of
from segmv3.errors import CheckpointError, ModelError, Segmv3Warning
from segmv3.models.nets import Classifier, Model, Part
from segmv3.models.segmenter import Segmenter
from segmv3.runtime.autotune import STREET_SIZE, Candidate, choose
from segmv3.runtime.backends import (
    Arithmetic,
    Backend,
    BackendName,
    BySize,
    Size,
    TorchBackend,
    refuse_precision,
)
from segmv3.runtime.cache import converted
from segmv3.runtime.device import use_device
from segmv3.runtime.machine import has_bf16, saturates
from segmv3.runtime.predictor import Predictor
from segmv3.weights.opening import open_segmenter

_NEEDS = {"torch": (), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}


@dataclass(frozen=True)
class Wish:
    """How a net is to be run; the fields are arguments of `load`."""

    backend: Literal["auto"] | BackendName
    threads: int | None
    device: Device
    precision: Literal["auto"] | Arithmetic

    def refuse_unknown(self, target: Target | None) -> None:
        """Raises: ModelError for a value that is none of the known ones, or of the runtimes of a target."""
        backends = (*get_args(BackendName), *(target.runtimes if target else ()))
        known = {"backend": backends, "precision": get_args(Arithmetic), "device": get_args(Device)}
        for kind, names in known.items():
            choices = list(dict.fromkeys(("auto", *names)))
            if (value := getattr(self, kind)) not in choices:
                raise ModelError(f"there is no {kind} {value!r}; choose from {', '.join(choices)}")

    def on_torch(self, net: Any) -> TorchBackend:
        """A net that runs on PyTorch alone."""
        precision = "fp32" if self.precision == "auto" else self.precision
        return TorchBackend(net, device=use_device(self.device, self.threads), precision=precision, fold=False)


def is_export(path: Path) -> bool:
    """Whether a path names a file that `segmv3 export` writes."""
    return target_of(path) is not None and not path.is_dir()


def load(
    source: Path | str,
    *,
    backend: Literal["auto"] | BackendName = "auto",
    threads: int | None = None,
    device: Device = "auto",
    precision: Literal["auto"] | Arithmetic = "auto",
    compile: bool = False,
    trust: bool = False,
    parts: Sequence[Part] = (),
    targets: Sequence[Target] = (),
) -> Predictor:
    """Open a net for prediction: weights of segmv3 or of a project it can import, a published name, or an export.

    A folder that save_pretrained of segmentation-models-pytorch or transformers wrote is opened as well.

    With weights, the net is converted for ONNX Runtime and OpenVINO where they are installed, compared with PyTorch
    on a drawn street and timed; that takes seconds, once for each weight file and machine, and is kept in
    `segmv3.files.cache_folder()`. What differs from PyTorch is not used.

    Args:
        source: such as "best.safetensors", "downloads/lraspp.pth", "mmseg/lraspp_m-v3-d8", "net.onnx" or "net.xml".
        backend: "auto" is the fastest on this machine that agrees with PyTorch; an export has its own.
        threads: CPU threads of this process; None leaves them as they are.
        device: "auto" takes a GPU when there is one, unless the backend is one of the CPU.
        precision: "auto" is the fastest that agrees with fp32, and an export's own; int8 is for exports, which were
            calibrated.
        compile: with torch, fuse the net by `torch.compile`: a minute for each new image size.
        trust: open exports that can do harm: a .pt2, which can run code, and one without its receipt. Other files need
            no trust.
        parts: classes of the net's head and backbone where they are not segmv3's own; a weight file runs no code, so it
            cannot bring them.
        targets: export targets of your own, which open the files that they wrote.

    Returns:
        A function from images, uint8 H x W x 3 RGB, to labels, uint8 H x W: see `Predictor`.

    Raises:
        CheckpointError: the file cannot be used.
        ModelError: a backend or precision is missing here or does not agree.
        ResourceError: the device is not there.

    Warns:
        Segmv3Warning: an int8 export is less exact on this processor.
    """
    path = Path(source)
    target = target_here(path, targets)
    wish = Wish(backend, threads, device, precision)
    wish.refuse_unknown(target)
    if path.is_dir():
        return _open_library(path, wish)
    if target:
        found, card = open_export(path, target, wish, trust=trust)
        own = {"trust": trust} | ({"targets": tuple(targets)} if targets else {})
        return Predictor(found, card, _again(path, digest_of(path, target), found, threads, **own))
    return _open_weights(source, wish, compile, parts)


def target_here(path: Path, own: Sequence[Target]) -> Target | None:
    """As `target_of`.

    Raises:
        CheckpointError: also for an export that a target wrote which is not here.
    """
    target = target_of(path, own)
    if target is None and path.is_file() and receipt_path(path).is_file():
        raise CheckpointError(
            f"{path} was written by an export target that is not segmv3's own; open it in Python with that target: "
            f"segmv3.load({path.name!r}, targets=[...])"
        )
    return target


def _open_library(folder: Path, wish: Wish) -> Predictor:
    """A net of another library, which runs on PyTorch alone."""
    from segmv3.weights.libraries import open_library_net

    net, card = open_library_net(folder)
    if wish.backend not in ("auto", "torch"):
        raise ModelError(f"{folder} is a net of another library; it runs with --backend torch")
    return Predictor(wish.on_torch(net), card, (partial(load, str(folder.absolute()), **asdict(wish)), ()))


def _open_weights(source: Path | str, wish: Wish, compile: bool, parts: Sequence[Part]) -> Predictor:
    model, card = open_segmenter(source, parts)
    on_cpu = wish.backend in ("onnxruntime", "openvino")
    place = use_device("cpu" if on_cpu and wish.device == "auto" else wish.device, wish.threads)
    if place.type == "cuda" and on_cpu:
        raise ModelError(f"{wish.backend} runs on the CPU here; leave --device cuda out, or use --backend torch")
    if wish.precision == "int8":
        raise ModelError(
            f"{source} is not calibrated for int8; write segmv3 export {source} --to openvino-int8 --images FOLDER "
            "and load the result"
        )
    candidates = [
        _candidate(model, card, name, arithmetic, place, compile)
        for name in _backends(wish.backend, place)
        for arithmetic in _precisions(name, wish.precision, place)
    ]
    if not candidates:
        raise ModelError(
            f"{wish.backend} does not calculate in {wish.precision}; use --backend openvino, or --precision fp32"
        )
    found = choose(model, card, candidates, place)
    return Predictor(found, card, _again(source, card.sha256, found, wish.threads, compile=compile, parts=tuple(parts)))


def _again(
    source: Path | str, digest: str, backend: Backend, threads: int | None, **settings: Any
) -> tuple[Callable[..., Predictor], tuple[Any, ...]]:
    """How another process opens what was opened here: with the backend and arithmetic that were chosen."""
    path = Path(source)
    place = str(path.absolute()) if path.exists() else str(source)  # or a published name
    chosen = {"backend": backend.name, "precision": backend.precision, "device": backend.device, "threads": threads}
    return _reopened, (place, digest, chosen | settings)


def _reopened(source: str, digest: str, settings: dict[str, Any]) -> Predictor:
    """What a pickled predictor becomes; opened once where a pool of processes sends the same one with every task.

    Raises: CheckpointError when the file is gone or another one; else as `load`.
    """
    path = Path(source)
    target = target_of(path, settings.get("targets", ()))
    files = [file.stat() for file in files_of(path, target) if file.is_file()]
    stamp = tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in files)
    return _reopened_once(source, digest, tuple(settings.items()), stamp)


@lru_cache(maxsize=2)
def _reopened_once(source: str, digest: str, settings: tuple[tuple[str, Any], ...], stamp: object) -> Predictor:
    path, chosen = Path(source), dict(settings)
    target = target_of(path, chosen.get("targets", ()))
    if target and path.is_file() and digest_of(path, target) != digest:
        raise _other_file(source)
    predictor = load(source, **chosen)
    if predictor.__reduce__()[1][1] != digest:
        raise _other_file(source)
    return predictor


def _other_file(source: str) -> CheckpointError:
    return CheckpointError(f"{source} is not the file that this predictor was opened from; open it with segmv3.load")


def installed(backend: BackendName) -> bool:
    """Whether the packages of a backend are there."""
    return all(find_spec(package) for package in _NEEDS[backend])


def refuse_missing_backend(backend: BackendName) -> None:
    """Raises: ModelError with the line that installs what a backend lacks."""
    missing = [package for package in _NEEDS[backend] if not find_spec(package)]
    if missing:
        raise ModelError(f'the {backend} backend needs {" and ".join(missing)}; pip install "segmv3[export]"')


def _backends(asked: Literal["auto"] | BackendName, place: torch.device) -> list[BackendName]:
    if asked == "auto":
        return ["torch"] if place.type == "cuda" else [name for name in get_args(BackendName) if installed(name)]
    refuse_missing_backend(asked)
    return [asked]


def _precisions(backend: BackendName, asked: Literal["auto"] | Arithmetic, place: torch.device) -> list[Arithmetic]:
    """Precisions to try. On a CPU only OpenVINO gains from bf16 (docs/performance.md)."""
    if asked != "auto":
        refuse_precision(asked, place.type)
        return [asked] if backend != "onnxruntime" or asked == "fp32" else []
    if place.type == "cuda":
        return ["fp16", "bf16", "fp32"]
    return ["bf16", "fp32"] if backend == "openvino" and has_bf16() else ["fp32"]


def _candidate(
    model: Segmenter, card: Card, name: BackendName, precision: Arithmetic, place: torch.device, compile: bool
) -> Candidate:
    if name == "torch":
        title = f"torch {precision}{' compiled' if compile else ''}"
        return Candidate(
            title, precision, lambda: TorchBackend(model, device=place, precision=precision, compile=compile)
        )
    target = find_target("openvino" if name == "openvino" else "onnx")

    def at(size: Size | None) -> Backend:
        metadata = describe(model, card, "low-logits", size, source="", precision="fp32")

        def ready(path: Path) -> Backend:
            return open_file(target, path, metadata, precision, torch.get_num_threads(), name)

        try:
            return ready(converted(model, metadata, target))
        except CheckpointError:  # a file of the cache was damaged
            return ready(converted(model, metadata, target, again=True))

    def by_size() -> Backend:
        others = TorchBackend(model, device=place, precision="fp32")
        return BySize(at, STREET_SIZE, fixed=needs_fixed_size(model), others=others)

    return Candidate(f"{name} {precision}", precision, by_size)


def open_export(
    path: Path, target: Target, wish: Wish, *, trust: bool, classifier: bool = False
) -> tuple[FileBackend, Card]:
    """An exported file, checked and ready to run, and what it says of itself.

    Raises: as `load`; CheckpointError for a file of the other kind of net.
    """
    runners = target.runtimes
    name = runners[0] if wish.backend == "auto" else wish.backend
    if name not in runners:
        raise ModelError(f"{path} is run by {' or '.join(runners)}, not by {name}; leave --backend out")
    if wish.device == "cuda":
        raise ModelError(f"{path} runs on the CPU; leave --device cuda out, or name the weights it was exported from")
    if name in _NEEDS:
        refuse_missing_backend(name)  # type: ignore[arg-type]
    else:
        refuse_missing(target)
    if not path.is_file():
        raise no_file(path)
    use_device("cpu", wish.threads)
    metadata = target.read(path)
    verify_receipt(path, trust=trust, target=target)
    if (metadata.output == "class-logits") != classifier:
        raise wrong_kind(path, Model if classifier else Classifier)
    facts = metadata.facts | ({"view": metadata.view} if metadata.view else {})
    card = Card(metadata.names, metadata.colors, facts, metadata.source_sha256)
    own = metadata.precision
    asked = own if wish.precision == "auto" else wish.precision
    if asked not in target.precisions(own, name):
        raise ModelError(f"{path} calculates in {own}, not in {asked}; leave --precision out")
    refuse_precision(asked, "cpu")
    if own == "int8" and saturates() and not target.is_safe(path):
        warnings.warn(
            Segmv3Warning(
                f"{path} was written for processors with VNNI and this one has none: sums in it are cut off, and its "
                "labels can be much worse; export it again with this version"
            ),
            stacklevel=3,
        )
    return open_file(target, path, metadata, asked, torch.get_num_threads(), name), card
