import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segmv3.metrics import ConfusionMatrix


def test_scores_of_a_worked_example():
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 255]]))
    assert confusion.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert confusion.matrix.dtype == np.int64
    assert confusion.iou[:2].tolist() == [50.0, 50.0] and math.isnan(confusion.iou[2])
    assert confusion.miou == 50.0
    assert confusion.accuracy[:2].tolist() == [100.0, 50.0]
    assert confusion.mean_accuracy == 75.0
    assert confusion.pixel_accuracy == pytest.approx(200 / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = ConfusionMatrix(2)
    confusion.update([0, 1], [0, 0])
    assert confusion.iou.tolist() == [50.0, 0.0] and confusion.miou == 25.0


def test_nothing_labelled_gives_nan_not_a_number():
    confusion = ConfusionMatrix(2)
    confusion.update([0, 1], [255, 255])
    assert math.isnan(confusion.miou) and math.isnan(confusion.pixel_accuracy)


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        ([0, 2], [0, 1], r"prediction has ids \[2\]"),
        ([0, 1], [0, 2], r"target has ids \[2\]"),
        ([0, 1], [0, -1], r"target has ids \[-1\]"),
        ([0, 1], [0], r"prediction is \(2,\), target is \(1,\)"),
        ([0.0, 1.0], [0, 1], "integer"),
    ],
)
def test_ids_outside_the_classes_are_never_dropped(prediction, target, says):
    confusion = ConfusionMatrix(2)
    with pytest.raises(ValueError, match=says):
        confusion.update(np.array(prediction), np.array(target))
    assert not confusion.matrix.any()


ids = arrays(np.uint8, 60, elements=st.sampled_from([0, 1, 2, 3, 255]))


@settings(deadline=None, max_examples=50)
@given(ids, ids)
def test_counts_equal_a_plain_loop_and_any_split(target, guess):
    guess = np.where(guess == 255, 0, guess)
    expected = np.zeros((4, 4), int)
    for p, t in zip(guess, target, strict=True):
        if t != 255:
            expected[t, p] += 1
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(torch.from_numpy(guess), torch.from_numpy(target))
    for half in (slice(0, 23), slice(23, None)):
        part = ConfusionMatrix(4)
        part.update(guess[half], target[half])
        parts.merge(part)
    assert np.array_equal(whole.matrix, expected) and np.array_equal(parts.matrix, expected)
    assert whole.matrix.sum() == (target != 255).sum()


def test_agrees_with_the_cityscapes_script():
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import trainId2label

    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 19, (2, 64, 128))
    truth[:5] = 255
    confusion = ConfusionMatrix(19)
    confusion.update(guess, truth)
    to_id = np.zeros(256, np.int64)
    for train_id in range(19):
        to_id[train_id] = trainId2label[train_id].id
    matrix = np.zeros((34, 34), np.longlong)
    np.add.at(matrix, (to_id[truth].ravel(), to_id[guess].ravel()), 1)
    official.args.evalLabels = list(range(34))
    for train_id in range(19):
        theirs = official.getIouScoreForLabel(trainId2label[train_id].id, matrix, official.args)
        assert abs(100 * theirs - confusion.iou[train_id]) < 1e-9
