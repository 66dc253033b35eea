"""Writing an export: convert, compare with PyTorch, and only then put the file into place with its receipt."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segmv3.checkpoint import Card, check_folders, check_net
from segmv3.convert.base import Arithmetic, Say, Size, Target, open_file, refuse_missing
from segmv3.convert.graph import Net, Output
from segmv3.convert.metadata import KEY, Metadata, describe
from segmv3.convert.receipt import files_of, receipt_path, to_text
from segmv3.convert.targets import find_target, target_of
from segmv3.data.view import View, trained_view
from segmv3.errors import ModelError, OutputError, Segmv3Error, is_out_of_memory, printable, shortened
from segmv3.exporting.pictures import Pictures, drawn, photographs
from segmv3.files import make_folder, write_bytes
from segmv3.images import UInt8Array
from segmv3.models.classifier import ImageClassifier
from segmv3.models.nets import Part
from segmv3.models.segmenter import Segmenter
from segmv3.models.zoo import net_name
from segmv3.runtime.autotune import median_times
from segmv3.runtime.backends import Backend, TorchBackend
from segmv3.runtime.machine import cpu_flags, has_bf16, machine
from segmv3.runtime.parity import Agreement, DisagreementError, Truth, compare, limits_of, refuse
from segmv3.weights.opening import open_net

_OTHER_SIZES: tuple[Size, ...] = ((512, 1024), (720, 1280), (333, 517))
"""The first images are also compared at other sizes: multiples of all strides of the nets, of some, and of none."""
_OTHER_CROPS: tuple[Size, ...] = ((256, 256), (160, 192), (193, 257))
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
        """Size of all files together."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def export(
    weights: Path | str,
    output: Path | str | None = None,
    *,
    target: str | Target,
    output_kind: Output = "low-logits",
    size: Size | None = None,
    images: str | Path | Pictures | Callable[[Net], Pictures] | None = None,
    overwrite: bool = False,
    parts: Sequence[Part] = (),
    command: str = "",
    say: Say = lambda _: None,
) -> Exported:
    """Write weights as a file for another runtime, and prove that it computes what PyTorch computes in fp32.
    The result names the file and its receipt, and holds the numbers of the proof.

    Args:
        weights: a weight file or a published name.
        output: the file; by default the name of the weights with the target's suffix, in the current folder.
        target: one of `segmv3.convert.targets.NAMES`, such as "onnx", or a target of your own.
        output_kind: what comes out of the net in the file.
        size: the only height and width that the file will take, None for any.
        images: file, folder, glob or list to compare on, and to calibrate int8 on; `segmv3.exporting.labelled` for a
            data set, `in_folders` for a classifier; or a function of the net. By default two drawn scenes.
        overwrite: replace the file and its receipt.
        parts: classes of the net's head and backbone where they are not segmv3's own.
        command: for the receipt.
        say: is told what is done next.

    Raises:
        CheckpointError: weights that cannot be used.
        ModelError: the net or the size does not allow it, or a package is missing.
        DisagreementError: the file does not compute what PyTorch computes; the numbers are in it.
        DataError: images that cannot be read.
        OutputError, ResourceError: a file that cannot be written. What was there before stays.
    """
    target = find_target(target)
    path = Path(output) if output else default_path(str(weights), target)
    _refuse_path(path, target, overwrite)
    refuse_missing(target)
    if target_of(Path(weights), [target]):
        raise ModelError(f"{weights} is an exported file; name the weights that it was made from")
    say("open the weights")
    model, card = open_net(weights, parts)
    target.refuse(model, size)
    if callable(images):
        images = images(model)
    pictures = images if isinstance(images, Pictures) else photographs(str(images)) if images else drawn()
    pictures, metadata = _shown(pictures, model, card, target, output_kind, size, Path(weights))
    work = _Work(target, model, metadata, pictures, say)
    with _folder_beside(path) as folder:
        agreement, facts = work.prove(folder / path.name, str(weights), command)
        # the receipt last: until it is there, what was moved does not match the old one and is not opened
        for file in (*reversed(files_of(folder / path.name, target)), receipt_path(folder / path.name)):
            try:
                file.replace(path.parent / file.name)
            except OSError as error:
                reason = error.strerror or error
                raise OutputError(f"{path.parent / file.name} cannot be written ({reason})") from None
    return Exported(path, files_of(path, target), receipt_path(path), facts, agreement)


def _shown(
    pictures: Pictures, model: Net, card: Card, target: Target, kind: Output, size: Size | None, weights: Path
) -> tuple[Pictures, Metadata]:
    """The pictures as the net sees them, and what the file will say of itself."""
    view = None
    if isinstance(model, ImageClassifier):
        if kind == "labels":
            raise ModelError("a classifier gives one logit for each class; leave --output-kind out")
        view, kind = _view(card, size), "class-logits"
        pictures = pictures.seen_as(view)
    _refuse_other_classes(pictures, model, card, weights)
    stated = asdict(view) if view else None
    return pictures, describe(model, card, kind, size, source=weights.name, precision=target.precision, view=stated)


def _view(card: Card, size: Size | None) -> View:
    """How pictures are shown: as in the net's training; for another size the same share of the picture."""
    view = View(**trained_view(card.facts))
    if size is None or size == view.crop_size:
        return view
    resize = max(*size, round(view.resize * max(size) / max(view.crop_size)))
    return replace(view, crop_size=size, resize=resize)


def _refuse_other_classes(pictures: Pictures, model: Net, card: Card, weights: Path) -> None:
    """Refuse truths of another kind, or of other classes, than the net's."""
    if bool(pictures.classes) and isinstance(model, ImageClassifier):
        raise ModelError(f"{weights} is a classifier; its pictures lie in one folder a class (exporting.in_folders)")
    if pictures.names and isinstance(model, Segmenter):
        raise ModelError(f"{weights} is a segmentation net; its images have labels (exporting.labelled)")
    if pictures.names:
        check_folders(card, pictures.names, weights)
    elif pictures.classes and isinstance(model, Segmenter):
        check_net(card, model, model.config, pictures.classes, weights)


def default_path(source: str, target: str | Target) -> Path:
    """The source's name with the target's suffix, in the current folder."""
    writer = find_target(target)
    stem = Path(source).stem if Path(source).is_file() else Path(source).name
    return Path(f"{stem}{'-int8' if writer.precision == 'int8' else ''}{writer.suffix}")


def _refuse_path(path: Path, target: Target, overwrite: bool) -> None:
    """Refuse a place that is not free, or not named as the target wants it."""
    if path.suffix != target.suffix:
        raise OutputError(f"{path} must end in {target.suffix} for --to {target.name}")
    for file in (*files_of(path, target), receipt_path(path)):
        if file.is_dir():
            raise OutputError(f"{file} is a folder; name a file in it")
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists; choose another --output or add --overwrite")


@dataclass(frozen=True)
class _Work:
    """One export: what is written, and what proves it."""

    target: Target
    model: Net
    metadata: Metadata
    pictures: Pictures
    say: Say

    def prove(self, path: Path, source: str, command: str) -> tuple[Agreement, dict[str, Any]]:
        """Write the file, compare it in its own runtime with the net as it was trained, and write the receipt."""
        target, metadata = self.target, self.metadata
        reference = TorchBackend(self.model, device=torch.device("cpu"), fold=False)
        self.write(path)
        self.say("compare with PyTorch")
        backend = _open(target, path, metadata, metadata.precision)
        images = _at_sizes(self.pictures, metadata.size, self.other_sizes(), self.say)
        agreement = compare(reference, backend, images)
        refuse(agreement, metadata.precision, f"the {target.name} export of {source}")
        facts = self.facts(source, command, agreement)
        if target.baseline:
            self.say("measure the latency before and after")
            facts |= self.before_and_after(target.baseline, path.parent / "before", backend, agreement)
        if type(target).read is Target.read:  # the format has no place for it
            facts[KEY] = metadata.to_text()
        write_bytes(receipt_path(path), to_text(path, facts, target).encode())
        return agreement, facts

    def write(self, path: Path) -> None:
        """Convert, and calibrate where the target asks for it."""
        target = self.target
        if not target.calibrated:
            self.say(f"convert to {target.name}")
        elif not self.pictures.calibration:
            raise ModelError(f"--to {target.name} is calibrated on real images; add --images SOURCE or --data.root DIR")
        images = [read() for read in self.pictures.calibration] if target.calibrated else []
        try:
            target.write(self.model, self.metadata, path, images, self.say)
        except (Segmv3Error, OSError):
            raise
        except Exception as error:  # converters know many nets, and not all
            if is_out_of_memory(error):
                raise
            fixed = "" if self.metadata.size else "; a fixed size is easier: add --size HEIGHT WIDTH"
            reason = printable(shortened(f"{type(error).__name__}: {error}", 160))
            raise ModelError(f"{target.name} cannot hold this net ({reason}){fixed}") from error
        if target.precision == "int8" and not target.is_safe(path):
            raise DisagreementError("the int8 file has weights beyond 7 bits, which processors without VNNI cut off")

    def other_sizes(self) -> Sequence[Size]:
        """Of a classifier not in int8, where one of two pictures that changes its class would be half of them."""
        if isinstance(self.model, Segmenter):
            return _OTHER_SIZES
        return _OTHER_CROPS if self.target.precision == "fp32" else ()

    def facts(self, source: str, command: str, agreement: Agreement) -> dict[str, Any]:
        """What the receipt of every target holds."""
        metadata = self.metadata
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "source": {"name": source, "sha256": metadata.source_sha256},
            "net": net_name(self.model.config),
            "to": self.target.name,
            "output": metadata.output,
            "size": list(metadata.size) if metadata.size else None,
            "precision": metadata.precision,
            "reference": "PyTorch, fp32, as trained",
            "images": self.pictures.origin,
            "drawn": self.pictures.drawn,
            "view": metadata.view or None,
            "limits": _limits(metadata),
            "agreement": agreement.to_dict(),
            "machine": machine(),
        }

    def before_and_after(self, before: Target, folder: Path, backend: Backend, agreement: Agreement) -> dict[str, Any]:
        """Latency and mIoU of the file, and of the one that its baseline writes."""
        folder.mkdir()
        path, own = folder / f"net{before.suffix}", self.target.precision
        metadata = replace(self.metadata, precision=before.precision)
        before.write(self.model, metadata, path)
        others: dict[str, Backend] = {}
        for name in before.precisions(before.precision, before.runtimes[0]):
            if name != "bf16" or has_bf16():
                others[name] = _open(before, path, metadata, name)
        image = self.pictures.read[0]()[0]
        size = metadata.size or (_TIMED_SIZE if isinstance(self.model, Segmenter) else image.shape[:2])
        times = median_times(others | {own: backend}, _resized(image, size), _ROUNDS)
        slower = [f"slower than {name} here" for name in others if times[own] > times[name]]
        return {
            "processors": {"compared_on": cpu_flags()} | dict(self.target.processors),
            "calibration": {"images": len(self.pictures.calibration), "from": self.pictures.calibration_origin},
            "latency_ms": {"size": list(size)} | {name: round(value, 2) for name, value in times.items()},
            **_scores(agreement, before.precision, own),
            "verdict": slower or ["faster than " + " and ".join(others) + " here"],
        }


def _limits(metadata: Metadata) -> dict[str, Any]:
    limits = asdict(limits_of(metadata.precision, metadata.output))
    if metadata.output != "class-logits":
        return limits
    return dict(zip(("relative_rms", "top1_agreement", "top1_loss"), limits.values(), strict=True))


def _scores(agreement: Agreement, before: str, own: str) -> dict[str, Any]:
    if agreement.output == "class-logits":
        return {"top1": {before: agreement.top1_reference, own: agreement.top1_candidate}}
    return {"miou": {before: agreement.miou_reference, own: agreement.miou_candidate}}


def _open(target: Target, path: Path, metadata: Metadata, precision: Arithmetic) -> Backend:
    """The file in its own runtime."""
    return open_file(target, path, metadata, precision, torch.get_num_threads())


def _at_sizes(
    pictures: Pictures, size: Size | None, others: Sequence[Size], say: Say
) -> Iterator[tuple[UInt8Array, Truth]]:
    """All pictures at their own size, the first ones at others too; or all at the only size that a file takes."""
    for place, read in enumerate(pictures.read):
        say(f"compare with PyTorch: image {place + 1} of {len(pictures.read)}")
        image, truth = read()
        if size:
            image = _resized(image, size)
            truth = _resized(truth, size, cv2.INTER_NEAREST) if isinstance(truth, np.ndarray) else truth
        yield image, truth
    if size is None:
        for read in pictures.read[:_AT_OTHER_SIZES]:
            image, _ = read()
            for other in others:
                if image.shape[:2] != other:
                    yield _resized(image, other), None


def _resized(image: UInt8Array, size: Size, interpolation: int = cv2.INTER_LINEAR) -> UInt8Array:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=interpolation), np.uint8)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk, gone afterwards with all that is left in it."""
    make_folder(path.parent)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".segmv3-export-", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None
    with folder:
        yield Path(folder.name)
