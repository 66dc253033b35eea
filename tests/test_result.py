"""Result files of earlier versions are read, written again to the byte, and hold the scores that we find today."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from segmv3.data.datasets import Dataset, Pair
from segmv3.evaluation.counting import ImageCounts
from segmv3.evaluation.scores import scores_of_images
from segmv3.labels import cityscapes_classes, cityscapes_label_ids
from segmv3.results.result import Result
from segmv3.results.uncertainty import bootstrap_miou

OLD = sorted((Path(__file__).parent / "results").glob("*.json"))
"""Written by `segmv3 evaluate` when its result was a dictionary: all that can be measured, and an exported file."""


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_files_of_earlier_versions_are_written_again_to_the_byte(path):
    text = path.read_text()
    result = Result.read(path)
    assert result.to_json() == text == Result.from_json(text).to_json()
    assert json.loads(json.dumps(result.to_dict())) == json.loads(text)
    assert result.source == str(path) and result.names[0].endswith("_000019")


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_the_counts_of_earlier_versions_give_their_scores(path):
    old = Result.read(path)
    table = cityscapes_label_ids()
    pairs = (Pair(name, Path(name.partition("_")[0], f"{name}.png"), Path("l.png"), table) for name in old.names)
    dataset = Dataset(old.dataset, old.split, cityscapes_classes(), tuple(pairs))
    images = [ImageCounts(i, image.name, old.size, image.counts) for i, image in enumerate(old.per_image)]
    new = scores_of_images(images, dataset, multi_scale_flip=False)
    for one, other in ((old, new), *zip(old.cities, new.cities, strict=True)):
        other = json.loads(json.dumps(other.to_dict()))
        of_pixels = {key: value for key, value in other.items() if key not in ("classes", "categories", "per_image")}
        of_pixels = {key: value for key, value in of_pixels.items() if value is not None and key != "cities"}
        before = json.loads(json.dumps(one.to_dict()))
        assert of_pixels.keys() >= {"miou", "mean_accuracy", "pixel_accuracy", "category_miou", "absent"}
        assert {key: before[key] for key in of_pixels} == of_pixels
        for kind in ("classes", "categories"):
            rows = zip(before[kind], other[kind], strict=True)
            assert all({key: was[key] for key in now} == now for was, now in rows)
    assert bootstrap_miou(new.counts) == old.miou_interval


def test_what_was_not_measured_has_no_key_and_what_is_not_defined_is_null():
    result = Result.read(OLD[1])
    content = result.to_dict()
    assert "mean_boundary_iou" not in content and "boundary_iou" not in content["classes"][0]
    assert {"size", "origin", "miou_interval"} <= content.keys() and "input_size" not in content
    sized = replace(result, input_size=(32, 64), miou_interval=None).to_dict()
    assert (sized["input_size"], sized["input_scale"], sized["miou_interval"]) == ([32, 64], None, None)
