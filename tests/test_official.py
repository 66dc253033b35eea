"""Our numbers against the Cityscapes script itself, on predictions of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmv3 import official
from segmv3.data.datasets import Dataset, Pair
from segmv3.errors import DataError
from segmv3.evaluation.counting import ImageCounts
from segmv3.evaluation.scores import scores_of_images
from segmv3.images import write_png
from segmv3.labels import cityscapes_classes, cityscapes_label_ids
from segmv3.metrics import ConfusionMatrix

SIZE = (48, 96)
NAMES = ("aachen_000000_000019", "bonn_000001_000019")
NONE = np.uint8(255)


def random_ids(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 34, SIZE).astype(np.uint8) for _ in NAMES]


def edge_ids() -> list[np.ndarray]:
    """Only the smallest and largest ids, void in between."""
    return [np.where(np.arange(SIZE[1]) % 3 == i, np.uint8(33), np.full(SIZE, 7 * i, np.uint8)) for i in (0, 1)]


def void_ids() -> list[np.ndarray]:
    return [np.full(SIZE, i, np.uint8) for i in (0, 3)]


def guesses(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1000 + seed)
    return [rng.integers(0, 19, SIZE).astype(np.uint8) for _ in NAMES]


def mostly_right(truths: list[np.ndarray], seed: int) -> list[np.ndarray]:
    train = dict(cityscapes_label_ids().train_ids)
    lookup = np.array([train.get(i, 255) for i in range(256)])
    rng = np.random.default_rng(seed)
    right = [lookup[ids] for ids in truths]
    return [
        np.where((t == 255) | (rng.random(SIZE) < 0.2), g, t).astype(np.uint8)
        for t, g in zip(right, guesses(seed), strict=True)
    ]


def constant(value: int) -> list[np.ndarray]:
    return [np.full(SIZE, value, np.uint8) for _ in NAMES]


CASES = {f"random {i}": (random_ids(i), guesses(i)) for i in range(6)}
CASES |= {f"mostly right {i}": (random_ids(i), mostly_right(random_ids(i), i)) for i in range(10, 16)}
CASES |= {f"class {i} everywhere": (random_ids(20 + i), constant(i)) for i in (0, 11, 18)}
CASES |= {
    "all right": (random_ids(30), mostly_right(random_ids(30), 0)),
    "a class absent from truth": ([np.where(x == 26, 0, x).astype(np.uint8) for x in random_ids(31)], guesses(31)),
    "a class never predicted": (random_ids(32), [np.where(x == 13, 0, x).astype(np.uint8) for x in guesses(32)]),
    "a class absent from both": (
        [np.where(x == 31, 0, x).astype(np.uint8) for x in random_ids(33)],
        [np.where(x == 16, 0, x).astype(np.uint8) for x in guesses(33)],
    ),
    "one class in truth": (constant(26), guesses(34)),
    "one class, right": (constant(26), constant(13)),
    "one class, wrong": (constant(26), constant(0)),
    "ids at the edges": (edge_ids(), guesses(35)),
    "all void": (void_ids(), guesses(36)),
    "one image void": ([void_ids()[0], random_ids(37)[0]], guesses(37)),
    "one labelled pixel": ([void_ids()[0], np.where(np.arange(48 * 96).reshape(SIZE) == 5, 33, 0)], guesses(38)),
    "stripes": ([np.repeat(np.arange(34), 3)[:96][None].repeat(48, 0)] * 2, constant(2)),
}


def write_case(folder: Path, truths: list[np.ndarray], predictions: list[np.ndarray]) -> tuple[Dataset, list[Path]]:
    """The files that the script reads: labels, instances of 20 columns each, predictions."""
    pairs, written = [], []
    for name, truth, prediction in zip(NAMES, truths, predictions, strict=True):
        truth = truth.astype(np.uint8)
        label = folder / f"{name}_gtFine_labelIds.png"
        write_png(label, truth)
        number = truth.astype(np.uint16) * 1000 + (np.arange(SIZE[1]) // 20).astype(np.uint16)
        write_instances(label, np.where((truth >= 24) & (np.arange(SIZE[1]) > 5), number, truth).astype(np.uint16))
        written.append(official.write_prediction(folder, name, prediction))
        pairs.append(Pair(name, folder / name.partition("_")[0] / f"{name}.png", label, cityscapes_label_ids()))
    return Dataset("Cityscapes", "val", cityscapes_classes(), tuple(pairs)), written


def write_instances(label: Path, instances: np.ndarray) -> None:
    Image.fromarray(instances).save(label.with_name(label.name.replace("labelIds", "instanceIds")))


def our_scores(dataset: Dataset, truths: list[np.ndarray], predictions: list[np.ndarray]) -> dict:
    images = []
    for index, (pair, truth, prediction) in enumerate(zip(dataset.pairs, truths, predictions, strict=True)):
        confusion = ConfusionMatrix(19)
        confusion.update(prediction, pair.table.to_train_ids(truth.astype(np.uint8), pair.label))
        file = official.instance_file(pair.label)
        assert file
        weighted = official.instance_counts(prediction, official.read_instances(file))
        images.append(ImageCounts(index, pair.name, SIZE, confusion.sparse(), None, weighted))
    return json.loads(scores_of_images(images, dataset, multi_scale_flip=False).to_json())


def test_there_are_enough_cases():
    assert len(CASES) >= 20


@pytest.mark.parametrize("case", CASES)
def test_every_score_is_that_of_the_script(case, tmp_path, monkeypatch):
    truths, predictions = CASES[case]
    dataset, files = write_case(tmp_path, truths, predictions)
    ours = our_scores(dataset, truths, predictions)
    theirs = official.script_scores(files, [pair.label for pair in dataset.pairs])
    verdict = official.agreement(theirs, ours)
    assert verdict["largest_difference"] <= 1e-9 and verdict["compared"] == 28
    # its own instance score runs only where numpy still has in1d
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    with_instances(monkeypatch, files, dataset, ours)


def with_instances(monkeypatch, files: list[Path], dataset: Dataset, ours: dict) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    for name, value in (("evalInstLevelScore", True), ("JSONOutput", False), ("quiet", True)):
        monkeypatch.setattr(script.args, name, value)
    labels = [str(pair.label) for pair in dataset.pairs]
    theirs = script.evaluateImgLists([str(file) for file in files], labels, script.args)
    for kind, scores in (("classes", "classInstScores"), ("categories", "categoryInstScores")):
        for row in ours[kind]:
            assert same(row["iiou"], theirs[scores][row["name"]])
    assert same(ours["mean_iiou"], theirs["averageScoreInstClasses"])
    assert same(ours["category_mean_iiou"], theirs["averageScoreInstCategories"])


def same(ours: float | None, theirs: float) -> bool:
    return bool(np.isnan(theirs)) if ours is None else abs(ours - 100 * theirs) < 1e-9


def test_a_difference_is_not_reported(tmp_path):
    truths, predictions = CASES["random 0"]
    dataset, files = write_case(tmp_path, truths, predictions)
    theirs = official.script_scores(files, [pair.label for pair in dataset.pairs])
    other = [predictions[0], predictions[1].copy()]
    other[1][np.nonzero(truths[1] == 7)[0][0]] = 5
    with pytest.raises(official.OfficialError, match=r"^official: IoU of .* % here and .* by cityscapesscripts"):
        official.agreement(theirs, our_scores(dataset, truths, other))
    moved = our_scores(dataset, truths, predictions)
    moved["confusion_matrix"][0][1] += 1
    with pytest.raises(official.OfficialError, match="confusion matrix differs"):
        official.agreement(theirs, moved)
    moved = our_scores(dataset, truths, predictions)
    moved["categories"][3]["iou"] += 2e-9
    with pytest.raises(official.OfficialError, match="IoU of category nature"):
        official.agreement(theirs, moved)


def test_what_the_script_refuses_is_one_line(tmp_path, capsys):
    truths, predictions = CASES["random 0"]
    dataset, files = write_case(tmp_path, truths, [p[:-1] for p in predictions])
    with pytest.raises(DataError, match="the Cityscapes script stopped: Image heights of .* are not equal") as error:
        official.script_scores(files, [pair.label for pair in dataset.pairs])
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_predictions_are_written_as_label_ids(tmp_path):
    ids = np.append(np.arange(19), 255).astype(np.uint8)[None]
    written = np.array(Image.open(official.write_prediction(tmp_path, "a_0_0", ids)))
    assert written.tolist() == [[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0]]


def test_instance_files_that_are_none(tmp_path):
    label = tmp_path / "a_0_0_gtFine_labelIds.png"
    file = tmp_path / "a_0_0_gtFine_instanceIds.png"
    assert official.instance_file(label) is None and official.instance_file(tmp_path / "scene_labels.png") is None
    write_instances(label, np.full((9, 9), 26001, np.uint16))
    assert official.instance_file(label) == file and official.read_instances(file).dtype == np.uint16
    for pixels in (np.full((9, 9), 26, np.uint8), np.full((9, 9), 40000, np.uint16), np.zeros((9, 9, 3), np.uint8)):
        Image.fromarray(pixels).save(file)
        with pytest.raises(DataError, match="holds no instance ids"):
            official.read_instances(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        official.read_instances(file)


def test_other_ground_truth_is_refused():
    official.refuse_unscorable([Path("a_gtFine_labelIds.png")])
    with pytest.raises(DataError, match="needs Cityscapes' \\*_labelIds.png"):
        official.refuse_unscorable([Path("a_gtFine_labelIds.png"), Path("b_gtFine_labelTrainIds.png")])
