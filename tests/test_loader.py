import hashlib
import pickle
from dataclasses import replace

import pytest

from segmv3.config import Data
from segmv3.data.datasets import open_dataset
from segmv3.data.loader import StepSampler, sample_at, shard, train_batches
from segmv3.data.transforms import train_transforms


def data(root, workers=0) -> Data:
    return Data(dataset="folder", root=root, batch_size=4, crop_size=(32, 40), workers=workers)


def digests(config: Data, start=0, stop=5, **options) -> list[str]:
    dataset = open_dataset(config, "train")
    found = []
    for image, labels in train_batches(dataset, config, seed=3, start=start, stop=stop, **options):
        assert image.shape[1:] == (3, 32, 40) and labels.shape[1:] == (32, 40)
        found.append(hashlib.sha256(image.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
    return found


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (4, "fork"), (2, "spawn")])
def test_batches_do_not_depend_on_workers(folder, workers, method):
    assert digests(data(folder, workers), start_method=method) == digests(data(folder))


def test_batches_are_a_function_of_the_step(folder):
    whole = digests(data(folder))
    assert digests(data(folder), start=3) == whole[3:]
    assert len(set(whole)) == 5


def test_ranks_share_the_global_batch(folder):
    config = data(folder)
    dataset = open_dataset(config, "train")
    whole = list(train_batches(dataset, config, seed=3, start=0, stop=2))
    parts = [list(train_batches(dataset, config, seed=3, start=0, stop=2, rank=r, world_size=2)) for r in (0, 1)]
    for step, (image, _) in enumerate(whole):
        for place in range(4):
            assert image[place].equal(parts[place % 2][step][0][place // 2])


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
