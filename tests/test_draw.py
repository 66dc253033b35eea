"""Labels as pictures: exact colours, sizes and edge cases."""

import numpy as np
import pytest

from segmv3.labels import IGNORE, Classes, cityscapes_classes
from segmv3.media.draw import WRONG, colorize, draw_errors, legend, occurring, overlay, with_legend

CLASSES = Classes(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
LABELS = np.array([[0, 1], [2, IGNORE]], np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def has_color(picture, color):
    return bool((picture == np.array(color, np.uint8)).all(axis=-1).any())


def test_colorize_paints_class_colours_and_ignore_black():
    assert colorize(LABELS, CLASSES).tolist() == [
        [[128, 64, 128], [70, 130, 180]],
        [[0, 0, 142], [0, 0, 0]],
    ]


def test_colorize_agrees_with_the_palette_for_every_id():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    classes = cityscapes_classes()
    assert np.array_equal(colorize(ids, classes), classes.palette[ids])


def test_overlay_blends_and_leaves_ignored_and_unknown_pixels():
    image = np.full((1, 3, 3), 200, np.uint8)
    picture = overlay(image, np.array([[0, IGNORE, 77]], np.uint8), CLASSES, alpha=0.5)
    assert picture.tolist() == [[[164, 132, 164], [200, 200, 200], [200, 200, 200]]]
    assert (image == 200).all()


@pytest.mark.parametrize("highest", [2, 3, 255])
def test_overlay_is_the_blend_to_the_last_pixel_with_and_without_ignored_ones(highest):
    image = noise(37, 53)
    labels = np.random.default_rng(1).integers(0, highest + 1, (37, 53), dtype=np.uint8)
    before = image.copy(), labels.copy()
    blend = 0.45 * image.astype(float) + 0.55 * CLASSES.palette[labels]
    picture = overlay(image, labels, CLASSES)
    known = labels < len(CLASSES)
    assert np.abs(picture.astype(float) - blend)[known].max() <= 0.51
    assert np.array_equal(picture[~known], image[~known])
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 5)])
def test_overlay_with_alpha_0_is_the_image_and_with_1_the_colours(size):
    image = noise(*size)
    labels = np.random.default_rng(1).integers(0, 3, size, dtype=np.uint8)
    assert np.array_equal(overlay(image, labels, CLASSES, alpha=0), image)
    assert np.array_equal(overlay(image, labels, CLASSES, alpha=1), colorize(labels, CLASSES))


def test_overlay_takes_views():
    image, labels = noise(8, 6), np.zeros((8, 6), np.uint8)
    turned = overlay(image[::-1, :, ::-1], labels[::-1], CLASSES)
    assert np.array_equal(turned, overlay(image[::-1, :, ::-1].copy(), labels, CLASSES))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_overlay_refuses_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha"):
        overlay(noise(2, 2), LABELS, CLASSES, alpha=alpha)


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match="image 2x3, labels 2x2"):
        overlay(noise(2, 3), LABELS, CLASSES)
    with pytest.raises(ValueError, match="prediction 1x2"):
        draw_errors(noise(2, 2), LABELS, LABELS[:1])


def test_errors_are_red_ignored_dark_and_the_rest_dim_grey():
    image = np.full((16, 16, 3), (250, 10, 90), np.uint8)
    truth = np.zeros((16, 16), np.uint8)
    truth[8:] = IGNORE
    prediction = np.zeros((16, 16), np.uint8)
    prediction[0] = 1
    prediction[15] = 1  # predictions where nothing is known are not errors
    picture = draw_errors(image, truth, prediction)
    assert (picture[0] == WRONG).all()
    right = picture[1:8]
    assert len(np.unique(right)) == 1 and 40 <= right[0, 0, 0] <= 155
    hatched = picture[8:]
    assert set(np.unique(hatched)) == {0, 52} and (hatched[..., :1] == hatched).all()


def test_prediction_without_error_has_no_red():
    truth = np.random.default_rng(0).integers(0, 3, (9, 9), dtype=np.uint8)
    assert not has_color(draw_errors(noise(9, 9), truth, truth), WRONG)


@pytest.mark.parametrize("width", [1, 20, 90, 256, 1024, 2048])
def test_legend_has_the_width_and_shows_every_class(width):
    classes = cityscapes_classes()
    strip = legend(classes, width)
    assert strip.shape[1:] == (width, 3) and strip.dtype == np.uint8 and len(strip) > 0
    if width >= 20:
        assert all(has_color(strip, color) for color in classes.colors)


def test_legend_shows_only_what_is_present_and_wraps():
    classes = cityscapes_classes()
    few = legend(classes, 400, {0, 13})
    assert has_color(few, classes.colors[0]) and has_color(few, classes.colors[13])
    assert not has_color(few, classes.colors[10])
    assert len(legend(classes, 400)) > 3 * len(few)
    assert legend(classes, 400, set()).shape == (0, 400, 3)
    with pytest.raises(ValueError, match="wide"):
        legend(classes, 0)


def test_legend_survives_many_and_long_names():
    names = tuple(f"a class with a rather long name, number {i}" for i in range(60))
    colors = tuple((i, 255 - i, 7) for i in range(60))
    strip = legend(Classes(names, colors), 120)
    assert strip.shape[1] == 120 and all(has_color(strip, color) for color in colors)


def test_with_legend_appends_the_classes_that_occur_but_no_specks():
    labels = np.zeros((100, 100), np.uint8)
    labels[:50] = 1
    labels[0, :4] = 2  # 0.04 % of the pixels
    picture = colorize(labels, CLASSES)
    whole = with_legend(picture, CLASSES, labels)
    assert np.array_equal(whole[:100], picture) and whole.shape[1:] == (100, 3)
    assert has_color(whole[100:], CLASSES.colors[0]) and not has_color(whole[100:], CLASSES.colors[2])
    labels[0, :5] = 2
    assert occurring(labels, CLASSES) == {0, 1, 2}


def test_with_legend_of_ignored_pixels_is_the_picture():
    picture = noise(5, 5)
    assert np.array_equal(with_legend(picture, CLASSES, np.full((5, 5), IGNORE, np.uint8)), picture)
