"""Exporting a net to a file for another runtime, with proof that the file computes what PyTorch computes."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import tee
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch

from segmv3.checkpoint import Card, check_net
from segmv3.config import Data
from segmv3.convert.extras import openvino_core
from segmv3.convert.graph import Output, needs_fixed_size
from segmv3.convert.int8 import ENOUGH_IMAGES, INSTRUCTION_SETS
from segmv3.convert.metadata import Metadata, describe
from segmv3.convert.receipt import files_of, receipt_path, to_text
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.errors import DataError, ModelError, OutputError
from segmv3.evaluation.counting import open_labelled
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array, read_image
from segmv3.labels import Classes
from segmv3.mini_city import render_scene
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import net_name
from segmv3.prediction.sources import ImageSource, find_source
from segmv3.runtime.autotune import median_times
from segmv3.runtime.backends import (
    Arithmetic,
    Backend,
    Size,
    TorchBackend,
)
from segmv3.runtime.loading import EXPORTS, open_file
from segmv3.runtime.machine import cpu_flags, has_bf16, machine
from segmv3.runtime.parity import LIMITS, Agreement, DisagreementError, compare, refuse
from segmv3.weights.opening import open_segmenter

Target = Literal["onnx", "openvino", "onnx-int8", "openvino-int8", "torch-export"]

SUFFIXES: Mapping[Target, str] = MappingProxyType(
    {
        "onnx": ".onnx",
        "openvino": ".xml",
        "onnx-int8": ".onnx",
        "openvino-int8": ".xml",
        "torch-export": ".pt2",
    }
)
_NEEDS: Mapping[Target, tuple[str, ...]] = MappingProxyType(
    {
        "onnx": ("onnx", "onnxruntime"),
        "openvino": ("openvino",),
        "onnx-int8": ("onnx", "onnxruntime"),
        "openvino-int8": ("openvino", "nncf"),
        "torch-export": (),
    }
)

_OTHER_SIZES: tuple[Size, ...] = ((512, 1024), (720, 1280), (333, 517))
"""Beside their own size, the first images are compared at sizes that all, some and none of the strides divide."""
_AT_OTHER_SIZES = 2
_USUAL_IMAGES = 16
_DRAWN_SIZE: Size = (512, 1024)
_TIMED_SIZE: Size = (1024, 2048)
_ROUNDS = 9

Say = Callable[[str], None]
Item = TypeVar("Item")


# --- the images to prove an export with ---


@dataclass(frozen=True)
class Pictures:
    """Images to prove an export with, and to calibrate one for int8."""

    origin: str
    """Where they are from, for the receipt."""
    read: tuple[Callable[[], tuple[UInt8Array, UInt8Array | None]], ...]
    """Each reads one image, uint8 H x W x 3 RGB, and its train ids, uint8 H x W, or None where there are none."""
    calibration: tuple[Callable[[], UInt8Array], ...] = ()
    """Each reads one image whose values int8 is scaled by."""
    calibration_origin: str = ""
    classes: Classes | None = None
    """Of the truths."""
    drawn: bool = False


def drawn() -> Pictures:
    """Two scenes of mini-city: they prove that two nets compute the same, and nothing about a street."""
    return Pictures("2 drawn scenes of mini-city", tuple(partial(_scene, index) for index in (0, 1)), drawn=True)


def photographs(source: str, limit: int | None = None) -> Pictures:
    """Images without labels; int8 is calibrated on the same.

    Args: source: a file, folder, glob pattern or list, as `segmv3 predict` takes it. limit: how many to compare at
        most, spread evenly; 16 by default.
    Raises: DataError when there are none.
    """
    found = find_source(source)
    if not isinstance(found, ImageSource):
        raise DataError(f"{source} is a video; name images or a folder of them")
    chosen = _spread(found.paths, limit or _USUAL_IMAGES)
    return Pictures(
        f"{len(chosen)} of {len(found.paths)} images of {source}",
        tuple(partial(_photograph, path) for path in chosen),
        tuple(partial(read_image, path) for path in _spread(found.paths, ENOUGH_IMAGES)),
        source,
    )


def labelled(data: Data, split: str, limit: int | None = None, *, whole: bool = False) -> Pictures:
    """Images with labels; int8 is calibrated on the train split.

    Args: limit: how many to compare at most, spread evenly; 16 by default. whole: all by default.
    Raises: DataError for data that cannot be used.
    """
    dataset = open_labelled(data, split)
    chosen = _spread(range(len(dataset)), limit or (len(dataset) if whole else _USUAL_IMAGES))
    seen, origin = _calibration_split(data, dataset)
    return Pictures(
        f"{len(chosen)} of {len(dataset)} images of {dataset.title} {split} ({data.root})",
        tuple(partial(dataset.read, index) for index in chosen),
        tuple(partial(read_image, pair.image) for pair in _spread(seen.pairs, ENOUGH_IMAGES)),
        origin,
        dataset.classes,
    )


def _scene(index: int) -> tuple[UInt8Array, None]:
    return render_scene("val", index, size=_DRAWN_SIZE, seed=0)[0], None


def _photograph(path: Path) -> tuple[UInt8Array, None]:
    return read_image(path), None


def _calibration_split(data: Data, dataset: Dataset) -> tuple[Dataset, str]:
    """Scales taken from the images that are scored would flatter the score."""
    try:
        train = dataset if dataset.split == "train" else open_dataset(data, "train")
    except DataError:
        return dataset, f"{dataset.title} {dataset.split}, as there is no train split: the scores are flattered"
    return train, f"{train.title} train"


def _spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """So many of them, evenly spread: neighbours in a folder are often frames of one street."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[index * len(items) // count] for index in range(count))


# --- the export ---


@dataclass(frozen=True)
class Exported:
    """A file that was proved and is in place."""

    path: Path
    files: tuple[Path, ...]
    receipt: Path
    facts: dict[str, Any]
    """What the receipt holds, beside the digests."""
    agreement: Agreement

    @property
    def megabytes(self) -> float:
        """Of all files together."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def default_path(source: str, to: Target) -> Path:
    """The source's name with the target's suffix, in the current folder."""
    stem = Path(source).stem if Path(source).is_file() else Path(source).name
    return Path(f"{stem}{'-int8' if to.endswith('int8') else ''}{SUFFIXES[to]}")


def export(
    source: Path | str,
    to: Target,
    output_path: Path | None = None,
    *,
    output: Output = "low-logits",
    size: Size | None = None,
    pictures: Pictures | None = None,
    overwrite: bool = False,
    command: str = "",
    say: Say = lambda _: None,
) -> Exported:
    """Convert weights, prove the result against PyTorch in fp32, and put it into place with its receipt.

    The file is written into a folder beside its place, opened by its own runtime and compared; only then it is moved.
    Where it disagrees nothing is left, and what was there before stays.

    Args:
        source: weights by file or published name.
        output_path: with the target's suffix; an OpenVINO model is two files, FILE.xml and FILE.bin.
        size: the only height and width that it will take; None for any.
        pictures: `drawn()` by default, which int8 cannot be calibrated on.
        command: for the receipt. say: called with what is done next.

    Raises: CheckpointError for weights that cannot be used; ModelError for a net, size or package that does not allow
        it, and DisagreementError, one of it, with the numbers; DataError for images that cannot be read; OutputError
        or ResourceError for a file that cannot be written.
    """
    path = output_path or default_path(str(source), to)
    _refuse_path(path, to, overwrite)
    _refuse_missing(to)
    pictures = pictures or drawn()
    if Path(source).suffix.lower() in EXPORTS:
        raise ModelError(f"{source} is an exported file; name the weights that it was made from")
    say("open the weights")
    model, card = open_segmenter(source)
    _refuse_size(model, size)
    if pictures.classes:
        check_net(card, model, model.config, pictures.classes, Path(source))
    metadata = describe(model, card, output, size, source=Path(source).name, precision="fp32")
    reference = TorchBackend(model, device=torch.device("cpu"), fold=False)
    make_folder(path.parent)
    with _folder_beside(path) as folder:
        part = folder / path.name
        converted = _Int8(model, metadata, to, pictures, say) if to.endswith("int8") else None
        if converted:
            metadata = converted.write(part)
        else:
            say(f"convert to {to}")
            _write(model, metadata, part)
        say("compare with PyTorch")
        backend = _open(part, metadata, metadata.precision)
        agreement = _compare(reference, backend, pictures, size, say)
        refuse(agreement, metadata.precision, f"the {to} export of {source}")
        facts = _facts(source, card, model, metadata, to, pictures, agreement, command)
        if converted:
            facts |= converted.measure(reference, backend, agreement)
        receipt = receipt_path(part)
        write_bytes(receipt, to_text(part, facts).encode())
        del backend  # Windows moves no open file
        _move([*reversed(files_of(part)), receipt], path.parent)
    return Exported(path, files_of(path), receipt_path(path), facts, agreement)


def _refuse_path(path: Path, to: Target, overwrite: bool) -> None:
    """Raises: OutputError."""
    if path.suffix != SUFFIXES[to]:
        raise OutputError(f"{path} must end in {SUFFIXES[to]} for --to {to}")
    for file in (*files_of(path), receipt_path(path)):
        if file.is_dir():
            raise OutputError(f"{file} is a folder; name a file in it")
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists; choose another --output or add --overwrite")


def _refuse_missing(to: Target) -> None:
    """Raises: ModelError with the line that installs what is missing."""
    missing = [package for package in _NEEDS[to] if not find_spec(package)]
    if missing:
        needs = " and ".join(_NEEDS[to])
        raise ModelError(
            f'the {to} export needs {needs} ({" and ".join(missing)} missing); pip install "segmv3[export]"'
        )


def _refuse_size(model: Segmenter, size: Size | None) -> None:
    """Raises: ModelError."""
    name = net_name(model.config)
    if size is None:
        if needs_fixed_size(model):
            raise ModelError(f"{name} pools over windows, so it exports at a fixed size only; add --size HEIGHT WIDTH")
        return
    least = model.config.backbone.output_stride
    if min(size) < least:
        raise ModelError(
            f"--size {size[0]} {size[1]} is too small: one cell of {name}'s deepest map is {least} x {least}"
        )


def _write(model: Segmenter, metadata: Metadata, path: Path) -> None:
    """Convert to what the suffix says."""
    from segmv3.convert import onnx, openvino, torch_export

    if path.suffix == ".onnx":
        write_bytes(path, onnx.to_onnx(model, metadata))
    elif path.suffix == ".xml":
        openvino.write(openvino.to_openvino(model, metadata), path)
    else:
        write_bytes(path, torch_export.to_torch_export(model, metadata))


def _open(path: Path, metadata: Metadata, precision: Arithmetic) -> Backend:
    """The file in its own runtime."""
    return open_file(path, metadata, EXPORTS[path.suffix][0], precision)


def _compare(reference: Backend, candidate: Backend, pictures: Pictures, size: Size | None, say: Say) -> Agreement:
    images, truths = tee(_at_sizes(pictures, size, say))  # read in step, so that one pair is kept at a time
    return compare(reference, candidate, (image for image, _ in images), (truth for _, truth in truths))


def _at_sizes(pictures: Pictures, size: Size | None, say: Say) -> Iterator[tuple[UInt8Array, UInt8Array | None]]:
    """All pictures at their own size, the first ones at others too; or all at the only size that a file takes."""
    for place, read in enumerate(pictures.read):
        say(f"compare with PyTorch: image {place + 1} of {len(pictures.read)}")
        image, truth = read()
        if size is None:
            yield image, truth
        else:
            yield _resized(image, size), None if truth is None else _resized(truth, size, cv2.INTER_NEAREST)
    if size is None:
        for read in pictures.read[:_AT_OTHER_SIZES]:
            image, _ = read()
            for other in _OTHER_SIZES:
                if image.shape[:2] != other:
                    yield _resized(image, other), None


def _resized(image: UInt8Array, size: Size, interpolation: int = cv2.INTER_LINEAR) -> UInt8Array:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=interpolation), np.uint8)


def _facts(
    source: Path | str,
    card: Card,
    model: Segmenter,
    metadata: Metadata,
    to: Target,
    pictures: Pictures,
    agreement: Agreement,
    command: str,
) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "source": {"name": str(source), "sha256": card.sha256},
        "net": net_name(model.config),
        "to": to,
        "output": metadata.output,
        "size": list(metadata.size) if metadata.size else None,
        "precision": metadata.precision,
        "reference": "PyTorch, fp32, as trained",
        "images": pictures.origin,
        "drawn": pictures.drawn,
        "limits": asdict(LIMITS[metadata.precision]),
        "agreement": agreement.to_dict(),
        "machine": machine(),
    }


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk, gone afterwards with all that is left in it."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".segmv3-export-", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None
    with folder:
        yield Path(folder.name)


def _move(files: Sequence[Path], folder: Path) -> None:
    """The receipt last: until it is there, what was moved does not match the old one and is not opened."""
    for file in files:
        try:
            os.replace(file, folder / file.name)  # noqa: PTH105
        except OSError as error:
            raise OutputError(f"{folder / file.name} cannot be written ({error.strerror or error})") from None


# --- int8 ---


class _Int8:
    """An int8 export: what it is made from is kept, to be measured beside it."""

    def __init__(self, model: Segmenter, metadata: Metadata, to: Target, pictures: Pictures, say: Say) -> None:
        if not pictures.calibration:
            raise ModelError(f"--to {to} is calibrated on real images; add --images SOURCE or --data.root DIR")
        self._model, self._metadata, self._pictures, self._say = model, metadata, pictures, say

    def write(self, path: Path) -> Metadata:
        """Convert, calibrate and write. Returns: what the file says of itself."""
        from segmv3.convert import int8, onnx, openvino

        self._fp32 = path.parent / "fp32" / path.name
        self._fp32.parent.mkdir()
        self._say("convert in fp32")
        _write(self._model, self._metadata, self._fp32)
        images = [read() for read in self._pictures.calibration]
        self._calibrated = len(images)

        def progress(done: int, total: int) -> None:
            self._say(f"calibrate on image {done} of {total}")

        if path.suffix == ".onnx":
            write_bytes(path, int8.quantize_onnx(self._fp32.read_bytes(), images, progress=progress))
            return self._safe(onnx.metadata_of(path), path)
        fp32 = openvino_core().read_model(self._fp32)
        openvino.write(int8.quantize_openvino(fp32, images, progress=progress), path)
        return self._safe(openvino.metadata_of(path), path)

    def _safe(self, metadata: Metadata, path: Path) -> Metadata:
        """Raises: DisagreementError for what is right on processors with VNNI only, and cannot be shown here."""
        from segmv3.convert.int8 import is_safe

        if not is_safe(path):
            raise DisagreementError("the int8 file has weights beyond 7 bits, which processors without VNNI cut off")
        return metadata

    def measure(self, reference: Backend, backend: Backend, agreement: Agreement) -> dict[str, Any]:
        """Latency and mIoU before and after."""
        self._say("measure the latency before and after")
        others: dict[str, Backend] = {"fp32": _open(self._fp32, self._metadata, "fp32")}
        if self._fp32.suffix == ".xml" and has_bf16():
            others["bf16"] = _open(self._fp32, self._metadata, "bf16")
        size = self._metadata.size or _TIMED_SIZE
        times = median_times(others | {"int8": backend}, _resized(self._pictures.read[0]()[0], size), _ROUNDS)
        slower = [f"slower than {name} here" for name in others if times["int8"] > times[name]]
        return {
            "processors": {"compared_on": cpu_flags(), "right_on": INSTRUCTION_SETS, "because": "weights of 7 bits"},
            "calibration": {"images": self._calibrated, "from": self._pictures.calibration_origin},
            "latency_ms": {"size": list(size)} | {name: round(value, 2) for name, value in times.items()},
            "miou": {"fp32": agreement.miou_reference, "int8": agreement.miou_candidate},
            "verdict": slower or ["faster than " + " and ".join(others) + " here"],
        }
