"""--budget-ms: which input size and which frames are labelled."""

import itertools

import numpy as np
import pytest
import torch

from segmv3.prediction import budget
from segmv3.prediction.budget import Budgeted


class Net:
    """A stand-in whose time grows with its input."""

    threads = 1

    def __init__(self, clock):
        self.clock, self.sizes = clock, []

    def low_logits(self, image):
        self.sizes.append(tuple(image.shape[2:]))
        self.clock.now += image.shape[2] * image.shape[3] / 1e6  # 1 ms for 1,000 pixels
        bright = image.float().mean(1, keepdim=True)[:, :, ::4, ::4] - 128
        return torch.cat([-bright, bright], 1)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def net(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return Net(clock)


FRAME = np.where(np.arange(200)[None, :, None] < 100, 40, 200).astype(np.uint8).repeat(100, 0).repeat(3, 2)


@pytest.mark.parametrize(("milliseconds", "size"), [(25, (100, 200)), (12, (75, 150)), (6, (50, 100)), (0.1, (25, 50))])
def test_the_largest_input_within_the_budget_is_taken(net, milliseconds, size):
    said = []
    predict = Budgeted(net, milliseconds, said.append, frames=False)
    labels = predict(FRAME)
    assert labels.shape == (100, 200) and net.sizes[-1] == size
    assert np.array_equal(labels[:, :90], np.zeros((100, 90))) and labels[:, 110:].all()
    assert len(said) == 1 and said[0].startswith(f"--budget-ms {milliseconds:g}: the net sees")
    assert "of the pixels get the label that they get at the whole size" in said[0]


def test_labels_of_a_video_are_kept_where_the_smallest_input_is_too_slow(net):
    said = []
    predict = Budgeted(net, 0.5, said.append, frames=True)  # 25 x 50 pixels take 1.25 ms
    predict(FRAME)
    seen = len(net.sizes)
    for count in range(1, 7):
        predict(FRAME)
        assert len(net.sizes) - seen == count // 3
    assert "every 3. frame" in said[0]


def test_another_size_is_measured_anew(net):
    said = []
    predict = Budgeted(net, 12, said.append, frames=False)
    for frame, _ in itertools.product((FRAME, FRAME[:50, :50]), range(2)):
        predict(frame)
    assert len(said) == 2 and net.sizes[-1] == (50, 50)
