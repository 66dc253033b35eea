"""Training batches as a pure function of (seed, step), and validation shards without padding.

Sample number n of a run (n = step x batch size + place) is image `permutation(seed, epoch)[n mod N]` of epoch
n // N, augmented with a generator seeded by (seed, epoch, image). Nothing depends on worker processes, so any
number of them gives the same batches and a run resumes at any step at once.
"""

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from segmv3.config import Data, ImageFolder
from segmv3.data.datasets import Dataset
from segmv3.data.imagefolder import Pictures
from segmv3.data.transforms import train_transforms, transform

Batch = tuple[Tensor, Tensor]
"""Images uint8 N x 3 x H x W (RGB); int64 labels N x H x W of train ids, or the N classes of whole pictures."""

Item = TypeVar("Item")


def sample_at(number: int, count: int, seed: int) -> tuple[int, int]:
    """(epoch, image index) of sample `number` of a run over `count` images."""
    epoch, place = divmod(number, count)
    return epoch, int(_order(count, seed, epoch)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


class TrainSamples(TorchDataset[tuple[Tensor, Tensor]]):
    """Augmented crops, addressed by (epoch, image index)."""

    def __init__(self, dataset: Dataset | Pictures, data: Data | ImageFolder, seed: int) -> None:
        self.dataset = dataset
        self.transforms = train_transforms(data)
        self.seed = seed

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = address
        generator = np.random.default_rng([self.seed, 1, epoch, index])
        image, target = self.dataset.read(index)
        image, target = transform(self.transforms, image, target, generator)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return pixels, torch.as_tensor(target, dtype=torch.int64)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The addresses of each step's batch, from `start` to `stop`; rank r of W takes its slice."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop = start, stop
        self.places = range(rank, batch_size, world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            first = step * self.batch_size
            yield [sample_at(first + place, self.count, self.seed) for place in self.places]

    def __len__(self) -> int:
        return self.stop - self.start


def train_batches(
    dataset: Dataset | Pictures,
    data: Data | ImageFolder,
    *,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    start_method: str | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches of the steps start..stop-1 for one process of `world_size`.

    Args: start_method: how workers start ("fork", "spawn"); None takes the platform's own.
    """
    return DataLoader(
        TrainSamples(dataset, data, seed),
        batch_sampler=StepSampler(len(dataset), data.batch_size, seed, start, stop, rank, world_size),
        num_workers=data.workers,
        worker_init_fn=_prepare_worker,
        multiprocessing_context=start_method if data.workers else None,
        pin_memory=pin_memory,
        timeout=120 if data.workers else 0,  # a hung worker is an error, not a silence
    )


def _kill_workers() -> None:
    """At exit: multiprocessing would send its children SIGTERM, which ours ignore, and wait for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call this a failure
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_kill_workers)  # runs before multiprocessing's own, which was registered earlier


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's own threads deadlock after a fork and crowd out the other workers
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they reach the whole group; when to stop is the loop's say
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def read_ahead(read: Callable[[int], Item], indices: Sequence[int], *, threads: int = 2) -> Iterator[Item]:
    """`read(index)` of each index in order, the next ones being read while this one is used."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Item]] = deque()
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def shard(count: int, rank: int, world_size: int) -> range:
    """The images one process scores: together they cover each image exactly once, without padding."""
    return range(rank, count, world_size)
