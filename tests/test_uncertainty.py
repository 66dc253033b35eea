"""Intervals, comparison, ranking and calibration, checked against slow loops, known answers and false files."""

import json
import math

import numpy as np
import pytest

from segmv3.cli import main
from segmv3.errors import DataError
from segmv3.labels import IGNORE
from segmv3.metrics import ConfusionMatrix
from segmv3.report.plots import DARK, LIGHT
from segmv3.report.reliability import reliability
from segmv3.results import uncertainty
from segmv3.results.calibration import Calibration
from segmv3.results.counts import IouCounts
from segmv3.results.ranking import label_suspects, ranking, worst_by_class
from segmv3.results.result import Result
from segmv3.results.uncertainty import compare

NAMES = ("road", "car", "sky")


def iou_counts(confusions):
    """What IoU needs of confusion matrices images x classes x classes."""
    return IouCounts(np.diagonal(confusions, axis1=1, axis2=2).copy(), confusions.sum(2), confusions.sum(1))


def bootstrap_miou(confusions, **how):
    return uncertainty.bootstrap_miou(iou_counts(confusions), **how)


def bootstrap_iou(confusions, **how):
    return uncertainty.bootstrap_iou(iou_counts(confusions), **how)


def confusions(images=40, classes=3, seed=0, right=8.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(20 * (np.ones((classes, classes)) + right * np.eye(classes)), (images, classes, classes))


def content(counts, names=NAMES, **facts):
    """A result file, as the contract of `segmv3 evaluate --output` describes it."""
    counts = np.asarray(counts, np.int64)
    images = [
        {"name": f"ulm_{i:06d}_000019", "counts": [[int(t), int(p), int(m[t, p])] for t, p in np.argwhere(m)]}
        for i, m in enumerate(counts)
    ]
    return {
        "dataset": "Cityscapes",
        "split": "val",
        "images": len(counts),
        "images_in_split": len(counts),
        "size": [1024, 2048],
        "scales": [1.0],
        "flip": False,
        "weights": "a.safetensors",
        "weights_sha256": "a" * 64,
        "classes": [{"name": name} for name in names],
        "confusion_matrix": counts.sum(0).tolist(),
        "per_image": images,
        **facts,
    }


def result(counts, **facts):
    return Result.from_json(json.dumps(content(counts, **facts)), "a.json")


def score(matrix) -> ConfusionMatrix:
    confusion = ConfusionMatrix(len(matrix))
    confusion.matrix += matrix
    return confusion


def test_the_bootstrap_is_the_slow_loop_over_resamples():
    counts = confusions(images=9)
    rng = np.random.default_rng(5)
    drawn = [score(np.tensordot(rng.multinomial(9, np.full(9, 1 / 9)), counts, 1)) for _ in range(250)]
    low, high = bootstrap_miou(counts, resamples=250, seed=5)
    assert (low, high) == pytest.approx(tuple(np.percentile([s.miou for s in drawn], [2.5, 97.5])), abs=1e-10)
    each = bootstrap_iou(counts, resamples=250, seed=5)
    assert np.array(each) == pytest.approx(np.percentile([s.iou for s in drawn], [2.5, 97.5], axis=0).T, abs=1e-10)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Each image's accuracy is drawn anew, so images are the unit; 200 data sets of 60 images, one truth."""
    rng = np.random.default_rng(3)

    def draw(images):
        share = rng.beta(6, 2, (images, 2))
        hits = (1000 * share).astype(np.int64)
        return np.stack([np.stack([hits[:, 0], 1000 - hits[:, 0]], 1), np.stack([1000 - hits[:, 1], hits[:, 1]], 1)], 1)

    truth = score(draw(100_000).sum(0)).miou
    intervals = [bootstrap_miou(draw(60), resamples=300, seed=i) for i in range(200)]
    held = sum(low <= truth <= high for low, high in intervals)
    assert 180 <= held <= 198


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    counts = np.zeros((10, 3, 3), np.int64)
    counts[:, 0, 0] = 100  # always right
    counts[0, 1, 1], counts[0, 1, 0] = 1, 3  # 25 % in one image only; the third class nowhere
    (road, car, sky), (low, high) = bootstrap_iou(counts), bootstrap_miou(counts)
    assert car == (25.0, 25.0) and all(map(math.isnan, sky)) and road[1] == 100
    assert high == 100 and low < 63  # without the image the mean is that of road alone
    assert all(map(math.isnan, bootstrap_miou(np.zeros((4, 3, 3), np.int64))))


def test_a_comparison_is_paired():
    """b is better by a little in every image, far less than images differ: only pairing shows it."""
    rng = np.random.default_rng(0)
    hard = rng.integers(100, 900, 30)
    a = np.stack([np.array([[1000 - h, h], [0, 1000]]) for h in hard])
    b = np.stack([np.array([[1000 - h + 20, h - 20], [0, 1000]]) for h in hard])
    comparison = compare(result(a, names=("road", "car")), result(b, names=("road", "car"), weights_sha256="b" * 64))
    assert comparison.miou.beyond_chance and comparison.miou.low > 0
    assert comparison.miou.difference == pytest.approx(score(b.sum(0)).miou - score(a.sum(0)).miou)
    alone = bootstrap_miou(a)
    assert alone[1] - alone[0] > 5 * (comparison.miou.high - comparison.miou.low)
    assert comparison.settings == {"weights_sha256": ("a" * 64, "b" * 64)}
    same = compare(result(a, names=("road", "car")), result(a, names=("road", "car")))
    assert (same.miou.low, same.miou.high, same.miou.beyond_chance, same.settings) == (0, 0, False, {})


def test_images_are_matched_by_name_and_few_are_never_enough():
    counts = confusions(images=5)
    one, other = content(counts), content(counts)
    other["per_image"].reverse()
    comparison = compare(*(Result.from_json(json.dumps(each)) for each in (one, other)))
    assert comparison.miou.low == comparison.miou.high == 0
    better = counts.copy()
    better[:, 1, 1] += better[:, 1, 0]
    better[:, 1, 0] = 0
    row = compare(result(counts), result(better)).classes[1]
    assert row.low > 0 and row.images == 5 and not row.beyond_chance


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "train"}, "split val and train"),
        ({"dataset": "CamVid"}, "data set Cityscapes and CamVid"),
        ({"size": [512, 1024]}, "size 1024x2048 and 512x1024"),
        ({"classes": [{"name": n} for n in ("road", "bus", "sky")]}, "class 'car' and 'bus' have the same id"),
    ],
)
def test_results_of_different_things_are_refused(change, says, tmp_path, capsys):
    for name, more in (("a", {}), ("b", change)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content(confusions(), **more)))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("data: ") and says in line


def test_results_on_other_images_or_labels_are_refused():
    counts = confusions()
    with pytest.raises(DataError, match=r"40 and 39 images, 1 of them in one file only \(first: ulm_000039_000019\)"):
        compare(result(counts), result(counts[:-1]))
    moved = counts.copy()
    moved[3] += 1
    with pytest.raises(DataError, match="the ground truth of ulm_000003_000019 differs"):
        compare(result(counts), result(moved))
    with pytest.raises(DataError, match="3 and 2 classes"):
        compare(result(counts), result(counts[:, :2, :2], names=NAMES[:2]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is no result file"),
        (json.dumps({"miou": 3}), "is no result file"),
        (lambda c: c.pop("per_image"), "has no per-image counts"),
        (lambda c: c["per_image"].pop(), "contradicts itself"),
        (lambda c: c["per_image"][0]["counts"].append([7, 0, 1]), "contradicts itself"),
        (lambda c: c["per_image"][0]["counts"][0].append(1), "is damaged"),
        (lambda c: c["per_image"].append(c["per_image"][0]), "has image ulm_000000_000019 twice"),
        (lambda c: c.update(per_image=[], confusion_matrix=[[0] * 3] * 3), "has no labelled pixel"),
    ],
)
def test_false_result_files_are_refused(text, says, tmp_path):
    path = tmp_path / "a.json"
    if callable(text):
        changed = content(confusions())
        text(changed)
        text = json.dumps(changed)
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=f"a.json.*{says}"):
        Result.read(path)


def test_the_command_prints_and_writes(tmp_path, capsys):
    better = {"weights": "b.safetensors", "weights_sha256": "b" * 64, "scales": [0.5, 1.0], "flip": True}
    for name, seed, more in (("a", 0, {}), ("b", 0, better)):
        counts = confusions(seed=seed)
        if more:
            counts[:, 0, 0] += counts[:, 0, 1]
            counts[:, 0, 1] = 0
        (tmp_path / f"{name}.json").write_text(json.dumps(content(counts, **more)))
    a, b, diff = (str(tmp_path / f"{name}.json") for name in ("a", "b", "diff"))
    assert main(["compare", a, b, "--output", diff]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "on 40 images of Cityscapes val, 1024x2048, single scale, weights a.safetensors, SHA-256 " + "a" * 64 in printed
    )
    assert "scales 0.5, 1 + flip" in printed
    assert f"weights_sha256 {'a' * 12} and {'b' * 12}; scales 1 and 0.5, 1; flip no and yes" in printed
    written = json.loads((tmp_path / "diff.json").read_text())
    assert written["miou"]["beyond_chance"] and written["classes"][0]["low"] > 0
    assert written["classes"][0]["name"] == "road" and written["weights_sha256"] == ["a" * 64, "b" * 64]
    assert main(["compare", a, b, "--output", diff]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert main(["compare", a, b, "--resamples", "1"]) == 2


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0 and "usage: segmv3 compare" in capsys.readouterr().out


def test_the_worst_image_comes_first():
    counts = np.zeros((4, 3, 3), np.int64)
    counts[:, 0, 0] = 100
    counts[1, 1] = 30, 10, 0  # road 100 / 130, car 10 / 40
    counts[2, 0, 2] = 1  # one stray pixel of sky is no class of this image
    counts[3] = 0  # nothing labelled
    images = ranking(result(counts))
    assert [image.name[4:10] for image in images] == ["000001", "000002", "000000"]
    assert images[0].miou == pytest.approx((100 * 100 / 130 + 25) / 2)
    assert math.isnan(images[1].iou[2]) and images[1].miou == pytest.approx(100 * 100 / 101)
    worst = worst_by_class(result(counts), count=2)
    assert worst["car"] == [("ulm_000001_000019", 25.0)] and worst["sky"] == []
    assert [name[4:10] for name, _ in worst["road"]] == ["000001", "000002"]


def test_a_confusion_in_one_image_only_is_suspect():
    counts = np.zeros((6, 3, 3), np.int64)
    counts[:, 0, 0], counts[:, 1, 1] = 1000, 200
    counts[4, 1] = 190, 10, 0  # this car is road here, and nowhere else
    counts[5, 2, 0] = 500  # sky is in no other image: no evidence
    (suspect,) = label_suspects(result(counts))
    assert (suspect.name, suspect.truth, suspect.predicted) == ("ulm_000004_000019", "car", "road")
    assert (suspect.pixels, suspect.share, suspect.elsewhere) == (190, 95.0, 0.0)
    counts[:4, 1] = 150, 50, 0  # now the net takes cars for road everywhere
    assert label_suspects(result(counts)) == []


def judge(calibration, probabilities, truth):
    """Count an image of probabilities classes x H x W and train ids H x W."""
    labelled = truth != IGNORE
    calibration.add(probabilities.max(0)[labelled], (probabilities.argmax(0) == truth)[labelled])


def test_calibration_counts_like_the_definition():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 30, 40))
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    truth = rng.integers(0, 4, (30, 40))
    truth[:5] = 255
    calibration = Calibration(bins=10)
    judge(calibration, probabilities[:, :17], truth[:17])
    rest = Calibration(bins=10)
    judge(rest, probabilities[:, 17:].astype(np.float64), truth[17:])
    calibration.merge(rest)
    sure, right, labelled = probabilities.max(0), probabilities.argmax(0) == truth, truth != 255
    expected = 0.0
    for low in np.arange(10) / 10:
        here = labelled & (sure > low) & (sure <= low + 0.1)
        expected += abs(right[here].mean() - sure[here].mean()) * here.sum() / labelled.sum() if here.any() else 0
    assert calibration.ece == pytest.approx(100 * expected)
    found = calibration.scores()
    assert found.pixels == labelled.sum() == sum(row.pixels for row in found.bins)
    assert found.accuracy == pytest.approx(100 * right[labelled].mean())
    lows = np.arange(10) / 10
    expected_pixels = [(labelled & (sure > low) & (sure <= low + 0.1)).sum() for low in lows]
    assert [row.pixels for row in found.bins] == expected_pixels
    assert math.isnan(found.bins[0].accuracy) and found.bins[0].high == 10


def test_a_calibrated_net_has_no_calibration_error():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.2, 1, 200_000)
    calibration = Calibration()
    calibration.add(sure, rng.uniform(size=sure.size) < sure)
    assert calibration.ece < 0.6
    boaster = Calibration()
    boaster.add(np.ones(10), np.arange(10) < 7)
    assert boaster.ece == pytest.approx(30) and boaster.pixels[-1] == 10


def test_calibration_refuses_what_is_no_probability():
    calibration = Calibration()
    for sure in ([1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="softmax"):
            calibration.add(sure, [True])
    with pytest.raises(ValueError, match="confidence is"):
        calibration.add(np.ones((3, 4)), np.zeros((3, 5), bool))
    with pytest.raises(ValueError):
        calibration.merge(Calibration(bins=3))
    assert math.isnan(calibration.ece) and math.isnan(calibration.scores().ece)


def test_the_reliability_plot_draws_anything():
    calibration = Calibration()
    empty = reliability(calibration.scores(), LIGHT)
    calibration.add([0.5, 0.9, 0.95], [False, True, True])
    for theme in (LIGHT, DARK):
        pixels = reliability(calibration.scores(), theme)
        assert pixels.dtype == np.uint8 and pixels.shape == empty.shape and pixels.std() > 5
