"""Writing an export: convert, compare with PyTorch, and only then put the file into place with its receipt."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import tee
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segmv3.checkpoint import check_net
from segmv3.convert import base
from segmv3.convert.base import Say, Target, refuse_missing
from segmv3.convert.graph import Output
from segmv3.convert.metadata import KEY, Metadata, describe
from segmv3.convert.receipt import files_of, receipt_path, to_text
from segmv3.convert.targets import find_target, target_of
from segmv3.errors import ModelError, OutputError
from segmv3.exporting.pictures import Pictures, drawn
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array
from segmv3.models.nets import Part
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import net_name
from segmv3.runtime.autotune import median_times
from segmv3.runtime.backends import Arithmetic, Backend, Size, TorchBackend
from segmv3.runtime.machine import cpu_flags, has_bf16, machine
from segmv3.runtime.parity import LIMITS, Agreement, DisagreementError, compare, refuse
from segmv3.weights.opening import open_segmenter

_OTHER_SIZES: tuple[Size, ...] = ((512, 1024), (720, 1280), (333, 517))
"""The first images are also compared at other sizes: multiples of all strides of the nets, of some, and of none."""
_AT_OTHER_SIZES = 2
_TIMED_SIZE: Size = (1024, 2048)
_ROUNDS = 9


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


def default_path(source: str, target: str | Target) -> Path:
    """The source's name with the target's suffix, in the current folder."""
    writer = find_target(target)
    stem = Path(source).stem if Path(source).is_file() else Path(source).name
    return Path(f"{stem}{'-int8' if writer.precision == 'int8' else ''}{writer.suffix}")


def write_proved(
    source: Path | str,
    target: str | Target,
    output_path: Path | None = None,
    *,
    output: Output = "low-logits",
    size: Size | None = None,
    pictures: Pictures | None = None,
    overwrite: bool = False,
    parts: Sequence[Part] = (),
    command: str = "",
    say: Say = lambda _: None,
) -> Exported:
    """Do what `segmv3.export` does, with the pictures that prove it: `drawn()` by default.

    The file is written into a folder beside its place, opened by its own runtime and compared; only then it is moved.
    Where it disagrees nothing is left, and what was there before stays.
    """
    target = find_target(target)
    path = output_path or default_path(str(source), target)
    _refuse_path(path, target, overwrite)
    refuse_missing(target)
    pictures = pictures or drawn()
    if target_of(Path(source), [target]):
        raise ModelError(f"{source} is an exported file; name the weights that it was made from")
    say("open the weights")
    model, card = open_segmenter(source, parts)
    target.refuse(model, size)
    if pictures.classes:
        check_net(card, model, model.config, pictures.classes, Path(source))
    metadata = describe(model, card, output, size, source=Path(source).name, precision=target.precision)
    reference = TorchBackend(model, device=torch.device("cpu"), fold=False)
    make_folder(path.parent)
    with _folder_beside(path) as folder:
        part = folder / path.name
        _write(target, model, metadata, part, pictures, say)
        say("compare with PyTorch")
        backend = _open(target, part, metadata, metadata.precision)
        agreement = _compare(reference, backend, pictures, size, say)
        refuse(agreement, metadata.precision, f"the {target.name} export of {source}")
        facts = _facts(source, model, metadata, target, pictures, agreement, command)
        if target.baseline:
            say("measure the latency before and after")
            facts |= _before_and_after(target, model, metadata, folder / "before", backend, pictures, agreement)
        if type(target).read is Target.read:  # the format has no place for it
            facts[KEY] = metadata.to_text()
        receipt = receipt_path(part)
        write_bytes(receipt, to_text(part, facts, target).encode())
        del backend  # Windows moves no open file
        _move([*reversed(files_of(part, target)), receipt], path.parent)
    return Exported(path, files_of(path, target), receipt_path(path), facts, agreement)


def _refuse_path(path: Path, target: Target, overwrite: bool) -> None:
    """Refuse a place that is not free, or not named as the target wants it."""
    if path.suffix != target.suffix:
        raise OutputError(f"{path} must end in {target.suffix} for --to {target.name}")
    for file in (*files_of(path, target), receipt_path(path)):
        if file.is_dir():
            raise OutputError(f"{file} is a folder; name a file in it")
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists; choose another --output or add --overwrite")


def _write(target: Target, model: Segmenter, metadata: Metadata, path: Path, pictures: Pictures, say: Say) -> None:
    if not target.calibrated:
        say(f"convert to {target.name}")
        target.write(model, metadata, path)
    elif not pictures.calibration:
        raise ModelError(f"--to {target.name} is calibrated on real images; add --images SOURCE or --data.root DIR")
    else:
        target.write(model, metadata, path, [read() for read in pictures.calibration], say)
    if target.precision == "int8" and not target.is_safe(path):
        raise DisagreementError("the int8 file has weights beyond 7 bits, which processors without VNNI cut off")


def _open(target: Target, path: Path, metadata: Metadata, precision: Arithmetic) -> Backend:
    """The file in its own runtime."""
    return base.open_file(target, path, metadata, precision, torch.get_num_threads())


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
    model: Segmenter,
    metadata: Metadata,
    target: Target,
    pictures: Pictures,
    agreement: Agreement,
    command: str,
) -> dict[str, Any]:
    """What the receipt of every target holds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "source": {"name": str(source), "sha256": metadata.source_sha256},
        "net": net_name(model.config),
        "to": target.name,
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


def _before_and_after(
    target: Target,
    model: Segmenter,
    metadata: Metadata,
    folder: Path,
    backend: Backend,
    pictures: Pictures,
    agreement: Agreement,
) -> dict[str, Any]:
    """Latency and mIoU of the file, and of the one that its baseline writes."""
    before = target.baseline
    assert before
    folder.mkdir()
    path = folder / f"net{before.suffix}"
    metadata = replace(metadata, precision=before.precision)
    before.write(model, metadata, path)
    precisions = before.precisions(before.precision, before.runtimes[0])
    others: dict[str, Backend] = {
        name: _open(before, path, metadata, name) for name in precisions if name != "bf16" or has_bf16()
    }
    size, own = metadata.size or _TIMED_SIZE, target.precision
    times = median_times(others | {own: backend}, _resized(pictures.read[0]()[0], size), _ROUNDS)
    slower = [f"slower than {name} here" for name in others if times[own] > times[name]]
    return {
        "processors": {"compared_on": cpu_flags()} | dict(target.processors),
        "calibration": {"images": len(pictures.calibration), "from": pictures.calibration_origin},
        "latency_ms": {"size": list(size)} | {name: round(value, 2) for name, value in times.items()},
        "miou": {before.precision: agreement.miou_reference, own: agreement.miou_candidate},
        "verdict": slower or ["faster than " + " and ".join(others) + " here"],
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
