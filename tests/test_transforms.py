from pathlib import Path

import numpy as np
import pytest
from conftest import paint

from segmv3.config import Data
from segmv3.data.transforms import eval_transforms, train_transforms, transform


def crops(count: int, image, labels, **settings):
    data = Data(dataset="folder", root=Path(), **settings)
    transforms = train_transforms(data)
    return [transform(transforms, image, labels, np.random.default_rng([0, i])) for i in range(count)]


def position_picture(height: int, width: int):
    """A picture that tells where each pixel came from: red its row, green its column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8), (rows // 20).astype(np.uint8)


def test_image_and_labels_stay_together():
    image, labels = position_picture(200, 250)
    settings = {"crop_size": (60, 80), "jitter": 0.0, "cat_max_ratio": 1.0, "scale_range": (0.5, 2.0)}
    for pixels, ids in crops(30, image, labels, **settings):
        assert pixels.shape == (60, 80, 3) and ids.shape == (60, 80)
        rows = pixels[..., 0].astype(float)
        assert (np.abs(rows / 20 - ids - 0.5) <= 0.5 + 2 / 20).all()  # within the resizing of two rows


def test_scale_is_uniform_over_the_range():
    image, labels = position_picture(250, 250)
    scales = []
    for pixels, _ in crops(400, image, labels, crop_size=(50, 50), jitter=0.0, flip=0.0, scale_range=(0.5, 2.0)):
        span = float(pixels[..., 1].max()) - float(pixels[..., 1].min()) + 1
        scales.append(50 / span)
    assert 0.49 < min(scales) < 0.56 and 1.8 < max(scales) < 2.1
    assert abs(np.mean(scales) - 1.25) < 0.06


def test_mirror_and_jitter_are_independent_draws():
    image, labels = position_picture(64, 96)
    settings = {"crop_size": (64, 96), "scale_range": (1.0, 1.0), "flip": 0.5, "jitter": 0.5, "cat_max_ratio": 1.0}
    seen = set()
    for pixels, _ in crops(60, image, labels, **settings):
        mirrored = pixels[32, :48, 1].mean() > pixels[32, 48:, 1].mean()
        straight = image[:, ::-1] if mirrored else image
        seen.add((bool(mirrored), bool(np.array_equal(pixels, straight))))
    assert len(seen) == 4


def test_small_images_are_padded_with_ignore():
    image, labels = paint(0, (20, 30), 3)
    for pixels, ids in crops(10, image, labels, crop_size=(64, 64), scale_range=(1.0, 1.0), jitter=0.0):
        assert (ids != 255).sum() == 20 * 30
        assert (pixels[ids == 255] == (124, 116, 104)).all()


def test_crops_of_one_class_are_drawn_again():
    image, labels = np.zeros((100, 400, 3), np.uint8), np.zeros((100, 400), np.uint8)
    labels[:, 300:] = 1
    settings = {"crop_size": (50, 50), "scale_range": (1.0, 1.0), "jitter": 0.0}
    free = crops(80, image, labels, cat_max_ratio=1.0, **settings)
    ruled = crops(80, image, labels, cat_max_ratio=0.75, **settings)

    def mixed(samples):
        return sum(0.25 <= (ids == 1).mean() <= 0.75 for _, ids in samples)

    assert mixed(free) < 20 and mixed(ruled) > 1.8 * mixed(free)


def test_the_same_generator_gives_the_same_sample():
    image, labels = paint(0, (80, 90), 4)
    first, second = (crops(5, image, labels, crop_size=(32, 32)) for _ in range(2))
    for (a, b), (c, d) in zip(first, second, strict=True):
        assert np.array_equal(a, c) and np.array_equal(b, d)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 5)])
def test_extreme_sizes_pass(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for pixels, ids in crops(5, image, labels, crop_size=(32, 48)):
        assert pixels.shape == (32, 48, 3) and ids.shape == (32, 48)


def test_evaluation_changes_nothing():
    image, labels = paint(0, (33, 41), 4)
    same_image, same_labels = transform(eval_transforms(), image, labels, np.random.default_rng(0))
    assert np.array_equal(same_image, image) and np.array_equal(same_labels, labels)
