from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from segmv3.config import Data
from segmv3.data.datasets import open_dataset
from segmv3.data.loader import Photometric, train_batches
from segmv3.training.photometric import adjust, by_matrix_product


@pytest.fixture
def batches(folder):
    def make(**settings):
        plain = Data(dataset="folder", root=folder, batch_size=4, crop_size=(40, 56), jitter=1.0, workers=0)
        config = replace(plain, **settings)
        return train_batches(open_dataset(config, "train"), config, seed=1, start=0, stop=4)

    return make


def by_worker(image, matrix, table, inside):
    """What a worker would do to one image, uint8 H x W x 3."""
    image = image.copy()
    top, left, bottom, right = inside
    window = image[top:bottom, left:right]
    if table is not None:
        window[:] = np.stack([table[c][window[..., c]] for c in range(3)], 2)
    window[:] = cv2.transform(window, matrix)
    return image


@pytest.mark.parametrize("photometric", ["jitter", "randaugment"])
@pytest.mark.parametrize("scale_range", [(0.4, 0.9), (1.0, 2.0)])
@pytest.mark.parametrize("device", [adjust, by_matrix_product])
def test_the_device_does_what_a_worker_would(batches, photometric, scale_range, device):
    padded = 0
    for images, _, colors in batches(photometric=photometric, scale_range=scale_range):
        adjusted = device(images, colors)
        assert adjusted.shape == images.shape and adjusted.is_contiguous(memory_format=torch.channels_last)
        assert (colors.tables is None) == (photometric == "jitter")
        padded += colors.inside is not None
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            table = None if colors.tables is None else colors.tables[i].numpy()
            inside = (0, 0, 40, 56) if colors.inside is None else colors.inside[i].tolist()
            expected = by_worker(image, colors.matrix[i].numpy(), table, inside)
            found = adjusted[i].permute(1, 2, 0).numpy().astype(float)
            assert np.abs(found - expected).max() < 1
    assert padded == (4 if scale_range[1] < 1 else 0)


def test_padding_keeps_its_colour(batches):
    for images, labels, colors in batches(scale_range=(0.4, 0.6)):
        for adjusted in (adjust(images, colors), by_matrix_product(images, colors)):
            outside = adjusted.permute(0, 2, 3, 1)[labels == 255]
            assert len(outside) and (outside == torch.tensor([124, 116, 104])).all()


def test_nothing_drawn_changes_nothing(batches):
    [images, _, colors] = next(iter(batches()))
    none = Photometric(torch.eye(3, 4).repeat(4, 1, 1), torch.arange(256, dtype=torch.uint8).expand(4, 3, 256), None)
    assert adjust(images, none).equal(images) and by_matrix_product(images, none).equal(images.float())
    before = images.clone()
    adjust(images, colors)
    assert images.equal(before)  # what the loader handed out is left alone


def test_without_jitter_nothing_is_handed_on(batches):
    assert all(colors is None for _, _, colors in batches(jitter=0.0))
    assert all(colors is None for _, _, colors in batches(jitter=0.0, photometric="randaugment"))


def test_some_samples_keep_their_colours(batches):
    matrices = torch.cat([colors.matrix for _, _, colors in batches(jitter=0.5)])
    same = (matrices == torch.eye(3, 4)).all((1, 2))
    assert 2 < same.sum() < 14
