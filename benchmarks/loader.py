"""How fast training samples are made: from image files, from a packed cache, and by mmsegmentation's pipeline.

Every pipeline makes the same thing of the same images: a crop at a random scale, mirrored or not, as tensors.
mmsegmentation's is jittered, ours comes with the matrix by which the device jitters it. They are timed in one process
and one thread, in turns, so that a busy machine is busy for all of them.
"""

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segmv3.config import Data
from segmv3.data.datasets import Dataset, Pair
from segmv3.data.loader import TrainSamples, train_batches
from segmv3.images import UInt8Array, read_ids, read_image

Sample = tuple[Tensor, Tensor]
"""An image uint8 and its labels, uint8 (ours) or int64, ready for a batch."""

_SEED = 0


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every sample that one pipeline made on one core."""

    name: str
    milliseconds: tuple[float, ...]
    per_second: float = float("nan")
    """Samples a second of all workers together; not measured where it is not a number."""
    reason: str = ""
    """Why there is none."""

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds) if self.milliseconds else float("nan")

    @property
    def mean(self) -> float:
        """What a long run costs; a pipeline's samples differ by their scale, and some draw their crop ten times."""
        return statistics.fmean(self.milliseconds) if self.milliseconds else float("nan")

    @property
    def minimum(self) -> float:
        return min(self.milliseconds, default=float("nan"))

    @property
    def per_core(self) -> float:
        """Samples a second."""
        return 1e3 / self.mean


# --- the pipelines ---


@dataclass(frozen=True)
class Pipeline:
    """A way to make training samples of a data set."""

    name: str
    open: Callable[[], Callable[[int, int], Sample]]
    """Gives the function from (number of the sample, image index) to a sample."""


def pipelines(dataset: Dataset, data: Data, packed: Dataset | None = None) -> list[Pipeline]:
    """All that can be measured here, mmsegmentation first: the others are compared with it.

    mmsegmentation itself is among them when it can be imported.
    """
    found = [
        Pipeline(
            "mmsegmentation's steps, files",
            lambda: lambda number, index: _published_steps(dataset, index, data, np.random.default_rng(number)),
        ),
        Pipeline("segmv3, files", lambda: _ours(dataset, data)),
    ]
    if packed:
        found.append(Pipeline("segmv3, cache", lambda: _ours(packed, data)))
    if importlib.util.find_spec("mmseg"):
        found.insert(0, Pipeline("mmsegmentation, files", lambda: _mmsegmentation(dataset, data)))
    return found


def _ours(dataset: Dataset, data: Data) -> Callable[[int, int], Sample]:
    samples = TrainSamples(dataset, data, _SEED)
    return lambda number, index: samples[(number, index)][:2]


def _published_steps(dataset: Dataset, index: int, data: Data, generator: np.random.Generator) -> Sample:
    """mmsegmentation 1.2.2, `configs/_base_/datasets/cityscapes.py`, step by step in its order.

    LoadImageFromFile (cv2), LoadAnnotations (Pillow), RandomResize of the whole image, RandomCrop with
    `cat_max_ratio`, RandomFlip, PhotoMetricDistortion, PackSegInputs.
    """
    pair = dataset.pairs[index]
    image = np.asarray(cv2.imdecode(np.frombuffer(pair.image.read_bytes(), np.uint8), cv2.IMREAD_COLOR))
    with Image.open(pair.label) as file:
        labels = np.array(file).squeeze().astype(np.uint8)

    scale = generator.uniform(*data.scale_range)
    size = (int(image.shape[1] * scale + 0.5), int(image.shape[0] * scale + 0.5))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)

    window = _crop_window(labels.shape, data.crop_size, generator)
    for _ in range(10):
        ids, counts = np.unique(labels[window], return_counts=True)
        counts = counts[ids != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < data.cat_max_ratio:
            break
        window = _crop_window(labels.shape, data.crop_size, generator)
    image, labels = image[window], labels[window]

    if generator.random() < data.flip:
        image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
    image = _photometric_distortion(image, generator)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return pixels, torch.from_numpy(labels[None].astype(np.int64))


def _crop_window(
    shape: tuple[int, ...], crop_size: tuple[int, int], generator: np.random.Generator
) -> tuple[slice, slice]:
    top = int(generator.integers(max(shape[0] - crop_size[0], 0) + 1))
    left = int(generator.integers(max(shape[1] - crop_size[1], 0) + 1))
    return slice(top, top + crop_size[0]), slice(left, left + crop_size[1])


def _photometric_distortion(image: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    """Brightness, contrast before or after colour, saturation, hue: each with probability 1/2, in float32 or HSV."""

    def chance() -> bool:
        return bool(generator.random() < 0.5)

    def converted(pixels: UInt8Array, alpha: float = 1.0, beta: float = 0.0) -> UInt8Array:
        return np.clip(pixels.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if chance():
        image = converted(image, beta=generator.uniform(-32, 32))
    contrast_first = chance()
    if contrast_first and chance():
        image = converted(image, alpha=generator.uniform(0.5, 1.5))
    if chance():
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = converted(hsv[:, :, 1], alpha=generator.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if chance():
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + generator.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first and chance():
        image = converted(image, alpha=generator.uniform(0.5, 1.5))
    return image


def _mmsegmentation(dataset: Dataset, data: Data) -> Callable[[int, int], Sample]:
    """The transforms of mmsegmentation itself, as its Cityscapes config lists them."""
    from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize  # type: ignore[import-not-found]
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    height, width = read_image(dataset.pairs[0].image).shape[:2]  # its config says Cityscapes' size
    steps = (
        LoadImageFromFile(),
        LoadAnnotations(),
        RandomResize(scale=(width, height), ratio_range=data.scale_range, keep_ratio=True),
        RandomCrop(crop_size=data.crop_size, cat_max_ratio=data.cat_max_ratio),
        RandomFlip(prob=data.flip),
        PhotoMetricDistortion(),
        PackSegInputs(),
    )

    def sample(number: int, index: int) -> Sample:
        np.random.seed(number)  # noqa: NPY002 (its own source of randomness)
        random.seed(number)
        pair = dataset.pairs[index]
        results: dict[str, Any] = {
            "img_path": str(pair.image),
            "seg_map_path": str(pair.label),
            "reduce_zero_label": False,
            "seg_fields": [],
        }
        for step in steps:
            results = step(results)
        return results["inputs"], results["data_samples"].gt_sem_seg.data

    return sample


# --- timing ---


def time_pipelines(found: Sequence[Pipeline], images: int, samples: int) -> list[Timing]:
    """Time `samples` samples of each pipeline on one core, after one of each that is not timed."""
    ready: dict[str, Callable[[int], object]] = {}
    reasons: dict[str, str] = {}
    for each in found:
        try:
            make = each.open()
            make(0, 0)
        except Exception as error:  # whatever ails a peer, the others are measured
            if each.name.startswith("segmv3"):
                raise
            reasons[each.name] = f"cannot run here ({' '.join(str(error).split())[:120]})"
        else:
            ready[each.name] = lambda number, make=make: make(number, number % images)  # type: ignore[misc]
    spent = _in_turns(ready, samples)
    return [Timing(each.name, spent.get(each.name, ()), reason=reasons.get(each.name, "")) for each in found]


def _in_turns(calls: Mapping[str, Callable[[int], object]], repeat: int) -> dict[str, tuple[float, ...]]:
    """Milliseconds of each call with 0, 1, ... repeat - 1."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    with _one_thread():
        for number in range(repeat):
            for name, call in calls.items():
                began = time.thread_time()
                call(number)
                spent[name].append(1e3 * (time.thread_time() - began))
    return {name: tuple(values) for name, values in spent.items()}


def time_loader(dataset: Dataset, data: Data, seconds: float = 10.0) -> float:
    """Samples a second of `data.workers` processes together, batches and their way to the loop included.

    Not counted: the start of the workers and the batches that they prepare before the first is asked for.
    """
    batches = iter(train_batches(dataset, data, seed=_SEED, start=0, stop=2**31))
    return _rate(batches, data.batch_size, data.workers, seconds)


def time_peer_loader(pipeline: Pipeline, images: int, data: Data, seconds: float = 10.0) -> float:
    """The same for any of the pipelines, by torch's DataLoader with its defaults."""
    loader = DataLoader(
        _Numbered(pipeline, images), batch_size=data.batch_size, num_workers=data.workers, worker_init_fn=_prepare
    )
    return _rate(iter(loader), data.batch_size, data.workers, seconds)


class _Numbered(TorchDataset[Sample]):
    """Samples without end."""

    def __init__(self, pipeline: Pipeline, images: int) -> None:
        self.pipeline, self.images = pipeline, images
        self._make: Callable[[int, int], Sample] | None = None

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, number: int) -> Sample:
        self._make = self._make or self.pipeline.open()
        return self._make(number, number % self.images)


def _prepare(_: int) -> None:
    cv2.setNumThreads(0)


def _rate(batches: Iterator[object], batch_size: int, workers: int, seconds: float) -> float:
    for _ in range(2 * workers + 1):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count * batch_size / (time.perf_counter() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


# --- where the time goes ---


def time_parts(dataset: Dataset, packed: Dataset, data: Data, samples: int) -> list[Timing]:
    """The parts of our own sample on one core, and the decoders that could read its image."""
    plain = replace(data, jitter=0.0, flip=0.0, cat_max_ratio=1.0)
    crop = _ours(packed, plain)
    ruled = _ours(packed, replace(plain, cat_max_ratio=data.cat_max_ratio))
    jittered = _ours(packed, replace(plain, jitter=1.0))

    def pair(number: int) -> Pair:
        return dataset.pairs[number % len(dataset)]

    calls: dict[str, Callable[[int], object]] = {
        "files to pixels and train ids": lambda i: dataset.read(i % len(dataset)),
        "  the image, with checksums": lambda i: read_image(pair(i).image),
        "  the labels, with checksums": lambda i: read_ids(pair(i).label),
        "pixels to a sample: crop, resize, pad": lambda i: crop(i, i % len(dataset)),
        "  and crops of one class drawn again": lambda i: ruled(i, i % len(dataset)),
        "  and a jitter drawn, for the device to apply": lambda i: jittered(i, i % len(dataset)),
        "other decoders of the image: Pillow, no checksums": lambda i: np.asarray(Image.open(pair(i).image)),
        "  OpenCV": lambda i: cv2.imread(str(pair(i).image)),
        "  torchvision": lambda i: _torchvision(pair(i).image.read_bytes()),
    }
    return [Timing(name, spent) for name, spent in _in_turns(calls, samples).items()]


def _torchvision(encoded: bytes) -> Tensor:
    from torchvision.io import decode_image

    return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
