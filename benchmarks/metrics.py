"""How long scoring takes: our confusion matrix and other projects' on the same label maps in the same process."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segmv3.benchmark.timing import Times, time_in_turns
from segmv3.config import Data
from segmv3.data.datasets import Dataset, open_dataset
from segmv3.errors import NumericsError
from segmv3.images import UInt8Array, read_ids, write_png
from segmv3.labels import IGNORE
from segmv3.metrics import ConfusionMatrix
from segmv3.mini_city import write_mini_city

CLASSES = 19

Hits = NDArray[np.int64]
"""Right pixels of each class."""


class ScoringError(NumericsError):
    """Implementations that were to count the same pixels found different numbers."""

    area = "benchmark"


# --- label maps ---


@dataclass(frozen=True)
class Maps:
    """Train ids of one image, integers H x W each (uint8 unless said), 255 = ignore in the truth."""

    title: str
    truth: NDArray[Any]
    guess: NDArray[Any]


def random_maps(size: tuple[int, int], seed: int = 0) -> Maps:
    """Every pixel on its own: all pairs occur, neighbours have nothing in common. A tenth is to be ignored."""
    rng = np.random.default_rng(seed)
    truth, guess = (rng.integers(0, CLASSES, size, dtype=np.uint8) for _ in range(2))
    truth[rng.random(size) < 0.1] = IGNORE
    return Maps("random", truth, guess)


def street_maps(size: tuple[int, int], seed: int = 0) -> Maps:
    """A drawn street with its void, and the same street moved a little as its prediction.

    Raises: ConfigError for a size below 64 x 128.
    """
    with tempfile.TemporaryDirectory(prefix="segmv3-benchmark-") as folder:
        root = Path(folder) / "city"
        write_mini_city(root, train=1, val=1, size=size, seed=seed)
        truth = open_dataset(Data(dataset="cityscapes", root=root), "val").read(0)[1]
    return Maps("street", truth, moved(truth))


def moved(truth: UInt8Array) -> UInt8Array:
    """A prediction that is right but at the outlines: labels 4 rows and 6 columns off, class 0 where there is void."""
    guess = np.roll(truth, (4, 6), (0, 1))
    return np.where(guess == IGNORE, np.uint8(0), guess)


# --- the implementations ---


@dataclass(frozen=True)
class Prepared:
    """One implementation with its input in the type that it takes natively."""

    update: Callable[[], object]
    hits: Callable[[], Hits]
    """After exactly one update."""


@dataclass(frozen=True)
class Implementation:
    name: str
    package: str
    """Whose version is stated."""
    takes: str
    """Type of the labels."""
    prepare: Callable[[Maps], Prepared]
    """Raises: ImportError when it is not installed."""


def _ours(maps: Maps) -> Prepared:
    confusion = ConfusionMatrix(CLASSES)
    return Prepared(lambda: confusion.update(maps.guess, maps.truth), lambda: np.diagonal(confusion.matrix).copy())


def _ours_wide(maps: Maps) -> Prepared:
    """With the labels that argmax gives and the others take, narrowed in every update."""
    return _ours(Maps(maps.title, maps.truth.astype(np.int64), maps.guess.astype(np.int64)))


def _bincount(maps: Maps) -> Prepared:
    """`fast_hist` of the FCN authors' score.py, which many projects copied."""
    total: Hits = np.zeros((CLASSES, CLASSES), np.int64)

    def update() -> None:
        known = maps.truth < CLASSES
        pairs = CLASSES * maps.truth[known].astype(int) + maps.guess[known]
        total[...] += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)

    return Prepared(update, lambda: np.diagonal(total).copy())


def _torchmetrics(maps: Maps, *, validate: bool = True) -> Prepared:
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=validate)
    guess, truth = (torch.from_numpy(labels.astype(np.int64)) for labels in (maps.guess, maps.truth))
    return Prepared(lambda: metric.update(guess, truth), lambda: metric.compute().diagonal().numpy().astype(np.int64))


def _mmsegmentation(maps: Maps) -> Prepared:
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(prefix="benchmark")  # without one it warns
    metric.dataset_meta = {"classes": list(range(CLASSES))}
    guess, truth = ({"data": torch.from_numpy(labels.astype(np.int64))[None]} for labels in (maps.guess, maps.truth))
    samples = [{"pred_sem_seg": guess, "gt_sem_seg": truth}]
    return Prepared(lambda: metric.process({}, samples), lambda: metric.results[0][0].numpy().astype(np.int64))


IMPLEMENTATIONS = (
    Implementation("segmv3 ConfusionMatrix", "segmv3", "uint8", _ours),
    Implementation("segmv3, wide labels", "segmv3", "int64", _ours_wide),
    Implementation("numpy bincount", "numpy", "uint8", _bincount),
    Implementation("torchmetrics MulticlassConfusionMatrix", "torchmetrics", "int64", _torchmetrics),
    Implementation(
        "torchmetrics, unchecked ids", "torchmetrics", "int64", lambda maps: _torchmetrics(maps, validate=False)
    ),
    Implementation("mmsegmentation IoUMetric", "mmsegmentation", "int64", _mmsegmentation),
)
"""Ours first; each takes labels in the type in which its own project hands them to it."""


# --- timing ---


@dataclass(frozen=True)
class Timing:
    """How long an update takes; no times where the implementation is missing."""

    implementation: Implementation
    version: str
    """Or why it was not measured."""
    times: Times | None = None


def time_updates(
    maps: Maps, repeat: int, *, implementations: Sequence[Implementation] = IMPLEMENTATIONS
) -> list[Timing]:
    """Time one image's update by each implementation, by turns as `segmv3.benchmark.timing` takes them.

    Before that each updates once; its hits are compared with ours.
    Raises: ScoringError when an implementation counts other pixels.
    """
    ready: dict[str, Prepared] = {}
    versions: dict[str, str] = {}
    for one in implementations:
        try:
            ready[one.name] = one.prepare(maps)
            versions[one.name] = version(one.package)
        except ModuleNotFoundError as error:
            own = (error.name or "").partition(".")[0] in ("mmseg", "torchmetrics")
            versions[one.name] = "not installed" if own else f"cannot be imported ({error})"
        except PackageNotFoundError:
            versions[one.name] = "of unknown version"
        except Exception as error:  # mmseg asserts versions of mmcv; whatever ails a peer, the others are measured
            versions[one.name] = f"cannot be used ({' '.join(str(error).split())[:120]})"
    _compare({name: _hits(prepared) for name, prepared in ready.items()}, maps)
    times = time_in_turns({name: prepared.update for name, prepared in ready.items()}, repeat)
    return [Timing(one, versions[one.name], times.get(one.name)) for one in implementations]


def _hits(prepared: Prepared) -> Hits:
    prepared.update()
    return prepared.hits()


def _compare(hits: dict[str, Hits], maps: Maps) -> None:
    known = maps.truth != IGNORE
    expected = np.bincount(maps.truth[known & (maps.truth == maps.guess)], minlength=CLASSES)
    for name, found in hits.items():
        if not np.array_equal(found, expected):
            raise ScoringError(
                f"{name} counts {found.sum():,} right pixels in the {maps.title} map, {expected.sum():,} are"
            )


@dataclass(frozen=True)
class Shares:
    """Seconds of scoring cached predictions: reading the label, reading the prediction, counting."""

    images: int
    label: float
    prediction: float
    scoring: float

    @property
    def decoding(self) -> float:
        """Percent of the time that goes into decoding PNGs."""
        read = self.label + self.prediction
        return 100 * read / (read + self.scoring)


def time_shares(
    dataset: Dataset, *, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Shares:
    """Score cached predictions: PNGs of train ids, made from the labels (`moved`) before anything is timed.

    Raises: DataError naming the file for a label that cannot be read.
    """
    count = min(limit or len(dataset), len(dataset))
    confusion = ConfusionMatrix(len(dataset.classes))
    confusion.update(np.zeros(1, np.uint8), np.full(1, IGNORE, np.uint8))  # compiles
    spent = np.zeros(3)
    with tempfile.TemporaryDirectory(prefix="segmv3-benchmark-") as folder:
        cached = Path(folder) / "prediction.png"
        for done, pair in enumerate(dataset.pairs[:count], 1):
            write_png(cached, moved(pair.table.to_train_ids(read_ids(pair.label), pair.label)))
            marks = [time.perf_counter()]
            truth = pair.table.to_train_ids(read_ids(pair.label), pair.label)
            marks.append(time.perf_counter())
            guess = read_ids(cached)
            marks.append(time.perf_counter())
            confusion.update(guess, truth)
            marks.append(time.perf_counter())
            spent += np.diff(marks)
            if progress:
                progress(done, count)
    return Shares(count, *map(float, spent))
