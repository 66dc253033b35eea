import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from segmv3.errors import ModelError
from segmv3.runtime.parity import LIMITS, Agreement, DisagreementError, SizeAgreement, compare, refuse


class Fake:
    """A backend whose logits come from the pixels, spoilt by a function."""

    name, precision, size, device, threads = "torch", "fp32", None, "cpu", 1

    def __init__(self, output="low-logits", spoil=lambda logits: logits, numpy=False):
        self.output, self.spoil, self.numpy = output, spoil, numpy

    def run(self, images):
        size = images.shape[1:3]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        logits = self.spoil(F.interpolate(pixels, (-(-size[0] // 8), -(-size[1] // 8)), mode="bilinear"))
        if self.output != "low-logits":
            logits = F.interpolate(logits, size, mode="bilinear")
        if self.output == "labels":
            logits = logits.argmax(1).to(torch.uint8)
        return logits.numpy() if self.numpy else logits


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bare(images):
    """Images without a truth."""
    return [(image, None) for image in images]


@pytest.mark.parametrize("output", ["low-logits", "logits", "labels"])
@pytest.mark.parametrize("numpy", [False, True])
def test_a_net_agrees_with_itself(output, numpy):
    images = [picture((40, 56)), picture((33, 17), 1), picture((40, 56), 2)]
    agreement = compare(Fake(), Fake(output, numpy=numpy), bare(images))
    assert [(found.size, found.images) for found in agreement.sizes] == [((40, 56), 2), ((33, 17), 1)]
    for found in agreement.sizes:
        assert found.label_agreement == 100
        assert (found.max_logit_difference, found.relative_rms) == ((None, None) if output == "labels" else (0, 0))
    assert agreement.miou_loss is None
    for precision in LIMITS:
        refuse(agreement, precision, "it")


@given(share=st.floats(-0.5, 0.5, allow_nan=False), seed=st.integers(0, 99))
def test_the_relative_difference_is_what_was_added(share, seed):
    """Logits that are all larger by a share: that is their relative RMS, at every output kind and size."""
    image = picture((24, 41), seed)
    for output in ("low-logits", "logits"):
        found = compare(Fake(), Fake(output, lambda logits: logits * (1 + share)), bare([image])).sizes[0]
        assert found.relative_rms == pytest.approx(abs(share), abs=1e-6)
        assert found.label_agreement == 100


@pytest.mark.parametrize(("value", "precision"), [(math.nan, "fp32"), (math.inf, "fp32"), (math.nan, "bf16")])
def test_what_is_no_number_never_agrees(value, precision):
    def spoil(logits):
        logits = logits.clone()
        logits[0, 2, -1, -1] = value
        return logits

    agreement = compare(Fake(), Fake(spoil=spoil), bare([picture((80, 80)), picture((80, 80), 1)]))
    with pytest.raises(DisagreementError, match=r"at 80x80: the logits are off"):
        refuse(agreement, precision, "it")


def test_scores_are_over_all_images_with_a_truth():
    images = [picture((32, 32), seed) for seed in range(3)]
    truth = np.asarray(compare_labels(images[0]))
    void = np.full((32, 32), 255, np.uint8)
    agreement = compare(
        Fake(), Fake(spoil=lambda logits: logits.roll(1, 1)), zip(images, [truth, None, void], strict=True)
    )
    assert agreement.scored_images == 2 and agreement.miou_reference == 100 and agreement.miou_candidate < 50
    assert agreement.miou_loss == 100 - agreement.miou_candidate
    assert agreement.to_dict()["sizes"][0]["size"] == [32, 32]
    assert compare(Fake(), Fake(), [(images[0], void)]).miou_reference is None


def compare_labels(image):
    return F.interpolate(Fake().run(image[None]), image.shape[:2], mode="bilinear").argmax(1)[0].to(torch.uint8)


def test_each_limit_refuses_by_its_own_number():
    def agreement(rms=0.0, labels=100.0, miou=None):
        scores = {"miou_reference": 70.0, "miou_candidate": miou} if miou else {}
        return Agreement((SizeAgreement((4, 6), 1, 1.5, rms, labels),), 1, **scores)

    refuse(agreement(1e-4, 99.9, 69.96), "fp32", "a.onnx")
    for bad, precision, says in (
        (
            agreement(rms=2e-4),
            "fp32",
            r"model: a\.onnx disagrees with PyTorch at 4x6: .*0\.0002 .*limit 0\.0001.* 1\.5",
        ),
        (agreement(labels=99.8), "fp32", r"99\.800 % of the labels"),
        (agreement(rms=0.04), "bf16", r"limit 0\.03"),
        (agreement(labels=97.0), "bf16", r"limit 98\.0 %"),
        (agreement(rms=9.0, labels=89.0), "int8", r"89\.000 %"),
        (agreement(rms=9.0, labels=95.0, miou=67.0), "int8", r"mIoU 67\.00 instead of 70\.00 \(limit 2\.0"),
    ):
        with pytest.raises(ModelError, match=says) as stop:
            refuse(bad, precision, "a.onnx")
        assert stop.value.exit_code == 2 and "\n" not in str(stop.value)


def test_other_shapes_and_no_images_are_refused():
    with pytest.raises(DisagreementError, match="logits of shape"):
        compare(Fake(), Fake(spoil=lambda logits: logits[:, :2]), bare([picture((32, 32))]))
    with pytest.raises(ModelError, match="no image"):
        compare(Fake(), Fake(), [])
