import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segmv3.metrics import BoundaryCounts, ConfusionMatrix


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


@pytest.mark.parametrize("wrong", [3, 254, 255])
def test_an_id_outside_the_classes_is_refused_wherever_it_is(wrong):
    confusion, truth = ConfusionMatrix(3), np.zeros((8, 9), np.uint8)
    guess = truth.copy()
    guess[7, 8] = wrong
    with pytest.raises(ValueError, match=rf"prediction has ids \[{wrong}\]; expected 0-2"):
        confusion.update(guess, truth)
    truth[7, 8] = 255  # nobody knows what is there, so nothing is wrong
    confusion.update(guess, truth)
    assert confusion.matrix[0, 0] == 71 and confusion.matrix.sum() == 71


def test_views_and_other_integers_count_the_same():
    guess, truth = np.random.default_rng(0).integers(0, 5, (2, 30, 40))
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (truth[:, ::2].ravel(), guess[:, ::2].ravel()), 1)
    for kind in (np.uint8, np.int16, np.int64):
        confusion = ConfusionMatrix(5)
        confusion.update(guess.astype(kind)[:, ::2], truth.astype(kind)[:, ::2])
        assert np.array_equal(confusion.matrix, expected)
    with pytest.raises(ValueError, match=r"prediction has ids \[256\]"):  # never wrapped around to 0
        confusion.update(guess + 256 * (guess == 0), truth)


def test_sparse_counts_give_the_matrix_back():
    confusion, again = ConfusionMatrix(4), ConfusionMatrix(4)
    confusion.update([0, 3, 3, 1], [0, 2, 2, 255])
    assert confusion.sparse() == ((0, 0, 1), (2, 3, 2))
    again.add(confusion.sparse())
    assert np.array_equal(again.matrix, confusion.matrix)


def test_groups_and_frequency_weights_of_a_worked_example():
    confusion = ConfusionMatrix(3)
    confusion.matrix[:] = [[6, 2, 0], [1, 0, 1], [0, 0, 0]]
    assert confusion.grouped([0, 0, 1]).matrix.tolist() == [[9, 1], [0, 0]]
    assert confusion.frequency_weighted_iou == pytest.approx(100 * (8 * 6 / 9 + 2 * 0) / 10)


def blobs(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 4, (5, 6)).astype(np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)


def test_boundary_iou_equals_the_authors_definition():
    """Mask minus its erosion by a 3x3 square, class by class, as in the code of Cheng et al."""
    truth, guess = blobs(0), np.roll(blobs(0), 1, 1)
    guess[10:20, 10:20], truth[30:34] = 3, 255
    counts = BoundaryCounts(5)
    counts.update(guess, truth)

    def band(mask):
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        steps = max(1, round(0.02 * math.hypot(*mask.shape)))
        return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1].astype(bool)

    for label in range(4):
        a, b = band(truth == label), band((guess == label) & (truth != 255))
        assert counts.iou[label] == pytest.approx(100 * (a & b).sum() / (a | b).sum(), abs=1e-12)
    assert math.isnan(counts.iou[4]) and math.isnan(counts.f_score[4])


def test_boundary_f_score_equals_a_plain_search():
    truth, guess = blobs(1), np.roll(blobs(1), 3, 0)
    truth[:6, :20] = 255
    counts = BoundaryCounts(4)
    counts.update(guess, truth)
    tolerance = 0.0075 * math.hypot(*truth.shape)
    guess = np.where(truth == 255, 255, guess)

    def contour(labels, label):
        points = []
        for y, x in np.argwhere(labels == label):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            near = [labels[a, b] for a, b in around if 0 <= a < labels.shape[0] and 0 <= b < labels.shape[1]]
            if any(other not in (label, 255) for other in near):
                points.append((y, x))
        return np.array(points).reshape(-1, 2)

    for label in range(4):
        a, b = contour(truth, label), contour(guess, label)
        near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) <= tolerance
        recall, precision = near.any(1).mean(), near.any(0).mean()
        expected = 200 * precision * recall / (precision + recall) if precision + recall else 0
        assert counts.f_score[label] == pytest.approx(expected, abs=1e-9)


def test_boundaries_of_a_perfect_prediction_and_of_parts():
    whole, parts = BoundaryCounts(4), BoundaryCounts(4)
    for seed in (2, 3):
        part = BoundaryCounts(4)
        for counts in (whole, part):
            counts.update(blobs(seed), blobs(seed))
        parts.merge(part)
    assert np.nanmin(whole.iou) == np.nanmin(whole.f_score) == 100
    assert np.array_equal(whole.counts, parts.counts)
