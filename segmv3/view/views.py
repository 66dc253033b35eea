"""What `segmv3 view` can show: pictures by number with their layers, or the frames of a video as they come.

A layer is a picture (RGB), a map of train ids, or a map of confidences. Colours, opacity and the choice of classes are
the page's business: it gets the ids themselves.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from segmv3.config import Config, Data
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.data.loader import TrainSamples, collate
from segmv3.data.sources import data_in
from segmv3.decode import label_map_and_confidence
from segmv3.errors import DataError
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import Classes, numbered_classes, read_classes
from segmv3.runtime.predictor import Predictor
from segmv3.training.photometric import adjust
from segmv3.training.run import Run, data_of

LayerKind = Literal["picture", "ids", "confidence"]


class Gallery(ABC):
    """Pictures by number, each with the same layers. Whoever asks from several threads asks for one layer at a time.

    Attributes:
        title: what is shown.
        names: what the list calls each picture.
        classes: names and colours of the train ids.
        layers: the name of each layer and its kind, a picture first.
    """

    title: str
    names: Sequence[str]
    classes: Classes
    layers: Mapping[str, LayerKind]

    @abstractmethod
    def layer(self, index: int, name: str) -> UInt8Array:
        """One layer of a picture: uint8 H x W x 3 RGB of a picture, else uint8 H x W.

        Raises:
            DataError: it cannot be read.
        """

    def facts(self, index: int) -> dict[str, float]:
        """Percent of the pixels of each class that occurs, by its name; mean "confidence" in percent where it is known.

        Raises:
            DataError: it cannot be read.
        """
        ids = next((name for name, kind in self.layers.items() if kind == "ids"), None)
        found: dict[str, float] = {}
        if ids is not None:
            map_ = self.layer(index, ids)
            counts = np.bincount(map_.ravel(), minlength=256)[: len(self.classes)]
            found = {self.classes.names[i]: float(100 * counts[i] / map_.size) for i in np.flatnonzero(counts)}
        if "confidence" in self.layers:
            found["confidence"] = float(self.layer(index, "confidence").mean() / 2.55)
        return found

    def draws(self, index: int) -> None:  # noqa: B027 (most galleries draw nothing)
        """Called when a picture is asked for anew, for layers that are drawn at random."""


class DatasetGallery(Gallery):
    """A split of a data set: images, labels, and the samples that a training would see of them."""

    def __init__(self, data: Data, splits: tuple[str, ...] = ("train", "val"), seed: int = 0) -> None:
        self._sets = [open_dataset(data, split) for split in splits]
        self._places = [(dataset, index) for dataset in self._sets for index in range(len(dataset))]
        self.names = [f"{dataset.split}/{dataset.pairs[number].name}" for dataset, number in self._places]
        self.classes = self._sets[0].classes
        self.title = f"{data.root.name}: {', '.join(splits)}"
        self.layers = {"image": "picture", "labels": "ids", "sample": "picture", "sample labels": "ids"}
        self._samples = {dataset.split: TrainSamples(dataset, data, seed) for dataset in self._sets}
        self._epochs = dict[int, int]()

    def draws(self, index: int) -> None:
        self._epochs[index] = self._epochs.get(index, -1) + 1

    def layer(self, index: int, name: str) -> UInt8Array:
        drawn = name.startswith("sample")
        pair = self._sample(index, self._epochs.get(index, 0)) if drawn else self._read(index)
        return pair["labels" in name]

    @lru_cache(maxsize=4)  # noqa: B019 (one gallery lives as long as the page)
    def _read(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        dataset, number = self._places[index]
        return dataset.read(number)

    @lru_cache(maxsize=4)  # noqa: B019
    def _sample(self, index: int, epoch: int) -> tuple[UInt8Array, UInt8Array]:
        dataset, number = self._places[index]
        images, labels, photometric = collate([self._samples[dataset.split][epoch, number]])
        if photometric is not None:
            images = adjust(images, photometric)
        return images[0].permute(1, 2, 0).numpy(), labels[0].numpy()


class NetGallery(Gallery):
    """Images that a net labels when they are looked at."""

    def __init__(
        self, title: str, names: Sequence[str], reads: Sequence[Callable[[], UInt8Array]], net: Predictor
    ) -> None:
        self.layers = {"image": "picture", "labels": "ids", "confidence": "confidence"}
        self.title, self.names, self.classes = title, names, net.classes
        self._reads, self._net = reads, net

    def layer(self, index: int, name: str) -> UInt8Array:
        return self._labelled(index)[name]

    @lru_cache(maxsize=4)  # noqa: B019
    def _labelled(self, index: int) -> dict[str, UInt8Array]:
        image = self._reads[index]()
        return dict(zip(self.layers, (image, *_by_net(self._net, image)), strict=True))


class RunGallery(Gallery):
    """The validation images of a run: truth, what its best weights predict, and how sure they are."""

    def __init__(self, title: str, dataset: Dataset, net: Predictor) -> None:
        self.title, self.classes = title, dataset.classes
        self.names = [pair.name for pair in dataset.pairs]
        self.layers = {"image": "picture", "prediction": "ids", "truth": "ids", "confidence": "confidence"}
        self._dataset, self._net = dataset, net

    def layer(self, index: int, name: str) -> UInt8Array:
        return self._layers(index)[name]

    @lru_cache(maxsize=4)  # noqa: B019
    def _layers(self, index: int) -> dict[str, UInt8Array]:
        image, truth = self._dataset.read(index)
        labels, confidence = _by_net(self._net, image)
        return {"image": image, "prediction": labels, "truth": truth, "confidence": confidence}


class ResultsGallery(Gallery):
    """A folder that `segmv3 predict` wrote."""

    _FILE = re.compile(r"(?P<name>.+)_(?P<layer>overlay|labels|color|confidence|side-by-side)\.png")
    _KINDS: ClassVar[Mapping[str, LayerKind]] = {"labels": "ids", "confidence": "confidence"}

    def __init__(self, folder: Path) -> None:
        found: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.rglob("*.png")):
            if match := self._FILE.fullmatch(path.relative_to(folder).as_posix()):
                found.setdefault(match["name"], {})[match["layer"]] = path
        if not found:
            raise DataError(f"{folder} holds no results of segmv3 predict (NAME_overlay.png, NAME_labels.png, ...)")
        there = {layer for files in found.values() for layer in files}
        order = ("overlay", "side-by-side", "color", "labels", "confidence")
        self.layers = {layer: self._KINDS.get(layer, "picture") for layer in order if layer in there}
        self.title, self.names, self._files = folder.name, list(found), list(found.values())
        named = (folder / "classes.json").is_file()
        self.classes = read_classes(folder)[0] if named else numbered_classes(253)

    def layer(self, index: int, name: str) -> UInt8Array:
        path = self._files[index].get(name)
        if path is None:
            raise DataError(f"{self.names[index]} has no {name}")
        return read_image(path) if self.layers[name] == "picture" else read_ids(path)


def _by_net(net: Predictor, image: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """Labels, and confidence as 0..255."""
    logits = net.low_logits(torch.from_numpy(image).permute(2, 0, 1)[None])
    labels, confidence = label_map_and_confidence(logits, image.shape[:2], threads=net.threads)
    return labels[0].cpu().numpy(), (confidence[0].cpu().numpy() * 255 + 0.5).astype(np.uint8)


# ---- frames ----


@dataclass(frozen=True)
class LiveFrame:
    """A labelled frame and how long it took, in milliseconds."""

    number: int
    image: UInt8Array
    labels: UInt8Array
    confidence: UInt8Array
    time: float
    """Seconds since the first."""
    milliseconds: dict[str, float]


class Live:
    """Frames that a net labels one after the other: of a video in their order, of a camera the newest.

    The server asks for one at a time.

    Args:
        title: what is shown.
        frames: the frames and their times.
        net: labels them.
    """

    def __init__(self, title: str, frames: Iterator[tuple[UInt8Array, Any]], net: Predictor) -> None:
        self.title, self.classes = title, net.classes
        self._frames, self._net = frames, net
        self._last: LiveFrame | None = None

    def after(self, number: int) -> LiveFrame | None:
        """The frame after one of this number; None at the end. Several pages see the same frames."""
        if self._last is not None and self._last.number > number:
            return self._last
        start = time.perf_counter()
        image, when = next(self._frames, (None, None))
        if image is None:
            return None
        read = time.perf_counter()
        labels, confidence = _by_net(self._net, image)
        end = time.perf_counter()
        spent = {"read": 1000 * (read - start), "net and labels": 1000 * (end - read)}
        count = 0 if self._last is None else self._last.number + 1
        self._last = LiveFrame(count, image, labels, confidence, float(when or 0), spent)
        return self._last


# ---- which one ----


def gallery_of(path: Path, config: Config | None, open_net: Callable[[str | Path], Predictor]) -> Gallery | None:
    """What a folder or a config is; None where it is a source of pictures for a net.

    Args:
        path: a run, a folder of results, a data set or a config.
        config: what the config file holds, if it is one.
        open_net: opens weights.

    Raises:
        DataError: a data set cannot be read.
    """
    if config is not None:
        return DatasetGallery(config.data)
    if not path.is_dir():
        return None
    if (path / "config.json").is_file() and (path / "best.safetensors").is_file():
        return _gallery_of_run(path, open_net)
    if any(path.rglob("*_overlay.png")) or any(path.rglob("*_labels.png")):
        return ResultsGallery(path)
    try:
        data = data_in(path)
    except DataError:
        return None
    return DatasetGallery(replace(data, crop_size=(256, 512)))


def _gallery_of_run(run: Path, open_net: Callable[[str | Path], Predictor]) -> RunGallery:
    net = open_net(run / "best.safetensors")
    data = data_of(Run(run), net.card.facts["config"])
    return RunGallery(f"{run.name}: val", open_dataset(data, "val"), net)
