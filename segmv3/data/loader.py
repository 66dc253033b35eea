"""Training batches as a pure function of (seed, step), and validation shards without padding.

Sample number n of a run (n = step x batch size + place) is image `permutation(seed, epoch)[n mod N]` of epoch
n // N, augmented with a generator seeded by (seed, epoch, image); where samples are drawn otherwise
(`segmv3.data.sampling`), that is by another generator of the same seeds. Nothing depends on worker processes, so any
number of them gives the same batches and a run resumes at any step at once.
"""

import atexit
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from segmv3.config import Data
from segmv3.data.datasets import Dataset
from segmv3.data.sampling import Place, draws_of
from segmv3.data.transforms import Colors, train_transforms, transform
from segmv3.errors import ConfigError
from segmv3.images import UInt8Array


class Photometric(NamedTuple):
    """How the colours of a batch change on the device; `segmv3.training.photometric.adjust` does it."""

    matrix: Tensor
    """float32 N x 3 x 4, from (R, G, B, 1)."""
    tables: Tensor | None
    """uint8 N x 3 x 256, through which the channels go before that."""
    inside: Tensor | None
    """int64 N x 4: top, left, bottom, right of each picture; None where none is padded."""


Batch = tuple[Tensor, Tensor, Photometric | None]
"""Images, uint8 N x 3 x H x W (RGB, channels_last); labels; and how the colours change, None where they never do.

Labels are train ids, uint8 N x H x W, an eighth of what int64 takes; for whole pictures the classes, int64 N."""

Sample = tuple[Tensor, Tensor, Colors | None]


def sample_at(number: int, count: int, seed: int) -> tuple[int, int]:
    """(epoch, image index) of sample `number` of a run over `count` images."""
    epoch, place = divmod(number, count)
    return epoch, int(_order(count, seed, epoch)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


class Batching(Protocol):
    """The settings of a data set that its batches depend on."""

    @property
    def batch_size(self) -> int: ...

    @property
    def crop_size(self) -> tuple[int, int]: ...

    @property
    def workers(self) -> int: ...


class Samples(TorchDataset[Sample]):
    """Augmented crops uint8 H x W x 3 with their targets, addressed by (epoch, image index).

    Args:
        count: images of an epoch.
        transforms: what makes a sample of an image and its target.
        seed: of the run.
    """

    def __init__(self, count: int, transforms: A.Compose, seed: int) -> None:
        self.count, self.transforms, self.seed = count, transforms, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, address: tuple[int, int]) -> Sample:
        epoch, index = address
        generator = np.random.default_rng([self.seed, 1, epoch, index])
        image, target, colors = transform(self.transforms, *self.read(epoch, index), generator)
        if isinstance(target, int):
            return torch.from_numpy(image), torch.tensor(target), colors
        return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(target)), colors

    def read(self, epoch: int, index: int) -> tuple[UInt8Array, UInt8Array | int, Place | None]:
        """An image, its target, and a pixel that the crop must show."""
        raise NotImplementedError


class TrainSamples(Samples):
    """The samples of a data set of streets, drawn as `segmv3.data.sampling` says."""

    def __init__(self, dataset: Dataset, data: Data, seed: int) -> None:
        super().__init__(len(dataset), train_transforms(data), seed)
        self.dataset, self.draws = dataset, draws_of(dataset, data)

    def read(self, epoch: int, index: int) -> tuple[UInt8Array, UInt8Array | int, Place | None]:
        if self.draws:  # [seed, 2] is the loop's
            return self.draws.read(index, np.random.default_rng([self.seed, 3, epoch, index]))
        return *self.dataset.read(index), None


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples (H x W x 3 each). Its pixels stay where they are: N x 3 x H x W in channels_last order,
    which is how the nets want them, so that nobody turns them round twice."""
    images, targets = default_collate([(image, target) for image, target, _ in samples])
    size = (0, 0, *images.shape[1:3])
    colors = [each for _, _, each in samples if each]
    photometric = None
    if colors:
        tables = [each.table for each in colors if each.table is not None]
        padded = any(each.inside for each in colors)
        photometric = Photometric(
            torch.from_numpy(np.stack([each.matrix for each in colors])),
            torch.from_numpy(np.stack(tables)) if tables else None,
            torch.tensor([each.inside or size for each in colors]) if padded else None,
        )
    return images.permute(0, 3, 1, 2), targets, photometric


@dataclass(frozen=True)
class StepSampler(Sampler[list[tuple[int, int]]]):
    """The addresses of each step's batch, from `start` to `stop`; rank r of W takes its slice."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        places = range(self.rank, self.batch_size, self.world_size)
        for step in range(self.start, self.stop):
            first = step * self.batch_size
            yield [sample_at(first + place, self.count, self.seed) for place in places]

    def __len__(self) -> int:
        return self.stop - self.start


def train_batches(dataset: Dataset, data: Data, *, seed: int, **options: Any) -> DataLoader[Batch]:
    """`batches` of a data set of streets."""
    return batches(TrainSamples(dataset, data, seed), data, **options)


def batches(
    samples: Samples,
    data: Batching,
    *,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    start_method: str | None = None,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches of the steps start..stop-1 for one process of `world_size`.

    Args:
        samples: what the batches are made of.
        data: how large they are, and how many workers make them.
        start: the first step.
        stop: the step after the last.
        rank: of this process.
        world_size: number of processes.
        start_method: how workers start ("fork", "spawn"); None takes the platform's own.
        pin_memory: whether batches lie where a GPU can fetch them by itself.

    Returns:
        An iterable of `Batch`.
    """
    stacked: TorchDataset[Any] = samples  # torch takes a batch's type for a sample's
    return _PatientLoader(
        stacked,
        batch_sampler=StepSampler(samples.count, data.batch_size, samples.seed, start, stop, rank, world_size),
        num_workers=data.workers,
        collate_fn=collate,
        worker_init_fn=_prepare_worker,
        multiprocessing_context=start_method if data.workers else None,
        pin_memory=pin_memory,
        timeout=_HUNG_AFTER if data.workers else 0,
    )


_HUNG_AFTER = 120  # seconds


class _PatientLoader(DataLoader[Batch]):
    """A loader that raises an error when a worker hangs, and waits for workers that are slow or still start.

    A worker hangs when it delivered nothing and used no processor time between two limits.
    """

    def __iter__(self) -> Any:
        batches, spent_before = super().__iter__(), -1.0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if codes := [worker.exitcode for worker in getattr(batches, "_workers", ()) if worker.exitcode]:
                    ends = (f"exit code {n}" if n > 0 else f"killed by {signal.Signals(-n).name}" for n in codes)
                    raise RuntimeError(f"{error} ({', '.join(ends)})") from None
                spent = _seconds_of_workers()
                if "timed out" not in str(error) or spent == spent_before:
                    raise
                spent_before = spent
            else:
                yield batch


def _seconds_of_workers() -> float:
    """Processor time that the workers of this process used; where the system does not tell, they are never hung."""
    ticks = 0
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            if not Path("/proc/self/stat").exists():
                return time.monotonic()
            continue
        ticks += int(fields[11]) + int(fields[12])
    return float(ticks)


# --- enough of them, and not too many ---

_WORKER_BYTES = 250e6  # proportional share (PSS) of a forked worker; only 70 MB of it are private
_DECODED = 8 * 2**21  # an image of 1024x2048 and its labels, twice
_QUEUED = 3  # batches of one worker: two are prefetched (torch's default), one is being made


def refuse_workers_beyond_memory(data: Batching, processes: int = 1) -> None:
    """Refuse more workers than the memory of this machine can hold.

    Args:
        processes: number of training processes on this machine. Each has workers of its own.

    Raises:
        ConfigError: the workers need more memory than is free, or their batches more shared memory.
    """
    samples = _QUEUED * data.batch_size / processes
    queued = samples * math.prod(data.crop_size) * (3 + 1)  # uint8 RGB and labels
    for needed, free, what in (
        (_WORKER_BYTES + queued + _DECODED, free_memory(), "memory"),
        (queued, _free_shared_memory(), "shared memory (/dev/shm)"),
    ):
        workers = data.workers * processes
        total = workers * needed
        if total > free:
            raise ConfigError(
                f"data.workers {data.workers}: {workers} workers need about {total / 1e9:,.1f} GB of {what}, "
                f"{free / 1e9:,.1f} are free; at most {int(free / needed / processes)} fit"
            )


def free_memory() -> float:
    """Bytes that can still be used here: of the machine, and of the container (cgroup 2) where it sets a limit."""
    free = math.inf
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stats.get("inactive_file", 0))
        free = min(free, limit - used)
    return free


def _free_shared_memory() -> float:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux
        return math.inf


def waiting_advice(wait: float, data: Batching) -> str:
    """What to do when a share `wait` of the training time passes while the net waits for data; empty when little.

    A worker a core is what can help; beyond that only cheaper samples do.
    """
    if wait < 0.1:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    remedies = []
    if data.workers < cores:
        remedies.append(f"raise --data.workers ({data.workers} now, {cores} CPU cores here)")
    if isinstance(data, Data) and not data.cache:
        remedies.append("run segmv3 data pack once and add --data.cache")
    advice = ", or ".join(remedies) or "every core prepares samples already; a packed half-size cache is less work"
    return f"the net waits for data {wait:.0%} of the time: {advice}"


def kill_workers() -> None:
    """Multiprocessing would send its children SIGTERM, which segmv3's workers ignore, and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _at_exit() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call this a failure
    kill_workers()


atexit.register(_at_exit)  # runs before multiprocessing's own, which was registered earlier


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's own threads deadlock after a fork and crowd out the other workers
    signal.set_wakeup_fd(-1)  # a forked worker shares it
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they reach the whole group; when to stop is the loop's say
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def shard(count: int, rank: int, world_size: int) -> range:
    """The images one process scores: together they cover each image exactly once, without padding."""
    return range(rank, count, world_size)
