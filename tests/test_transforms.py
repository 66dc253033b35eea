import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import paint
from hypothesis import given
from hypothesis import strategies as st

from segmv3.config import Data
from segmv3.data.loader import collate
from segmv3.data.transforms import RandomScaledCrop, color_matrix, train_transforms, transform
from segmv3.training.photometric import adjust


def crops(count: int, image, labels, place=None, **settings):
    """Training samples as the net gets them."""
    data = Data(dataset="folder", root=Path(), **settings)
    transforms = train_transforms(data)
    found = []
    for i in range(count):
        pixels, ids, colors = transform(transforms, image, labels, place, np.random.default_rng([0, i]))
        batch, _, photometric = collate([(torch.from_numpy(pixels), torch.from_numpy(ids), colors)])
        if photometric:
            batch = adjust(batch, photometric)
        found.append((batch[0].permute(1, 2, 0).numpy(), ids))
    return found


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


def test_only_labels_are_looked_at_until_the_crop_is_chosen():
    class Watched(np.ndarray):
        reads = 0

        def __getitem__(self, key):
            Watched.reads += 1
            return super().__getitem__(key)

    labels = np.zeros((100, 400), np.uint8)  # one class: ten draws
    image = np.zeros((100, 400, 3), np.uint8).view(Watched)
    crop = RandomScaledCrop((50, 50), (0.5, 2.0), cat_max_ratio=0.75)
    parameters = crop.get_params_dependent_on_data({"shape": image.shape}, {"image": image, "mask": labels})
    assert Watched.reads == 0
    crop.apply(image, parameters["window"], parameters["size"])
    assert Watched.reads == 1


def test_a_crop_of_the_whole_image_is_a_copy():
    image, labels = paint(0, (32, 48), 4)
    image.flags.writeable = labels.flags.writeable = False  # as a packed data set gives them
    before = image.copy(), labels.copy()
    for pixels, ids in crops(4, image, labels, crop_size=(32, 48), scale_range=(1.0, 1.0), jitter=0.0, flip=0.0):
        pixels[:], ids[:] = 7, 7
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])


# --- jitter ---

_STREET = np.array([90.0, 100.0, 80.0])


def colors(count: int = 500):
    return np.random.default_rng(0).uniform(60, 190, (count, 3))


def jittered(pixels, **factors):
    unchanged = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    matrix = color_matrix(pixels.mean(0), **unchanged | factors)
    return pixels @ matrix[:, :3].T + matrix[:, 3]


def luma(pixels):
    return pixels @ [0.299, 0.587, 0.114]


def test_nothing_drawn_changes_nothing():
    assert np.allclose(color_matrix(_STREET, 1, 1, 1, 0), np.eye(3, 4), atol=1e-6)
    assert np.allclose(color_matrix(_STREET, 1, 1, 1, 1), np.eye(3, 4), atol=1e-5)  # a full turn of hue


def test_each_factor_does_what_its_name_says():
    pixels = colors()
    assert np.allclose(jittered(pixels, brightness=1.1), 1.1 * pixels, atol=1e-3)
    middle = luma(pixels).mean()
    assert np.allclose(jittered(pixels, contrast=0.6), 0.6 * pixels + 0.4 * middle, atol=1e-3)
    grey = np.repeat(luma(pixels)[:, None], 3, 1)
    assert np.allclose(jittered(pixels, saturation=0), grey, atol=1e-3)
    assert np.allclose(jittered(pixels, saturation=1.5), 1.5 * pixels - 0.5 * grey, atol=1e-3)
    turned = jittered(pixels, hue=0.04)
    assert np.allclose(luma(turned), luma(pixels), atol=1e-2)
    assert np.allclose(jittered(grey, hue=0.04), grey, atol=1e-2)


@pytest.mark.parametrize("hue", [-0.05, -0.02, 0.02, 0.05])
def test_hue_turns_as_far_as_in_hsv(hue):
    pixels = colors()
    hsv = cv2.cvtColor(pixels[None].astype(np.float32), cv2.COLOR_RGB2HSV)[0]
    turned = cv2.cvtColor(jittered(pixels, hue=hue)[None].astype(np.float32), cv2.COLOR_RGB2HSV)[0]
    colourful = hsv[:, 1] > 0.25
    moved = (turned[:, 0] - hsv[:, 0] + 180) % 360 - 180
    assert abs(np.mean(moved[colourful]) - 360 * hue) < abs(0.25 * 360 * hue)


@given(
    brightness=st.floats(0.8, 1.2),
    contrast=st.floats(0.5, 1.5),
    saturation=st.floats(0.5, 1.5),
    hue=st.floats(-0.05, 0.05),
    order=st.permutations(range(4)),
)
def test_one_matrix_is_the_four_steps_after_each_other(brightness, contrast, saturation, hue, order):
    pixels = colors(50)
    together = color_matrix(pixels.mean(0), brightness, contrast, saturation, hue, order)
    expected = pixels
    for step in order:
        name = ("brightness", "contrast", "saturation", "hue")[step]
        expected = jittered(expected, **{name: (brightness, contrast, saturation, hue)[step]})
    assert np.allclose(pixels @ together[:, :3].T + together[:, 3], expected, atol=1e-2)


def test_jitter_is_near_that_of_hsv_on_dull_colours():
    """The distribution is albumentations' own but for hue and the clipping between the steps."""
    import albumentations as A

    from segmv3.data.transforms import ColorJitter

    rng = np.random.default_rng(0)
    grey = rng.integers(40, 200, (64, 64, 1))
    image = np.clip(grey + rng.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)
    settings = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05, "p": 1.0}
    ours, theirs = ColorJitter(**settings), A.ColorJitter(**settings)
    apart = []
    for seed in range(30):
        pair = []
        for one in (ours, theirs):
            one.set_random_state(np.random.default_rng(seed), random.Random(seed))
            pair.append(one(image=image)["image"].astype(int))
        assert np.array_equal(pair[0], image)  # ours only says what is to be done
        pair[0] = cv2.transform(image, ours.params["matrix"]).astype(int)
        apart.append(np.abs(pair[0] - pair[1]).mean())
    assert np.mean(apart) < 3 and max(apart) < 10


# --- a crop around a pixel ---


def test_a_crop_shows_the_pixel_it_is_told_to():
    image, labels = position_picture(200, 250)
    settings = {"crop_size": (40, 50), "scale_range": (0.8, 1.6), "jitter": 0.0, "cat_max_ratio": 1.0}
    where = []
    for pixels, _ in crops(60, image, labels, place=(120, 77), **settings):
        apart = np.abs(pixels[..., :2].astype(int) - (120, 77)).max(2)
        assert apart.min() <= 1
        where.append(np.unravel_index(apart.argmin(), apart.shape))
    assert (np.std(where, axis=0) > (8, 10)).all()  # anywhere in the crop
    for corner in ((0, 0), (199, 249), (0, 249)):
        for pixels, _ in crops(10, image, labels, place=corner, **settings):
            assert pixels.shape == (40, 50, 3) and np.abs(pixels[..., :2].astype(int) - corner).max(2).min() <= 1


# --- RandAugment ---


def test_randaugment_draws_two_operations_of_nine():
    from segmv3.data.transforms import RandAugment

    image = paint(0, (40, 60), 4)[0]
    augment, straight = RandAugment(p=1.0), np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    tables = matrices = both = 0
    for seed in range(200):
        augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert augment(image=image)["image"] is not None
        table, matrix = augment.params["table"], augment.params["matrix"]
        assert table.shape == (3, 256) and table.dtype == np.uint8
        assert matrix.shape == (3, 4) and matrix.dtype == np.float32 and np.isfinite(matrix).all()
        changed = not np.array_equal(table, straight), not np.allclose(matrix, np.eye(3, 4), atol=1e-3)
        tables, matrices, both = tables + changed[0], matrices + changed[1], both + all(changed)
    assert 150 < tables < 185 and 125 < matrices < 165 and 85 < both < 135  # 5/6, 13/18, 5/9


def test_stretching_fills_the_range():
    from segmv3.data.transforms import _stretched

    levels, shares = np.tile(np.arange(256.0), (3, 1)), np.zeros((3, 256))
    shares[:, 100:151] = 1 / 51
    stretched = _stretched(levels, shares)
    assert np.allclose(stretched[:, 100], 0) and np.allclose(stretched[:, 150], 255)
    shares[:] = 0
    shares[:, 7] = 1
    assert np.array_equal(_stretched(levels, shares), levels)  # one grey level has nowhere to go
