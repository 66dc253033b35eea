"""Labels that a net makes for frames: what it is sure of, class by class, in files that training reads."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segmv3.adaptation.settings import Adaptation
from segmv3.config import Data
from segmv3.data.datasets import find_split
from segmv3.data.listing import Split, visible_files
from segmv3.data.sources import Source
from segmv3.errors import DataError, PartialVideoError, Segmv3Warning
from segmv3.files import make_folder, write_json
from segmv3.images import SUFFIXES, UInt8Array, read_ids, read_image, write_png
from segmv3.inference import multi_scale_flip
from segmv3.labels import IGNORE, Classes
from segmv3.models.segmenter import Segmenter
from segmv3.prediction import PartialResultError, predict_source
from segmv3.prediction.listing import ImageSource
from segmv3.prediction.results import Confidence
from segmv3.training.summary import evenly_spaced

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Streets(Source):
    """Frames with the labels of a net, and labelled images of a source, which then are the training set proper.

    What a round scores are four frames: that shows that it learned, and not that the labels are right.
    """

    known: Classes
    images: Path
    labels: Path
    source: Data | None

    def classes(self, root: Path) -> Classes:
        return self.known

    def pairs(self, root: Path, split: str) -> Iterator[tuple[Path, Path]]:
        files = visible_files(self.images)
        for file in files if split == "train" else [files[place] for place in evenly_spaced(len(files))]:
            yield file, label_of(file, self.images, self.labels)

    def find(self, root: Path, split: str) -> Split:
        if self.source and split == "train":
            return find_split(self.source, "train")
        return replace(super().find(root, split), name="frames" if split == "train" else "frames, its own labels")


class _Confidence(Confidence):
    as_video = False


def label_of(image: Path, images: Path, labels: Path) -> Path:
    """Where the label of a frame lies: as training finds those of extra images."""
    return labels / image.relative_to(images).with_name(f"{image.stem}_labels.png")


def teacher(net: Segmenter, scales: Sequence[float]) -> Callable[[UInt8Array], tuple[UInt8Array, UInt8Array]]:
    """The net over several sizes and mirrored: its labels, and the probability of each as 0..255."""
    device = next(net.parameters()).device

    def labelled(image: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        pixels = torch.from_numpy(np.require(image, requirements=["W"])).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode():
            sure, labels = multi_scale_flip(net.low_logits, pixels, scales=scales)[0].max(0)
        return labels.to(torch.uint8).cpu().numpy(), (sure * 255).round().to(torch.uint8).cpu().numpy()

    return labelled


def thresholds(counts: NDArray[np.int64], portion: float, sure: float) -> NDArray[np.int64]:
    """The confidence, 0..255, from which on the pixels of each class are learned from, int64 C.

    It keeps the surest `portion` of the pixels that got the class (CBST, arXiv 1810.07911), and all that are at least
    `sure` (FDA, arXiv 2004.05498).

    Args:
        counts: int64 C x 256, pixels by their label and confidence.
        portion: above 0, at most 1.
        sure: above 0, at most 1.
    """
    above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels that are at least as sure
    bars = (above >= np.maximum(portion * above[:, :1], 1)).sum(1) - 1
    return np.minimum(bars, round(sure * 255))


def label_frames(
    frames: Any, net: Segmenter, classes: Classes, folder: Path, images: Path, settings: Adaptation, progress: Progress
) -> None:
    """Label frames by a net, and keep of it what is learned from: FOLDER/labels/NAME_labels.png.

    A pixel below the bar of its class is left out. One above it is kept with its confidence as the probability: the
    mean over many pixels is then weighted by the confidence.

    Args:
        frames: what `predict_source` takes; None for those in `images`.
        net: on the device that it runs on.
        classes: those of the net.
        folder: of the round.
        images: where the frames are found from then on.
        settings: which labels are kept.
        progress: called with what is being done, how much of it is done, and how much there is.
    """
    made, places = folder / "made", {"labels": folder / "best", "confidence": folder / "confidence"}
    if frames is not None and not isinstance(frames, ImageSource):
        places["image"] = images
    try:
        predict_source(
            str(images) if frames is None else frames,
            teacher(net, settings.scales),
            classes,
            made,
            save=[_Confidence() if kind == "confidence" else kind for kind in places],
            overwrite=True,
            every=1 if frames is None else settings.every,
            progress=lambda done, total: progress(f"{folder.name}: label", done, total),
        )
    except (PartialResultError, PartialVideoError) as error:
        warnings.warn(Segmv3Warning(f"{error}; it goes on without them"), stacklevel=2)
    for file in visible_files(made):
        for kind, place in places.items():
            name, mark, end = file.relative_to(made).as_posix().rpartition(f"_{kind}")
            if mark and re.fullmatch(r"\.png|/\d+\.png", end):  # of a picture, or of a frame of a video
                make_folder((place / f"{name}{end}").parent)
                file.replace(place / f"{name}{end}")
                break
    if frames is not None:
        link_frames(frames, images, folder / "best")
    _keep_the_surest(folder, images, classes, settings)


def link_frames(frames: Any, images: Path, labels: Path) -> None:
    """Link each labelled frame in `images` to its file, where that lies now, and say what had to be copied.

    Raises: DataError where the copy of a frame of a video is gone.
    """
    where = dict(zip(frames.names, frames.paths, strict=True)) if isinstance(frames, ImageSource) else {}
    names, copies = [file.relative_to(labels) for file in visible_files(labels)], []
    for link, file in ((images / name, where.get(name.as_posix().removesuffix(".png"))) for name in names):
        make_folder(link.parent)
        if link.is_symlink():
            link.unlink()
        with suppress(OSError, NotImplementedError):  # Windows asks for a privilege; or it was copied before
            if file and file.suffix.lower() in SUFFIXES:  # no data set reads those of phones
                link.symlink_to(file.resolve())
        if file and not link.is_file():
            write_png(link, read_image(file))
        if not link.is_file():
            raise DataError(f"{link} is gone, which was copied from a video; start again with another --run")
        copies += [] if link.is_symlink() else [link.stat().st_size]
    if copies:
        text = f"frames: copied {len(copies):,} of {len(names):,} into {images} ({sum(copies) / 1e6:,.1f} MB)"
        warnings.warn(Segmv3Warning(text), stacklevel=2)


def _keep_the_surest(folder: Path, images: Path, classes: Classes, settings: Adaptation) -> None:
    counts = np.zeros(256 * 256, np.int64)

    def read(image: Path) -> tuple[UInt8Array, UInt8Array]:
        best, sure = (read_ids(folder / kind / image.relative_to(images)) for kind in ("best", "confidence"))
        return best, sure

    files = visible_files(images)
    for image in files:
        best, sure = read(image)
        counts += np.bincount((best.astype(np.int64) * 256 + sure).ravel(), minlength=counts.size)
    bars = thresholds(counts.reshape(256, 256), settings.portion, settings.sure)
    for index, image in enumerate(files):
        best, sure = read(image)
        drawn = np.random.default_rng([settings.seed, index]).integers(0, 255, best.shape)
        target = label_of(image, images, folder / "labels")
        make_folder(target.parent)
        write_png(target, np.where((sure >= bars[best]) & (sure > drawn), best, np.uint8(IGNORE)))
    found = {name: int(bar) for name, bar in zip(classes.names, bars[: len(classes)], strict=True)}
    write_json(folder / "thresholds.json", found)
