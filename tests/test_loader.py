import hashlib
import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segmv3.config import Data
from segmv3.data import loader
from segmv3.data.datasets import open_dataset
from segmv3.data.loader import (
    StepSampler,
    TrainSamples,
    refuse_workers_beyond_memory,
    sample_at,
    shard,
    train_batches,
    waiting_advice,
)
from segmv3.data.transforms import train_transforms
from segmv3.errors import ConfigError


def data(root, workers=0) -> Data:
    return Data(dataset="folder", root=root, batch_size=4, crop_size=(32, 40), workers=workers)


def digests(config: Data, start=0, stop=5, **options) -> list[str]:
    dataset = open_dataset(config, "train")
    found = []
    for image, labels, colors in train_batches(dataset, config, seed=3, start=start, stop=stop, **options):
        assert image.shape[1:] == (3, 32, 40) and labels.shape[1:] == (32, 40)
        assert colors.matrix.shape == (len(image), 3, 4)
        parts = (image, labels, *(part for part in colors if part is not None))
        found.append(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
    return found


@pytest.mark.parametrize(
    ("workers", "method"), [(1, "fork"), (2, "fork"), (4, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_batches_do_not_depend_on_workers(folder, workers, method):
    assert digests(data(folder, workers), start_method=method) == digests(data(folder))


def busy(self, address):
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass
    return taken(self, address)


taken = TrainSamples.__getitem__


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers' time is read from /proc")
def test_a_slow_worker_is_waited_for_and_a_hung_one_is_not(folder, monkeypatch):
    monkeypatch.setattr(loader, "_HUNG_AFTER", 0.7)
    few = replace(data(folder, workers=1), batch_size=1)
    monkeypatch.setattr(TrainSamples, "__getitem__", busy)
    assert len(digests(few, stop=1, start_method="fork")) == 1
    monkeypatch.setattr(TrainSamples, "__getitem__", lambda self, address: time.sleep(4))
    with pytest.raises(RuntimeError, match=r"timed out after 0\.7 seconds"):
        digests(few, stop=1, start_method="fork")


def test_batches_are_a_function_of_the_step(folder):
    whole = digests(data(folder))
    assert digests(data(folder), start=3) == whole[3:]
    assert len(set(whole)) == 5


def test_ranks_share_the_global_batch(folder):
    config = data(folder)
    dataset = open_dataset(config, "train")
    whole = list(train_batches(dataset, config, seed=3, start=0, stop=2))
    parts = [list(train_batches(dataset, config, seed=3, start=0, stop=2, rank=r, world_size=2)) for r in (0, 1)]
    for step, (image, _, colors) in enumerate(whole):
        for place in range(4):
            part, _, its_colors = parts[place % 2][step]
            assert image[place].equal(part[place // 2])
            assert colors.matrix[place].equal(its_colors.matrix[place // 2])


def test_an_epoch_shows_every_image_once():
    for epoch in range(3):
        places = [sample_at(epoch * 7 + i, 7, seed=1) for i in range(7)]
        assert {e for e, _ in places} == {epoch} and sorted(i for _, i in places) == list(range(7))
    assert [a for batch in StepSampler(7, 4, 1, 0, 2) for a in batch] == [sample_at(n, 7, 1) for n in range(8)]


@pytest.mark.parametrize("count", [1, 2, 5, 7, 16])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_cover_each_image_once(count, world):
    assert sorted(i for rank in range(world) for i in shard(count, rank, world)) == list(range(count))


def test_everything_a_worker_needs_can_be_pickled(folder):
    config = replace(data(folder))
    assert pickle.loads(pickle.dumps(open_dataset(config, "train"))).pairs
    pickle.dumps(train_transforms(config))


def test_batches_are_channels_last(folder):
    config = data(folder)
    for workers in (0, 1):
        batches = train_batches(
            open_dataset(config, "train"), replace(config, workers=workers), seed=3, start=0, stop=2
        )
        for image, labels, _ in batches:
            assert image.shape == (4, 3, 32, 40) and image.dtype == torch.uint8
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert labels.shape == (4, 32, 40) and labels.dtype == torch.uint8 and labels.is_contiguous()


def test_too_many_workers_for_the_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(loader, "free_memory", lambda: 1e12)
    monkeypatch.setattr(loader, "_free_shared_memory", lambda: 3.5e8)
    config = replace(data(folder), batch_size=16, crop_size=(512, 1024))
    for workers in (0, 1, 3):
        refuse_workers_beyond_memory(replace(config, workers=workers))
    says = r"data\.workers 8: 8 workers need about 0\.8 GB of shared memory .* 0\.3 are free; at most 3 fit"
    with pytest.raises(ConfigError, match=says):
        refuse_workers_beyond_memory(replace(config, workers=8))
    monkeypatch.setattr(loader, "free_memory", lambda: 2.7e9)
    monkeypatch.setattr(loader, "_free_shared_memory", lambda: 1e12)
    refuse_workers_beyond_memory(replace(config, workers=7))
    with pytest.raises(ConfigError, match=r"8 workers need about 2\.9 GB of memory, 2\.7 are free; at most 7 fit"):
        refuse_workers_beyond_memory(replace(config, workers=8))
    with pytest.raises(ConfigError, match=r"data\.workers 8: 32 workers"):
        refuse_workers_beyond_memory(replace(config, workers=8), processes=4)


def test_free_memory_is_measured():
    assert loader.free_memory() > 1e7 and loader._free_shared_memory() >= 0
    refuse_workers_beyond_memory(Data(dataset="folder", root=Path(), workers=0))


def test_advice_names_what_helps(folder, monkeypatch):
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    few = data(folder, workers=2)
    assert waiting_advice(0.05, few) == ""
    assert waiting_advice(0.4, few) == (
        "the net waits for data 40% of the time: raise --data.workers (2 now, 8 CPU cores here), or run "
        "segmv3 data pack once and add --data.cache"
    )
    assert "data pack" not in waiting_advice(0.4, replace(few, cache=folder))
    assert "workers" not in waiting_advice(0.4, replace(few, workers=8))


def test_the_pipelines_of_the_benchmark_make_the_same_kind_of_sample(cityscapes, tmp_path):
    from benchmarks.loader import Pipeline, pipelines, time_parts, time_pipelines
    from segmv3.data.pack import pack

    config = Data(dataset="cityscapes", root=cityscapes, crop_size=(24, 24), scale_range=(0.5, 2.0))
    dataset = open_dataset(config, "train")
    packed = pack(dataset, tmp_path / "cache")
    found = [each for each in pipelines(dataset, config, packed) if each.name != "mmsegmentation, files"]
    for each in found:
        image, labels = each.open()(1, 1)
        assert image.dtype == torch.uint8 and image.numel() == 3 * 24 * 24
        assert (
            labels.dtype == (torch.uint8 if each.name.startswith("segmv3") else torch.int64)
            and labels.numel() == 24 * 24
        )
        assert set(labels.unique().tolist()) <= {*range(19), 255}

    def broken():
        raise ImportError("no such library")

    timings = time_pipelines([*found, Pipeline("peer", broken)], len(dataset), 3)
    assert [len(each.milliseconds) for each in timings] == [3] * len(found) + [0]
    assert timings[-1].reason == "cannot run here (no such library)"
    assert timings[0].per_core > 0 and timings[0].minimum <= timings[0].median
    assert len(time_parts(dataset, packed, config, 1)) == 9
